"""What of a folder is published and what never: pickles, states, secrets, data, this machine's folders."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from speechkit.errors import ExportError
from speechkit.export.card_facts import read_facts
from speechkit.export.hub_files import gather
from speechkit.export.hub_secrets import BLOCK, Mine, redacted, refuse_secrets

TOKEN = "hf_" + "k3M" * 11 + "q"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.zeros((8, 8), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def gathered(folder: Path, files: list[str] | None = None) -> tuple[set[str], dict[str, str]]:
    uploads, left = gather(read_facts(folder), files)
    return {one.path for one in uploads}, dict(left)


LEFT_OUT = {
    "pytorch_model.bin": "pickled", "model.pt": "pickled", "features.npy": "pickled", "tf_model.h5": "pickled",
    "optimizer.pt": "state of a training", "trainer_state.json": "state of a training", "rng_state_0.pth": "state",
    "scheduler.safetensors": "state of a training", "checkpoint-100/model.safetensors": "state of a training",
    "global_step5/a.json": "state", ".env": "secret", "hf_token.txt": "secret", "token": "secret",
    "api-key.json": "secret",
    "credentials.json": "secret", "id_rsa": "secret", "server.pem": "secret", ".netrc": "secret",
    ".git/config": "hidden",
    ".DS_Store": "hidden", "__pycache__/a.json": "hidden", "model.safetensors.new": "unfinished",
    "clip.wav": "not a kind of file", "modeling.py": "not a kind of file", "notes.docx": "not a kind of file",
    "data.json": "names rows of the data", "data-dev.json": "names rows of the data",
}  # fmt: skip
PUBLISHED = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "chat_template.jinja", "LICENSE", "Modelfile", "curve.jsonl", "merges.txt", "figures/wer.png", "tokens.txt",
]  # fmt: skip


@pytest.mark.parametrize(("name", "reason"), LEFT_OUT.items(), ids=LEFT_OUT.keys())
def test_left_out_and_named(model: Path, name: str, reason: str) -> None:
    (model / name).parent.mkdir(exist_ok=True, parents=True)
    (model / name).write_bytes(b"{}")
    uploads, left = gathered(model)
    assert uploads == {"config.json", "model.safetensors"}
    assert reason in left[name]


def test_published(model: Path) -> None:
    for name in PUBLISHED:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"{}\n")
    uploads, left = gathered(model)
    assert uploads == {"config.json", "model.safetensors", *PUBLISHED} and not left


def test_card_changelog_and_records_are_the_pushs_own(model: Path) -> None:
    for name in ("README.md", "CHANGELOG.md", "versions.json"):
        (model / name).write_text("{}")
    assert gathered(model)[0] == {"config.json", "model.safetensors"}


def test_patterns_choose_and_what_they_leave_is_named(model: Path) -> None:
    (model / "extra.txt").write_text("a")
    assert gathered(model, ["*.safetensors", "config.json"]) == (
        {"config.json", "model.safetensors"}, {"extra.txt": "not asked for"},
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"holds no weights that fits '\*\.txt'"):
        gathered(model, ["*.txt"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt"])
def test_pickled_weights_alone_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExportError, match="pickled weights only, which can run code"):
        gathered(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"holds no weights \(it holds: nothing\)"):
        gathered(tmp_path)


def test_weights_without_a_config_are_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(ExportError, match=r"holds weights and no config\.json"):
        gathered(model)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.9], ids=["empty", "in-the-header", "in-the-weights"])
def test_weights_that_were_cut_are_refused(model: Path, keep: float) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ExportError, match=r"model\.safetensors .*save the model again"):
        gathered(model)


def test_a_link_out_of_the_folder_is_left_out_and_the_hubs_cache_is_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("mine")
    (model / "notes.txt").symlink_to(tmp_path / "private.txt")
    (model / "more").symlink_to(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/abc").write_text("{}")
    (model / "tokenizer.json").symlink_to(tmp_path / "blobs/abc")
    uploads, left = gathered(model)
    assert uploads == {"config.json", "model.safetensors", "tokenizer.json"}
    assert left == {"notes.txt": "a link to a file outside the folder"}


# secrets


SECRETS = {
    "hub": TOKEN, "hub-oauth": "hf_oauth_" + "eyJhbGciOi" * 3 + ".abc.def",
    "old-hub": "api_org_" + "a" * 34, "github": "ghp_" + "a" * 36, "openai": "sk-" + "a" * 40,
    "aws": "AKIA" + "A" * 16, "key": "-----BEGIN OPENSSH PRIVATE KEY-----",
}  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
@pytest.mark.parametrize("name", ["notes.txt", "generation_config.json", "curve.jsonl", "chat_template.jinja"])
def test_a_file_with_a_secret_is_refused_with_its_line_and_without_the_secret(
    model: Path, secret: str, name: str
) -> None:
    (model / name).write_text(f"\n\n{{'a': '{secret}'}}\n")
    with pytest.raises(ExportError, match=rf"{name}, line 3, holds what looks like .*Nothing was sent") as caught:
        gathered(model)
    assert secret not in str(caught.value)


def test_a_secret_in_the_metadata_of_weights_is_found(model: Path) -> None:
    save_file({"a": np.zeros(4, np.float32)}, model / "model.safetensors", metadata={"note": TOKEN})
    with pytest.raises(ExportError, match=r"model\.safetensors, line 1, holds what looks like a Hugging Face token"):
        gathered(model)


def test_the_token_of_this_machine_is_found_whatever_it_looks_like(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "corporate!login!77")
    (model / "notes.txt").write_text("see corporate!login!77")
    mine = Mine.here()
    with pytest.raises(ExportError, match="the token of this machine") as caught:
        gather(read_facts(model), mine=mine)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert "login!77" not in "".join(shown.format()) + repr(mine) + str(mine)
    assert mine.hidden("a corporate!login!77 b") == "a hf_… b"


def test_a_token_of_a_few_letters_is_not_found_everywhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a")
    assert gather(read_facts(model), mine=Mine.here())[0]


@pytest.mark.parametrize("at", [BLOCK - 20, BLOCK, 3 * BLOCK - 5])
def test_a_secret_across_the_seam_of_two_blocks_is_found_on_its_line(tmp_path: Path, at: int) -> None:
    rows = b"x" * 99 + b"\n"
    text = (rows * (4 * BLOCK // 100))[:at] + b" " + TOKEN.encode() + b"\n" * 10
    (tmp_path / "long.txt").write_bytes(text)
    line = text[: text.index(TOKEN.encode())].count(b"\n") + 1
    with pytest.raises(ExportError, match=rf"long\.txt, line {line}, "):
        refuse_secrets("long.txt", tmp_path / "long.txt")


def test_ordinary_words_are_no_secrets(model: Path) -> None:
    (model / "merges.txt").write_text("hf_transfer sk-learn hf_hub_download_with_progress AKIA\n" + "ab" * 40)
    assert "merges.txt" in gathered(model)[0]


def test_text_for_people_loses_tokens() -> None:
    assert redacted(f"a {TOKEN} b ghp_{'c' * 36}") == "a hf_… b hf_…"


# this machine's folders


def test_folders_of_this_machine_are_taken_out_of_json(model: Path) -> None:
    home = str(Path.home())
    row = {
        "folder": f"{home}/my runs/letters", "train": str(model.parent / "speech/train.tsv"), "steps": 3,
        "command": ["speechkit", f"--out={home}/x/run1", "--rate", "0.1"], "note": f"read {home}/x/a.tsv twice",
        "url": "https://example.org/a/b",
    }  # fmt: skip
    (model / "run.json").write_text(json.dumps(row))
    uploads, _ = gather(read_facts(model))
    made = next(one for one in uploads if one.path == "run.json")
    assert isinstance(made.source, bytes) and made.size == len(made.source)
    assert json.loads(made.source) == {
        "folder": "letters", "train": "train.tsv", "steps": 3, "command": ["speechkit", "--out=run1", "--rate", "0.1"],
        "note": "read a.tsv twice", "url": "https://example.org/a/b",
    }  # fmt: skip
    assert json.loads((model / "run.json").read_text()) == row, "the folder stays as it is"


def test_folders_of_other_places_are_taken_out_and_tokens_that_look_like_folders_stay(model: Path) -> None:
    row = {
        "command": ["/srv/env/lib/python3.11/site-packages/tool.py", "-f", "C:\\Users\\anna\\a b.json"],
        "a": "2/3/4",
    }
    (model / "run.json").write_text(json.dumps(row))
    vocabulary = {"model": {"type": "Unigram", "vocab": [["/tmp", -1.0], [str(Path.home()), -2.0], ["/usr/bin", -3.0]]}}
    (model / "tokenizer.json").write_text(json.dumps(vocabulary))
    uploads, _ = gather(read_facts(model))
    made = {one.path: one.source if isinstance(one.source, bytes) else one.source.read_bytes() for one in uploads}
    assert json.loads(made["run.json"]) == {"command": ["tool.py", "-f", "a b.json"], "a": "2/3/4"}
    assert json.loads(made["tokenizer.json"]) == vocabulary


def test_broken_links_and_pipes_in_a_run_are_passed_over(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    model.rename(run / "best")
    for name in ("run.json", "result.json"):
        (run / name).write_text("{}")
    (run / "notes.txt").symlink_to(run / "best/none.txt")
    os.mkfifo(run / "pipe.json")
    assert gathered(run)[0] == {"config.json", "model.safetensors", "run.json", "result.json"}


@pytest.mark.parametrize(
    ("named", "base", "published"),
    [
        ("/srv/models/tiny-llama", "", "tiny-llama"),
        ("C:\\models\\tiny-llama", "", "tiny-llama"),
        ("/srv/models/tiny-llama", "owner/tiny", "owner/tiny"),
        ("owner/tiny", "", "owner/tiny"),
        ("/opt/speechkit/demo/models/chat", "", "demo/chat"),
        ("qwen3-0.6b", "", "Qwen/Qwen3-0.6B"),
    ],
)
def test_an_adapters_base_is_named_without_folders(tmp_path: Path, named: str, base: str, published: str) -> None:
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": named}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    uploads, _ = gather(read_facts(tmp_path), base=base)
    source = next(one.source for one in uploads if one.path == "adapter_config.json")
    found = json.loads(source if isinstance(source, bytes) else source.read_bytes())
    assert found == config | {"base_model_name_or_path": published}
