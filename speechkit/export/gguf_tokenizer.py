"""A tokenizer under llama.cpp's keys: tokens, their types, merges or scores, special ids, chat template.

In: a transformers tokenizer with a Rust backend, and the rows of the embedding. Out: entries in a GGUF writer, and
notes. Byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`); the pre-tokenizer is found in `gguf_pre`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError, ModelError
from speechkit.export.gguf_pre import pre_of
from speechkit.export.gguf_spm import UNSEEN, merge_scores, merges_of, read_pieces, spm_notes, spm_space

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGUFWriter

    from speechkit.export.gguf_source import Source

__all__ = ["add_tokenizer", "rendered_tags", "told_name"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
PHI_STAYS = ("<unk>", "<s>", "<|endoftext|>")  # of Phi-3's tokens those that take no spaces away
SPACE = "\u2581"  # SentencePiece's space


def add_tokenizer(
    writer: GGUFWriter,
    tokenizer: Any,
    rows: int,
    *,
    source: Source,
    pre: str | None = None,
    stops: tuple[int, ...] = (),
) -> tuple[str, ...]:
    """Everything of the tokenizer into the file; notes on what a reader should know.

    rows: of the embedding; ids that the tokenizer does not use are filled. stops: eos ids of the generation config.
    Raises ExportError for a tokenizer that llama.cpp cannot be told, ModelError for one that does not fit the model.
    """
    folder, state = source.tokenizer, _state(tokenizer, source.tokenizer)
    outside = _outside(state, tokenizer, rows)
    tokens, types = _tokens(state, rows)
    kind = state["model"]["type"]
    if kind != "BPE":
        raise ExportError(
            f"its tokenizer is of kind {kind}; llama.cpp's models here are byte-level BPE and SentencePiece BPE"
        )
    spm = "ByteLevel" not in json.dumps(state.get("pre_tokenizer")) and _has_spaces(state)
    notes = _add_spm(writer, state, tokens, types, folder) if spm else _add_bpe(writer, state, tokens, types, pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    notes += _add_special(writer, tokenizer, stops)
    notes += _add_template(writer, tokenizer)
    return (*notes, *outside, *_stripping(state, source.name))


def told_name(name: str, tokenizer: Any, folder: Path) -> str:
    """The model's name as llama.cpp may see it: one with "phi-3" in it makes tokens take the spaces after them away,
    and stops it from loading where the tokens of Phi-3 are not there."""
    phi = _eats_as_phi(_state(tokenizer, folder))
    if phi and not _is_phi(name):
        return f"{name} (Phi-3)"
    return name if phi else re.sub(r"(?i)(phi)-?3", r"\1 3", name)


def rendered_tags(template: str) -> str:
    """A chat template without {% generation %}, which marks tokens for training and which llama.cpp does not know; the
    whitespace around its tags stays as it was trimmed."""
    opened = re.sub(r"\{%(-?\+?)\s*generation\s*(-?\+?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?\+?)\s*endgeneration\s*(-?\+?)%\}", r"{%\1 endif \2%}", opened)


def _state(tokenizer: Any, folder: Path) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(
            f"the tokenizer of {folder} ({type(tokenizer).__name__}) has no tokenizer.json to be read from"
        )
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def _outside(state: dict[str, Any], tokenizer: Any, rows: int) -> list[str]:
    """Take added tokens out of `state` that the embedding has no row for and no prompt needs, as the picture's of
    Gemma 3's smallest; a note names them. Those that are needed stay, for `_tokens` to refuse."""
    added = state.get("added_tokens") or []
    needed = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
    template = json.dumps(getattr(tokenizer, "chat_template", None) or "", ensure_ascii=False)
    lost = [
        one
        for one in added
        if one["id"] >= rows
        and one["id"] not in needed
        and json.dumps(one["content"], ensure_ascii=False)[1:-1] not in template
    ]
    if not lost or not all(one["special"] for one in lost):
        return []
    state["added_tokens"] = [one for one in added if one not in lost]
    names = ", ".join(one["content"] for one in lost[:3])
    return [f"{len(lost)} special tokens have no row in the embedding and were left out ({names})"]


