"""SentencePiece's vocabularies: pieces, scores and types from tokenizer.model, or scores from the order of merges.

In: a tokenizer.model, or what `tokenizers` saves. Out: a score for each token. Format: sentencepiece_model.proto of
google/sentencepiece, of which the pieces alone are read; its package is not needed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["merge_scores", "merges_of", "read_pieces", "spm_notes", "spm_space"]

UNSEEN = -1e6  # of a token that no merge makes: it is never preferred


def read_pieces(path: Path) -> dict[str, float]:
    """piece → score. Raises ModelError for a file that is no SentencePiece model."""
    found: dict[str, float] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                parts = dict(_fields(value))
                score = parts.get(2, b"\0\0\0\0")
                if isinstance(parts.get(1), bytes) and isinstance(score, bytes):
                    found[bytes(parts[1]).decode("utf-8")] = struct.unpack("<f", score)[0]  # type: ignore[arg-type]
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path} is no SentencePiece model: {error}") from error
    if not found:
        raise ModelError(f"{path} is no SentencePiece model: it has no pieces")
    return found


def merges_of(state: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges as pairs; `tokenizers` writes them as pairs or as one string with a space."""
    found = state["model"].get("merges") or []
    return [tuple(one) if isinstance(one, list) else tuple(one.split(" ", 1)) for one in found]  # type: ignore[misc]


def merge_scores(state: dict[str, Any]) -> dict[str, float]:
    """token → score that makes llama.cpp merge in the order of the merges: earlier is higher."""
    found: dict[str, float] = {}
    for left, right in merges_of(state):
        found.setdefault(left + right, -float(len(found)))
    return found


def spm_space(state: dict[str, Any]) -> bool:
    """Whether a space is put before the text."""
    kinds = (state.get("normalizer"), state.get("pre_tokenizer"))
    for one in (leaf for kind in kinds for leaf in _leaves(kind)):
        if one.get("type") == "Prepend" or (one.get("type") == "Metaspace" and _prepends(one)):
            return True
    return False


def spm_notes(state: dict[str, Any]) -> list[str]:
    """Where llama.cpp's SentencePiece is known to part from this tokenizer."""
    notes = []
    cuts = [one for one in _leaves(state.get("pre_tokenizer")) if one.get("type") == "Metaspace" and _prepends(one)]
    if cuts:
        notes.append("llama.cpp puts a space before text that begins with one already, this tokenizer does not")
    if any(one.get("prepend_scheme") == "first" for one in cuts):
        notes.append("llama.cpp puts a space before text after a special token too, this tokenizer at the start alone")
    vocabulary, merges = state["model"]["vocab"], set(merges_of(state))
    made = {left + right for left, right in merges}
    for token in made:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair not in merges and pair[0] in vocabulary and pair[1] in vocabulary:
                notes.append(
                    f"its merges are not those of SentencePiece ({pair[0]!r} and {pair[1]!r} are never joined, and "
                    "llama.cpp joins them): some texts get other tokens"
                )
                return notes
    return notes


def _prepends(one: dict[str, Any]) -> bool:
    scheme = one.get("prepend_scheme")
    return scheme in ("always", "first") if scheme else bool(one.get("add_prefix_space"))


def _leaves(one: dict[str, Any] | None) -> list[dict[str, Any]]:
    if not one:
        return []
    inner = one.get("normalizers") or one.get("pretokenizers")
    return [leaf for each in inner for leaf in _leaves(each)] if inner else [one]


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field, value) of a protocol buffer's message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + length > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
