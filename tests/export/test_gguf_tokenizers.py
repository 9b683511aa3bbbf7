"""Tokenizers of every kind in llama.cpp: the same ids for the same texts; what it has no name for is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp")
sys.path.insert(0, str(Path(__file__).parent))
from gguf import GGUFReader
from tiny_exports import LLAMA3, SAMPLES, SPECIALS, byte_level, engine, folder_of, sentencepiece, wrapped

from speechkit.errors import ExportError, ModelError, PlanError
from speechkit.export.gguf import export_gguf
from speechkit.export.gguf_pre import GPT2, KNOWN, Cut, pre_of, stages_of
from speechkit.export.gguf_spm import read_pieces
from speechkit.export.gguf_tokenizer import rendered_tags

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
# llama.cpp tells upper from lower case in ASCII alone under these names
ASCII_CASE = ("tekken", "gpt-4o")


def exported(place: Path, tokenizer: Any, **more: Any) -> Path:
    folder = folder_of(place / "model", "llama", tokenizer, **SMALL)
    return export_gguf(folder, place / "model.gguf", "F32", prove=False, **more).files[0]


def field(path: Path, name: str) -> Any:
    return GGUFReader(path).fields[name].contents()


def unlike(path: Path, tokenizer: Any) -> list[str]:
    opened = engine(path)
    wanted = {text: tokenizer(text)["input_ids"] for text in SAMPLES}
    return [text for text, ids in wanted.items() if opened.tokens(text, True) != ids]


@pytest.mark.parametrize("cut", KNOWN, ids=lambda cut: cut.name)
def test_a_byte_level_tokenizer_gives_the_same_ids(cut: Cut, tmp_path: Path) -> None:
    tokenizer = byte_level(cut.stages, ignore_merges=cut.ignore_merges, begins=cut.name == "llama-bpe")
    path = exported(tmp_path, tokenizer)
    assert field(path, "tokenizer.ggml.pre") == cut.name
    assert field(path, "tokenizer.ggml.add_bos_token") == (cut.name == "llama-bpe")
    found = unlike(path, tokenizer)
    assert not [text for text in found if cut.name not in ASCII_CASE or text.isascii()]


@pytest.mark.parametrize("space", [True, False], ids=["Llama 2's", "Gemma's"])
@pytest.mark.parametrize("begins", [True, False], ids=["with bos", "without bos"])
def test_a_sentencepiece_tokenizer_gives_the_same_ids(space: bool, begins: bool, tmp_path: Path) -> None:
    tokenizer = sentencepiece(space, begins)
    path = exported(tmp_path, tokenizer)
    assert field(path, "tokenizer.ggml.model") == "llama"
    assert field(path, "tokenizer.ggml.add_space_prefix") == space
    assert unlike(path, tokenizer) == []


def test_ids_types_and_template_stand_in_the_file(tmp_path: Path) -> None:
    tokenizer = byte_level(ignore_merges=True)
    folder = folder_of(tmp_path / "model", "llama", tokenizer, **SMALL)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    path = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False).files[0]
    names = ("bos", "eos", "eot", "padding")
    assert [field(path, f"tokenizer.ggml.{name}_token_id") for name in names] == [1, 2, 3, 0]
    types = field(path, "tokenizer.ggml.token_type")
    assert types[:4] == [3] * 4 and types[4] == 1 and types[-1] == 5 and len(types) == 512
    assert field(path, "tokenizer.ggml.tokens")[:4] == list(SPECIALS)
    assert field(path, "tokenizer.chat_template") == tokenizer.chat_template


def test_tags_that_mark_tokens_for_training_are_not_for_llama_cpp() -> None:
    from jinja2 import Environment

    template = "a\n{%- generation -%}\n b \n{% endgeneration %}c{%-endgeneration-%} d"
    assert "generation" not in rendered_tags(template)
    plain = rendered_tags("x {%- generation %} y {% endgeneration -%} z")
    assert Environment(autoescape=True).from_string(plain).render() == "x y z"


def test_without_a_chat_template_the_report_says_so(tmp_path: Path) -> None:
    tokenizer = byte_level(ignore_merges=True)
    tokenizer.chat_template = None
    folder = folder_of(tmp_path / "model", "llama", tokenizer, **SMALL)
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    assert any("no chat template" in note for note in report.notes)
    assert "tokenizer.chat_template" not in GGUFReader(report.files[0]).fields


def test_an_unknown_cut_is_refused_with_the_nearest_and_taken_when_asked_for(tmp_path: Path) -> None:
    tokenizer = byte_level((LLAMA3.replace("{1,3}", "{1,2}"),))
    with pytest.raises(ExportError, match=r"no pre-tokenizer that cuts.*p\{N\}\{1,2\}.*nearest is .*% of \d+ texts"):
        exported(tmp_path, tokenizer)
    assert not list(tmp_path.glob("*.gguf"))
    folder = tmp_path / "model"
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False, pre="smaug-bpe")
    assert any("was asked for: it cuts" in note for note in report.notes)
    with pytest.raises(PlanError, match="pre is 'gpt2'; it can be llama-bpe"):
        export_gguf(folder, tmp_path / "other.gguf", "F32", prove=False, pre="gpt2")


def test_what_changes_text_before_the_cut_is_refused(tmp_path: Path) -> None:
    from tokenizers import normalizers

    with pytest.raises(ExportError, match=r"after normalising by .*Lowercase"):
        exported(tmp_path, byte_level(normalizer=normalizers.Lowercase()))


def test_composing_normalisers_are_told(tmp_path: Path) -> None:
    from tokenizers import normalizers

    folder = folder_of(tmp_path / "model", "llama", byte_level(normalizer=normalizers.NFC()), **SMALL)
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    assert any("NFC" in note for note in report.notes)


def test_the_usual_spellings_of_a_cut_are_one() -> None:
    long = LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
    split = {"type": "Split", "pattern": {"Regex": long}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    state = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]}, "normalizer": None}
    assert stages_of(state) == (LLAMA3,)
    assert stages_of({"pre_tokenizer": {**bytes_, "use_regex": True}, "normalizer": None}) == (GPT2,)
    digits = {"type": "Digits", "individual_digits": True}
    both = {"type": "Sequence", "pretokenizers": [digits, {**bytes_, "use_regex": True}]}
    assert stages_of({"pre_tokenizer": both, "normalizer": None}) == (r"\p{N}", GPT2)
    assert stages_of({"pre_tokenizer": {**bytes_, "add_prefix_space": True}, "normalizer": None}) is None


def test_whole_words_before_merges_matter_only_where_they_change_a_word() -> None:
    state = json.loads(byte_level(ignore_merges=True).backend_tokenizer.to_str())
    state["model"]["ignore_merges"] = False
    assert pre_of(state) == ("smaug-bpe", "")
    qwen = json.loads(byte_level(KNOWN[2].stages, ignore_merges=True).backend_tokenizer.to_str())
    assert pre_of(qwen) == ("qwen2", "")  # every word of it is what its merges make
    qwen["model"]["vocab"]["unreachable"] = max(qwen["model"]["vocab"].values()) + 1
    with pytest.raises(ExportError, match="no pre-tokenizer"):
        pre_of(qwen)


def test_scores_come_from_tokenizer_model_where_it_is_there(tmp_path: Path) -> None:
    def varint(number: int) -> bytes:
        return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)

    def piece(text: str, score: float) -> bytes:
        import struct

        word = text.encode()
        inner = b"\x0a" + varint(len(word)) + word + b"\x15" + struct.pack("<f", score)
        return b"\x0a" + varint(len(inner)) + inner

    tokenizer = sentencepiece()
    folder = folder_of(tmp_path / "model", "llama", tokenizer, **SMALL)
    words = sorted(tokenizer.backend_tokenizer.get_vocab(), key=tokenizer.backend_tokenizer.get_vocab().get)
    file = folder / "tokenizer.model"
    file.write_bytes(b"".join(piece(word, -0.5 * number) for number, word in enumerate(words)))
    assert read_pieces(file)[words[300]] == -150.0
    path = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False).files[0]
    assert field(path, "tokenizer.ggml.scores")[300] == -150.0
    file.write_bytes(b"\x0a\xff\xff not a model")
    with pytest.raises(ModelError, match="no SentencePiece model"):
        read_pieces(file)


def test_merges_that_are_not_sentencepieces_are_told(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = state["model"]["merges"]
    last = "".join(merges[-1])
    state["model"]["merges"] = [*[pair for pair in merges if "".join(pair) != last], merges[-1]]
    from tokenizers import Tokenizer

    other = wrapped(Tokenizer.from_str(json.dumps(state)), unk_token=tokenizer.unk_token)
    folder = folder_of(tmp_path / "model", "llama", other, **SMALL)
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    several = len([pair for pair in merges if "".join(pair) == last]) > 1
    assert several == any("not those of SentencePiece" in note for note in report.notes)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    from tiny_exports import saved, tiny

    tokenizer = byte_level()
    folder = saved(tmp_path / "model", tiny("llama", len(tokenizer) - 8, **SMALL), tokenizer)
    with pytest.raises(ModelError, match=r"480 tokens and the model's embedding 472 rows"):
        export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)


def test_other_kinds_of_tokenizer_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0), ("ab", -1.5)], unk_id=0))
    with pytest.raises(ExportError, match="kind Unigram"):
        exported(tmp_path, wrapped(bare))


def test_deepseeks_cuts_are_told_by_their_first_letters(tmp_path: Path) -> None:
    letters = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳ]+"
    marks = "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"
    stages = ("[\\r\\n]", letters, marks, "\\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    tokenizer = byte_level(stages)
    path = exported(tmp_path, tokenizer)
    assert field(path, "tokenizer.ggml.pre") == "deepseek-llm"
    assert not [text for text in unlike(path, tokenizer) if text.isascii() and not any(map(str.isdigit, text))]


def test_a_space_at_the_start_alone_is_told(tmp_path: Path) -> None:
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    folder = folder_of(tmp_path / "model", "llama", tokenizer, **SMALL)
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    assert any("after a special token too" in note for note in report.notes)
    found = unlike(report.files[0], tokenizer)
    assert any("begins with one already" in note for note in report.notes)
    assert not [text for text in found if "<|" not in text and not text.startswith(" ")]


def test_without_an_eos_the_models_own_stop_or_pad_stands_for_it(tmp_path: Path) -> None:
    tokenizer = byte_level(ignore_merges=True)
    tokenizer.eos_token = None
    folder = folder_of(tmp_path / "model", "llama", tokenizer, **SMALL)
    for stops, wanted in (([3], 3), (None, 0)):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False, overwrite=True)
        assert field(report.files[0], "tokenizer.ggml.eos_token_id") == wanted
        assert f"the tokenizer has no eos: token {wanted} stands for it" in report.notes


@pytest.mark.parametrize("phi", [True, False], ids=["Phi-3's", "others"])
def test_tokens_that_take_the_spaces_after_them_away(phi: bool, tmp_path: Path) -> None:
    """llama.cpp knows those of Phi-3, by the model's name; of others it is told that it does not."""
    from tokenizers import AddedToken

    tokenizer = sentencepiece()
    stays = ("<s>", "<|endoftext|>", "<unk>")
    for word in (*SPECIALS, *((*stays, "</s>") if phi else ())):
        token = AddedToken(word, special=True, normalized=False, rstrip=word not in stays)
        tokenizer.backend_tokenizer.add_special_tokens([token])
    folder = folder_of(tmp_path / "model", "phi3", tokenizer, **SMALL)
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    told = any("take the spaces beside them away" in note for note in report.notes)
    assert told == bool(unlike(report.files[0], tokenizer)) == (not phi)
    assert field(report.files[0], "general.name") == ("model (Phi-3)" if phi else "model")


def test_a_name_that_llama_cpp_would_misread_is_changed(tmp_path: Path) -> None:
    """It does not load a model with "phi-3" in its name whose tokens are not Phi-3's."""
    folder = folder_of(tmp_path / "my-Phi-3-like", "llama", byte_level(ignore_merges=True), **SMALL)
    path = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False).files[0]
    assert field(path, "general.name") == "my-Phi 3-like" and engine(path).tokens("a", False)
