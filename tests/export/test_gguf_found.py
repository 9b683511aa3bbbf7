"""What an export finds: folders saved over, heads of their own, odd cards and headers, leftovers and others at work."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("xllamacpp")
sys.path.insert(0, str(Path(__file__).parent))
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tiny_exports import byte_level, difference, folder_of, saved, tiny

from speechkit.errors import ExportError, ModelError, OutputError, PlanError
from speechkit.export import export_gguf, export_gguf_adapter
from speechkit.export.gguf_write import finish, partial_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("found") / "a model")


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    return {one.name: np.asarray(one.data) for one in GGUFReader(file).tensors}


def test_one_file_goes_before_an_index_left_of_an_earlier_save(base: Path, tmp_path: Path) -> None:
    """As in transformers, whose save_pretrained leaves the index where it is."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    place = saved(tmp_path / "model", model, byte_level(ignore_merges=True), max_shard_size="100KB")
    assert (place / "model.safetensors.index.json").is_file()
    with torch.no_grad():
        model.model.norm.weight.fill_(3)
    model.save_pretrained(place)
    file = export_gguf(place, tmp_path / "a.gguf", "F32", prove=False).files[0]
    assert (tensors_of(file)["output_norm.weight"] == 3).all()


@pytest.mark.parametrize("own", [True, False])
def test_a_head_beside_a_tied_embedding_is_kept_where_its_values_are_others(own: bool, tmp_path: Path) -> None:
    place = folder_of(tmp_path / "model", tie_word_embeddings=True)
    weights = load_file(place / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    weights["lm_head.weight"] = head.flip(0).contiguous() if own else head
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    report = export_gguf(place, tmp_path / "a.gguf", "F32", prove=False)
    assert ("output.weight" in tensors_of(report.files[0])) == own
    assert any("a head of its own" in note for note in report.notes) == own
    assert difference(place, report.files[0], (6,)) < 2e-3


def test_a_card_that_names_a_local_base_tells_no_path_and_a_broken_one_stops_nothing(
    base: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(base, place)
    for card in (
        b"---\nbase_model: /home/someone/models/mine\n---\n",
        b"---\nbase_model: {a: [\n---\n",
        b"---\n\xff\n",
    ):
        (place / "README.md").write_bytes(card)
        file = export_gguf(place, tmp_path / "a.gguf", "F32", prove=False, overwrite=True).files[0]
        assert b"someone" not in file.read_bytes()
    (place / "README.md").write_text("---\nbase_model: owner/base-1.0\n---\n")
    file = export_gguf(place, tmp_path / "a.gguf", "F32", prove=False, overwrite=True).files[0]
    assert b"https://huggingface.co/owner/base-1.0" in file.read_bytes()


def test_the_folder_one_is_in_has_its_own_name(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base)
    file = export_gguf(".", tmp_path / "x[1] 日本.gguf", "F32", prove=False).files[0]
    assert GGUFReader(file).fields["general.name"].contents() == "a model"


HEADERS: tuple[Any, ...] = ([1], {"a": 3}, {"a": {"dtype": "F32"}}, {"a": {"dtype": "F32", "shape": ["x"]}})


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_a_header_of_another_form_is_refused(header: Any, base: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(base, place)
    text = json.dumps(header).encode()
    (place / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ModelError, match="its header cannot be read"):
        export_gguf(place, tmp_path / "a.gguf", "F32", prove=False)


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size"])
def test_a_configuration_that_lost_a_field_is_refused(field: str, base: Path, tmp_path: Path) -> None:
    """transformers puts Llama 7B's number there, and llama.cpp would not open the file."""
    place = tmp_path / "model"
    shutil.copytree(base, place)
    config = json.loads((place / "config.json").read_text())
    del config[field]
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="a field is missing there"):
        export_gguf(place, tmp_path / "a.gguf", "F32", prove=False)


def test_the_name_of_a_part_and_a_size_in_words_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"the name of a part; name the whole, a\.gguf"):
        export_gguf(base, tmp_path / "a-00001-of-00003.gguf", prove=False)
    with pytest.raises(PlanError, match="split_bytes is '1G'"):
        export_gguf(base, tmp_path / "a.gguf", split_bytes="1G", prove=False)  # type: ignore[arg-type]


def test_special_tokens_without_a_row_are_left_out_unless_they_are_needed(tmp_path: Path) -> None:
    """Gemma 3's smallest has the picture's token after its last row."""
    tokenizer = byte_level(ignore_merges=True)
    model = tiny("llama", len(tokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    place = saved(tmp_path / "model", model, tokenizer)
    report = export_gguf(place, tmp_path / "a.gguf", "F32", prompts=["The dog"])
    assert report.proof is not None and report.proof.passed
    assert any("1 special tokens have no row in the embedding" in note for note in report.notes)
    tokenizer.chat_template += "<image_soft_token>"
    tokenizer.save_pretrained(place)
    with pytest.raises(ModelError, match="the embedding was not resized"):
        export_gguf(place, tmp_path / "b.gguf", "F32", prove=False)


def test_what_a_killed_process_of_the_same_number_left_is_removed(base: Path, tmp_path: Path) -> None:
    """In a container every run may have the same number."""
    for name in ("a[1].gguf", "b.gguf"):
        left = tmp_path / f".{name}.0.{os.getpid()}.partial"
        left.mkdir()
        (left / "b-00001-of-00002.gguf").write_text("half")
        report = export_gguf(base, tmp_path / name, "F32", prove=False)
        assert [file.name for file in report.files] == [name] and not left.exists()


def test_two_exports_to_one_name_keep_apart_and_the_second_is_refused(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with partial_folder(path) as made:
        (made / "a.gguf").write_text("half")
        other = threading.Thread(target=lambda: export_gguf(base, path, "F32", prove=False))
        other.start()
        other.join()
        whole = path.read_bytes()
        assert (made / "a.gguf").read_text() == "half"
        with pytest.raises(OutputError, match="came to be there while this export ran"):
            finish(made, path, overwrite=False)
    assert path.read_bytes() == whole


def test_new_splits_over_old_ones_have_no_first_file_until_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"a-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    for name in names:
        (tmp_path / name).write_text("old")
    real = Path.replace

    def stops(file: Path, target: Path) -> Path:
        if file.name == names[1]:
            raise OSError(5, "Input/output error")
        return real(file, target)

    with pytest.raises(OutputError, match="cannot be written"), partial_folder(tmp_path / "a.gguf") as made:
        for name in names:
            (made / name).write_text("new")
        monkeypatch.setattr(Path, "replace", stops)
        finish(made, tmp_path / "a.gguf", overwrite=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == names[1:]


def test_a_disk_too_small_for_the_model_in_memory_is_a_typed_error(base: Path, tmp_path: Path) -> None:
    """By a limit on the size of files, which no look at the free room tells of."""
    resource = pytest.importorskip("resource")
    pair = (tiny("llama", 512), byte_level(ignore_merges=True))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        for given in (base, pair):
            with pytest.raises(OutputError, match=r"File too large.*; nothing .*was kept"):
                export_gguf(given, tmp_path / "a.gguf", "F32", prove=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_an_importance_matrix_may_be_tensors_of_16_bits(base: Path, tmp_path: Path) -> None:
    values = torch.linspace(0.5, 2, 96, dtype=torch.bfloat16)
    files = [
        export_gguf(base, tmp_path / f"{n}.gguf", "Q4_0", imatrix={"blk.0.ffn_down.weight": one}, prove=False).files[0]
        for n, one in enumerate((values, values.float().numpy()))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(ModelError, match="none of the 1 names"):
        export_gguf(base, tmp_path / "x.gguf", "Q4_0", imatrix={3: values}, prove=False)


def test_an_adapter_that_changes_its_base_or_has_no_alpha_is_refused(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa")
    get_peft_model(model, wanted).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ExportError, match="begins at pissa, which changes the base's own weights"):
        export_gguf_adapter(tmp_path / "adapter", tmp_path / "a.gguf", prove=False)
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    for alpha in (0, None):
        file.write_text(json.dumps({**config, "lora_alpha": alpha}))
        with pytest.raises(ModelError, match=f"lora_alpha {alpha}; it is a number"):
            export_gguf_adapter(tmp_path / "adapter", tmp_path / "a.gguf", prove=False)
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        export_gguf_adapter(tmp_path / "adapter", tmp_path / "folder.gguf", prove=False)
