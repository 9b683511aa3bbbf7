"""Two models' numbers beside each other: token ids, rendered conversations, log-probabilities, continuations.

In: `Facts` of the source and `Answers` of the file. Out: the fields of a `Proof`. NumPy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.export.proof_report import TIES, UNDECIDED, Parity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.export.proof_llama import Answers
    from speechkit.export.proof_source import Chat, Facts, Row

__all__ = ["Following", "chats_alike", "continuations_alike", "following", "stops_alike", "tokens_alike"]

SHOWN = 48  # characters of a text in a reason


class Following:
    """Next-token distributions, compared position by position."""

    def __init__(self) -> None:
        self.positions, self.same, self.ties, self.kl, self.difference, self.finite = 0, 0, 0, 0.0, 0.0, True

    def add(self, source: NDArray[np.float32], ids: NDArray[np.int64], found: NDArray[np.float64]) -> None:
        """source: (V,) natural log; ids, found: (n,) the export's likeliest tokens, their log-probabilities."""
        kept = source[ids].astype(np.float64)
        self.positions += 1
        self.finite &= bool(np.isfinite(found).all() and np.isfinite(kept).all())
        chosen = ids[found.argmax()]
        if chosen == source.argmax():
            self.same += 1
        elif source.max() - source[chosen] <= UNDECIDED:
            self.ties += 1
        self.difference = max(self.difference, float(np.abs(kept - found).max()))
        self.kl += _kl(kept, found, whole=len(ids) == len(source))

    @property
    def top1(self) -> float | None:
        return self.same / self.positions if self.positions else None

    @property
    def mean_kl(self) -> float | None:
        return max(0.0, self.kl / self.positions) if self.positions else None


def _kl(source: NDArray[np.float64], found: NDArray[np.float64], *, whole: bool) -> float:
    """Nats. What is not listed is one bucket on either side, which bounds the divergence from below."""
    p, q = np.exp(source), np.exp(found)
    total = float((p * (source - found)).sum())
    rest_p, rest_q = 1.0 - float(p.sum()), 1.0 - float(q.sum())
    if whole or rest_p <= 1e-7:  # float32's rounding of a sum
        return total
    return total + rest_p * float(np.log(rest_p / max(rest_q, 1e-7)))


def following(rows: Sequence[Row], answers: Answers) -> Following:
    """Of all positions that the file was asked about in time."""
    found = Following()
    for row, told in zip(rows, answers.logprobs, strict=False):
        for logp, pairs in zip(row.logp, told, strict=False):
            ids = np.array([int(one[0]) for one in pairs], dtype=np.int64)
            if len(ids) and ids.max() >= len(logp):  # a file with more tokens than the source
                inside = ids < len(logp)
                ids, pairs = ids[inside], [pair for pair, kept in zip(pairs, inside, strict=True) if kept]
            if len(ids):
                found.add(logp, ids, np.array([one[1] for one in pairs], dtype=np.float64))
    return found


def tokens_alike(facts: Facts, answers: Answers) -> Parity:
    """Token ids of the same texts."""
    same, first = 0, ""
    for (text, _), ours, theirs in zip(facts.texts, facts.tokens, answers.tokens, strict=True):
        if list(ours) == theirs:
            same += 1
        elif not first:
            first = f"{text[:SHOWN]!r} → {_apart(ours, theirs)}"
    return Parity(same, len(facts.texts), first)


def _apart(ours: Sequence[int], theirs: Sequence[int]) -> str:
    pairs = zip(ours, theirs, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    return f"{list(ours[at : at + 4])} in the source, {list(theirs[at : at + 4])} in the file, from token {at}"


def chats_alike(facts: Facts, answers: Answers) -> tuple[Parity | None, tuple[str, ...]]:
    """Conversations byte for byte and their token ids; and what there is to know besides.

    A history with tool calls is told and not judged: servers hand calls to templates in shapes of their own.
    """
    same, of, first, notes = 0, 0, "", []
    for chat, told in zip(facts.chats, answers.chats, strict=True):
        wrong, note = _chat(chat, told, facts)
        if note:
            notes.append(note)
        if chat.kind == "tool calls":
            notes += [f"a history with tool calls is rendered otherwise by llama.cpp: {wrong}"] if wrong else []
            continue
        of, same = of + 1, same + (not wrong)
        first = first or (f"({chat.kind}) {wrong}" if wrong else "")
    return (Parity(same, of, first) if of else None), tuple(dict.fromkeys(notes))


def _chat(chat: Chat, told: dict[str, Any], facts: Facts) -> tuple[str, str]:
    """What differs, and a note. llama.cpp takes a begin token off a rendered text and puts it back as a token."""
    if "error" in told:
        return f"llama.cpp cannot render it: {told['error'][:200]}", ""
    text, ids = told["text"], told["ids"]
    if facts.begins and chat.text.startswith(facts.bos) and not text.startswith(facts.bos):
        text = facts.bos + text
    if text != chat.text:
        at = next((n for n, (a, b) in enumerate(zip(chat.text, text, strict=False)) if a != b), None)
        at = min(len(chat.text), len(text)) if at is None else at
        return f"{chat.text[at : at + SHOWN]!r} in the source, {text[at : at + SHOWN]!r} in the file, at {at}", ""
    if tuple(ids) == chat.ids:
        return "", ""
    if facts.begins and not chat.text.startswith(facts.bos) and tuple(ids[1:]) == chat.ids:
        return "", f"llama.cpp puts {facts.bos} before a conversation, the source's template does not"
    if facts.stripping:
        return "", f"white space beside {facts.stripping[0]} is kept by llama.cpp, dropped by this tokenizer"
    return f"the same text, {_apart(chat.ids, ids)}", ""


def stops_alike(facts: Facts, answers: Answers) -> Parity | None:
    """Whether generation ends at each token at which the source's ends."""
    wrong = [token for token in facts.stops if not answers.stops.get(token)]
    first = f"token {wrong[0]} ends an answer of the source, not one of the file" if wrong else ""
    return Parity(len(facts.stops) - len(wrong), len(facts.stops), first) if facts.stops else None


def continuations_alike(
    rows: Sequence[Row], found: Sequence[Sequence[int]], texts: Sequence[str], quant: str
) -> tuple[Parity, int]:
    """Greedy continuations, and how many of the same ones part at a tie (TIES)."""
    same, ties, first = 0, 0, ""
    for row, ids, text in zip(rows, found, texts, strict=False):
        gap = _gap(row, ids)
        if gap is None:
            same += 1
        elif gap <= TIES.get(quant, 0.0):
            same, ties = same + 1, ties + 1
        elif not first:
            first = f"{text[:SHOWN]!r} instead of {row.text[:SHOWN]!r}, {gap:.2g} nats apart where they part"
    return Parity(same, min(len(rows), len(found)), first), ties


def _gap(row: Row, ids: Sequence[int]) -> float | None:
    """How much likelier, for the source, its own token is than the file's, where they part; None: they do not."""
    if list(row.continued) == list(ids):
        return None
    pairs = zip(row.continued, ids, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    position = None if at is None else len(row.prompt) + at - row.first
    if at is None or position is None or not 0 <= position < len(row.logp) or ids[at] >= row.logp.shape[1]:
        return float("inf")
    return float(row.logp[position, row.continued[at]] - row.logp[position, ids[at]])
