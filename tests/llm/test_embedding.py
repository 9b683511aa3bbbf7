"""Encoders of sentences: from plain folders and from sentence-transformers' own, taught by pairs, opened again."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny
from tiny_tokens import VOCABULARY, tokenizer

from speechkit.errors import DataError, ModelError, OutputError, PlanError
from speechkit.llm.embedding import EncoderConfig, finetune_pairs, load_encoder, retrieval

COLOURS = ("red", "green", "blue", "black", "white", "brown", "grey", "pink")
THINGS = ("cat", "door", "moon", "tree", "fish", "book", "boat", "hat")
# a text and the same in capitals: bytes in common there are none, so that an untrained encoder cannot tell
PAIRS = [(f"{colour} {thing}", f"{thing} {colour}".upper()) for colour in COLOURS for thing in THINGS]


def save_bert(folder: Path, kind: str = "bert") -> Path:
    """A random encoder of this type and a tokenizer of bytes."""
    from transformers import AutoConfig, AutoModel

    size = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 64, "max_position_embeddings": 66, "pad_token_id": 0, "cls_token_id": 1,
            "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **size)).save_pretrained(folder)
    tokenizer(None, model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("encoder") / "plain")


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "modernbert"])
def test_a_plain_encoder_gives_the_mean_over_its_tokens(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = save_bert(tmp_path / "m", kind)
    found = load_encoder(folder, device="cpu").encode(["red cat"])
    plain, tokens = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = plain(**tokens("red cat", return_tensors="pt")).last_hidden_state
    assert found.shape == (1, 32)
    np.testing.assert_allclose(found[0], states[0].mean(0).numpy(), atol=1e-5)


def test_pairs_teach_an_encoder_and_sentence_transformers_opens_what_was_saved(bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    config = EncoderConfig(
        model=str(bert), folder=str(tmp_path / "run"), epochs=30, batch=16, learning_rate=5e-3, device="cpu"
    )
    dev = PAIRS[::4]
    done = finetune_pairs(config, [pair for pair in PAIRS if pair not in dev], dev)
    assert done.before.accuracy_at_1 < 0.3 and done.after.accuracy_at_1 > 0.8, done
    assert done.after.mean_reciprocal_rank > done.before.mean_reciprocal_rank and done.held_out
    assert done.steps == 90 and "on held-out pairs\n  before  " in str(done)
    again = SentenceTransformer(str(done.folder), device="cpu")
    assert retrieval(again, dev) == done.after, "the figures of the encoder as saved"
    assert load_encoder(done.folder, device="cpu").encode("red cat").tolist() == again.encode("red cat").tolist()
    kept = json.loads((done.folder / "encoder.json").read_text())
    assert kept["config"] == {**vars(config)} and kept["after"]["accuracy_at_1"] == done.after.accuracy_at_1
    assert not list(done.folder.rglob("*.bin")) and list(done.folder.rglob("*.safetensors"))
    again_there = finetune_pairs(config.__class__(**{**vars(config), "epochs": 0.1}), PAIRS)
    assert again_there.folder == done.folder and not again_there.held_out
    assert "the training pairs themselves: give dev_pairs for a fair figure" in str(again_there)
    assert not list(tmp_path.glob("*.new"))


def test_retrieval_counts_a_text_spelt_as_the_partner_as_the_partner() -> None:
    class Letters:
        """Encodes a text as the one-hot of its first letter: what retrieval is given is known."""

        def encode(self, texts: list[str], **_: Any) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.tensor([ord(text[0]) - 97 for text in texts]), 26).float()

    found = retrieval(Letters(), [("a", "a1"), ("b", "a1"), ("c", "c1"), ("d", "d1")])
    assert found.accuracy_at_1 == 1.0, "b is as far from everything: no other is nearer than its own"
    found = retrieval(Letters(), [("a", "b1"), ("b", "c1"), ("c", "c1"), ("d", "a1")])
    assert (found.accuracy_at_1, found.pairs) == (0.5, 4)
    assert found.mean_reciprocal_rank == pytest.approx((1 / 2 + 1 / 2 + 1 + 1) / 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs is 0; it is a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it is a number above 0"),
        ({"batch": 1}, "batch is 1; it is a whole number from 2: a pair is told from the others"),
        ({"warmup": 2}, "warmup is 2; it is a share from 0 to less than 1"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        EncoderConfig(model="x", **change)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("a", "b"), ("c", "")], "pairs, number 2, is ('c', ''); a pair is two texts that are not empty"),
        ([("a", "b"), "cd"], "pairs, number 2, is 'cd'; a pair is two texts"),
        ([("a", "b", "c")], "pairs, number 1, is ('a', 'b', 'c'); a pair is two texts"),
        ([("a", "b")], "pairs holds 1; at least two are needed"),
    ],
    ids=["empty text", "no pair", "three texts", "too few"],
)
def test_a_row_that_is_no_pair_is_named(pairs: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        finetune_pairs(EncoderConfig(model="none", folder=str(tmp_path / "run")), pairs)


def test_a_folder_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds something that is no encoder of an earlier run; name another folder"):
        finetune_pairs(EncoderConfig(model="none", folder=str(tmp_path)), PAIRS)
    with pytest.raises(OutputError, match="is a file; name a folder for the encoder"):
        finetune_pairs(EncoderConfig(model="none", folder=str(tmp_path / "thesis.txt")), PAIRS)


def test_a_full_disk_leaves_the_encoder_that_was_there(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    config = EncoderConfig(model=str(bert), folder=str(tmp_path / "run"), epochs=0.1, device="cpu")
    done = finetune_pairs(config, PAIRS)
    kept = (done.folder / "model.safetensors").read_bytes()

    def full(self: Any, path: str, **_: Any) -> None:
        Path(path, "config.json").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SentenceTransformer, "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left on device; make room, or name another folder"):
        finetune_pairs(config, PAIRS)
    assert (done.folder / "model.safetensors").read_bytes() == kept and not list(tmp_path.glob("*.new"))


def test_a_language_model_is_no_encoder(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds a llama model, which is no encoder of sentences known here \(RoBERTa"):
        load_encoder(tmp_path)


def test_an_encoder_that_wants_code_of_its_own_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(bert, folder)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "acme.Encoder"}]))
    with pytest.raises(ModelError, match=r"wants to run code of its own \(acme.Encoder in modules.json\)"):
        load_encoder(folder)
    (folder / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"modules.json cannot be read as a list of modules"):
        load_encoder(folder)


def test_an_encoder_without_safetensors_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no weights: model.safetensors"):
        load_encoder(folder)
    with pytest.raises(ModelError, match=r"neither config.json nor modules.json"):
        load_encoder(tmp_path)


def test_texts_are_cut_at_max_len_which_is_at_most_the_encoders(bert: Path) -> None:
    short = load_encoder(bert, device="cpu", max_len=4)
    whole = load_encoder(bert, device="cpu")
    assert short.encode("red cat").tolist() == whole.encode("red ").tolist()
    for wrong, said in (
        (10_000, "max_len is 10,000, and the encoder was made for texts of at most"),
        (0, "max_len is 0;"),
    ):
        with pytest.raises(PlanError, match=said):
            load_encoder(bert, device="cpu", max_len=wrong)


def test_an_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="nearest known names: minilm-l6"):
        load_encoder("minilm-l7")