def _tokens(state: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types by id; ids without a token are unused."""
    vocabulary = state["model"].get("vocab") or {}
    if not isinstance(vocabulary, dict):  # Unigram's is a list of pairs
        vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
    added = {entry["id"]: entry for entry in state.get("added_tokens") or ()}
    most = max((*vocabulary.values(), *added), default=-1) + 1
    if most > rows:
        raise ModelError(
            f"the tokenizer has {most:,} tokens and the model's embedding {rows:,} rows: they belong to different "
            "models, or the embedding was not resized (model.resize_token_embeddings)"
        )
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    unknown = state["model"].get("unk_token")
    for text, number in vocabulary.items():
        tokens[number] = text
        types[number] = UNKNOWN if text == unknown else NORMAL
        if re.fullmatch(r"<0x[0-9A-F]{2}>", text) and state["model"].get("byte_fallback"):
            types[number] = BYTE
    for number, entry in added.items():
        tokens[number] = entry["content"]
        if types[number] != UNKNOWN:
            types[number] = CONTROL if entry["special"] else USER_DEFINED
    if len(set(tokens)) < rows:
        twice = Counter(tokens).most_common(1)[0][0]
        raise ModelError(f"the tokenizer has two tokens {twice!r}, which llama.cpp refuses; rename one of them")
    return tokens, types


def _has_spaces(state: dict[str, Any]) -> bool:
    """Whether it is SentencePiece's."""
    if state["model"].get("byte_fallback"):
        return True
    kinds = json.dumps([state.get("normalizer"), state.get("pre_tokenizer"), state.get("decoder")], ensure_ascii=False)
    return SPACE in kinds or "Metaspace" in kinds


def _add_bpe(
    writer: GGUFWriter, state: dict[str, Any], tokens: list[str], types: list[int], pre: str | None
) -> list[str]:
    name, note = pre_of(state, pre)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    # llama.cpp wants the key even where there is no merge, and an array cannot be empty
    writer.add_token_merges([" ".join(pair) for pair in merges_of(state)] or [""])
    normal = json.dumps(state.get("normalizer"))
    nfc = ["its tokenizer composes characters first (NFC), llama.cpp does not: text in other forms gets other tokens"]
    return ([note] if note else []) + (nfc if "NFC" in normal else [])


def _add_spm(writer: GGUFWriter, state: dict[str, Any], tokens: list[str], types: list[int], folder: Path) -> list[str]:
    file = folder / "tokenizer.model"
    pieces = read_pieces(file) if file.is_file() else {}
    vocabulary = state["model"]["vocab"]
    known = pieces if len(set(vocabulary) & set(pieces)) > 0.9 * len(vocabulary) else merge_scores(state)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([
        float(known.get(text, UNSEEN)) if kind == NORMAL else 0.0 for text, kind in zip(tokens, types, strict=True)
    ])  # fmt: skip
    writer.add_add_space_prefix(spm_space(state))
    if not any(kind == BYTE for kind in types):
        raise ExportError("its SentencePiece tokenizer has no byte tokens (<0x00> …), which llama.cpp needs")
    return spm_notes(state)


def _add_special(writer: GGUFWriter, tokenizer: Any, stops: tuple[int, ...]) -> list[str]:
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
    notes = [] if ids["eos"] is not None else _without_eos(ids, stops)
    bos, eos = ids["bos"], ids["eos"]
    text = list(tokenizer("a")["input_ids"])
    starts = bos is not None and text[:1] == [bos]
    ends = eos is not None and len(text) > 1 and text[-1] == eos
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(int(number))
    writer.add_add_bos_token(starts)
    writer.add_add_eos_token(ends)
    others = [number for number in dict.fromkeys(stops) if number != eos]
    if others:
        writer.add_eot_token_id(others[0])
    if len(others) > 1:
        notes.append(f"it stops at {len(others) + 1} tokens; a GGUF names two, the others must be given as stop words")
    return notes


def _without_eos(ids: dict[str, Any], stops: tuple[int, ...]) -> list[str]:
    """llama.cpp would take a token by its number for eos: the model's own stop goes there, or the pad."""
    ids["eos"] = stops[0] if stops else ids["pad"]
    if ids["eos"] is None:
        return ["the tokenizer has no eos and no pad: llama.cpp takes a token by its number for one (2 or 11)"]
    return [f"the tokenizer has no eos: token {ids['eos']} stands for it"]


def _add_template(writer: GGUFWriter, tokenizer: Any) -> list[str]:
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ["it has no chat template: llama.cpp takes its own (ChatML) when it is asked to chat"]
    if isinstance(template, dict):
        rows = [{"name": name, "template": rendered_tags(text)} for name, text in template.items()]
        writer.add_chat_template(rows)
        return []
    writer.add_chat_template(rendered_tags(template))
    return []


def _stripping(state: dict[str, Any], name: str) -> list[str]:
    """Tokens that eat the spaces beside them, which llama.cpp knows of Phi-3 alone."""
    found = [one["content"] for one in state.get("added_tokens") or () if one.get("lstrip") or one.get("rstrip")]
    if not found or (_is_phi(name) and _eats_as_phi(state)):
        return []
    return [f"{len(found)} tokens take the spaces beside them away ({found[0]}, …), which llama.cpp does not do"]


def _is_phi(name: str) -> bool:
    return any(word in name.lower() for word in ("phi-3", "phi3"))


def _eats_as_phi(state: dict[str, Any]) -> bool:
    """Whether the tokens that take the spaces after them away are those that llama.cpp takes for Phi-3's."""
    added = state.get("added_tokens") or ()
    eats = {one["content"] for one in added if one.get("rstrip")}
    return (
        not any(one.get("lstrip") for one in added)
        and eats == {one["content"] for one in added} - set(PHI_STAYS)
        and {"</s>", *PHI_STAYS} <= {*state["model"]["vocab"], *(one["content"] for one in added)}
    )
