"""Rows → token rows with labels, and an account of them. In: rows, a tokenizer, a length. Out: `TokenReport`.

    report = tokenize(read_rows("train.jsonl"), tokenizer, max_len=2048)
    print(report)      # counts, the share of tokens with loss, what was left out and why
    report.rows        # → speechkit.llm.packing.pack

Labels are the ids themselves where the assistant speaks, the token that ends its turn included, and −100 elsewhere;
the first label is −100 always, for no token comes before it. Models shift labels themselves. Which tokens are the
assistant's says `chat`; this file knows lengths and the account.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError
from speechkit.llm.chat import TURNS, Encoder
from speechkit.llm.row_shapes import Fault, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.llm.chat import Sample

__all__ = ["IGNORED", "TOO_LONG", "LeftOut", "TokenReport", "Tokens", "tokenize"]

IGNORED = -100  # the label that losses pass over
ENDLESS = 2**31  # tokenizers that know no length say 10**30
TOO_LONG = ("leave out", "cut")
SHOWN = 3  # rows named for each reason


@dataclass(frozen=True, slots=True)
class Tokens:
    """One document, ready to train on."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]  # as many; IGNORED where nothing is learnt
    where: str = ""  # line or row that it came from

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels):
            raise DataError(f"{self.where or 'a row'} has {len(self.input_ids)} tokens and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def learnt(self) -> int:
        """Tokens with loss."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not trained on."""

    where: str
    reason: str


@dataclass(frozen=True)
class TokenReport:
    """Token rows, and what became of the others."""

    rows: tuple[Tokens, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    max_len: int  # tokens that a row may have at most
    given: int  # rows that came in
    cut: int = 0  # rows that lost their end

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    @property
    def learnt(self) -> int:
        """Tokens with loss."""
        return sum(row.learnt for row in self.rows)

    @property
    def share(self) -> float:
        """Of all tokens those with loss, 0 to 1."""
        return self.learnt / self.tokens if self.rows else 0.0

    @property
    def longest(self) -> int:
        return max(map(len, self.rows), default=0)

    def __str__(self) -> str:
        lengths = sorted(map(len, self.rows))
        most = f" of {self.max_len:,}" if self.max_len < ENDLESS else ""
        lines = [
            f"{len(self.rows):,} token rows from {self.given:,}: {self.tokens:,} tokens, {self.learnt:,} with loss "
            f"({self.share:.0%}); median {lengths[len(lengths) // 2]:,}, longest {self.longest:,}{most}"
        ]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out):,}")
            lines += [f"  {line}" for line in _by_reason(self.left_out)]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    __repr__ = __str__


def tokenize(
    rows: Sequence[Row], tokenizer: Any, max_len: int | None = None, *, too_long: str = "leave out"
) -> TokenReport:
    """Chat and completion rows as tokens with labels on what the assistant says.

    max_len: tokens of a row at most; None: what the tokenizer says that its model takes. too_long: "leave out" rows
    above it, or "cut" their end, which loses the end of the last answer.

    Raises DataError: no rows, no chat template, settings that cannot be, and where not one row is left to train on
    (labels all masked, all too long …), with the reasons counted.
    """
    if too_long not in TOO_LONG:
        raise DataError(f"too_long is {too_long!r}; it can be {' or '.join(map(repr, TOO_LONG))}")
    if max_len is None:
        max_len = int(tokenizer.model_max_length or ENDLESS)
    if isinstance(max_len, bool) or not isinstance(max_len, int) or max_len < 2:
        raise DataError(f"max_len is {max_len!r}; a row has two tokens or more, one to see and one to learn")
    if not rows:
        raise DataError("there are no rows to tokenise")
    work = _Work(Encoder(tokenizer), max_len, cut=too_long == "cut")
    for number, row in enumerate(rows):
        if not isinstance(row, Row):
            raise DataError(f"row {number} is a {type(row).__name__}, no Row: read_rows makes them, of lists too")
        work.add(row, row.where or f"row {number}")
    if not work.rows:
        reasons = "; ".join(_by_reason(work.left_out))
        raise DataError(f"none of {len(rows):,} rows can be trained on. Left out: {reasons}")
    return TokenReport(tuple(work.rows), tuple(work.left_out), tuple(work.notes(rows)), max_len, len(rows), work.cuts)


class _Work:
    """What has been made of the rows so far."""

    def __init__(self, encoder: Encoder, max_len: int, *, cut: bool) -> None:
        self.encoder, self.max_len, self.cut = encoder, max_len, cut
        self.rows: list[Tokens] = []
        self.left_out: list[LeftOut] = []
        self.ways: Counter[str] = Counter()
        self.cuts = self.turns = self.endless = 0

    def add(self, row: Row, where: str) -> None:
        try:
            found = self.encoder.encode(row)
        except Fault as fault:
            self.left_out.append(LeftOut(where, str(fault)))
            return
        self.ways[found.way] += 1
        self.turns += len(found.samples) if found.way == TURNS else 0
        for number, sample in enumerate(found.samples, 1):
            self._sample(sample, f"{where}, answer {number}" if len(found.samples) > 1 else where)

    def _sample(self, sample: Sample, where: str) -> None:
        ids, learnt = sample.input_ids, sample.learnt
        if len(ids) > self.max_len and not self.cut:
            self.left_out.append(LeftOut(where, f"longer than max_len {self.max_len:,}"))
            return
        self.cuts += len(ids) > self.max_len
        ids, learnt = ids[: self.max_len], (False, *learnt[1 : self.max_len])
        if not any(learnt):
            cut = f" within the first {self.max_len:,}" if len(sample.input_ids) > self.max_len else ""
            self.left_out.append(LeftOut(where, f"labels all masked: no token of the assistant{cut}"))
            return
        ends = [n for n, flag in enumerate(learnt) if flag and not (n + 1 < len(learnt) and learnt[n + 1])]
        self.endless += any(ids[n] not in self.encoder.stops for n in ends) and len(sample.input_ids) <= self.max_len
        labels = tuple(token if flag else IGNORED for token, flag in zip(ids, learnt, strict=True))
        self.rows.append(Tokens(ids, labels, where))

    def notes(self, rows: Sequence[Row]) -> list[str]:
        found = [f"answers found by {way}: {count:,} rows" for way, count in self.ways.items()]
        if self.ways[TURNS]:
            found.append(
                f"the template writes earlier turns otherwise than the last: {self.ways[TURNS]:,} rows became "
                f"{self.turns:,}, one for each answer"
            )
        if self.endless:
            found.append(
                f"{self.endless:,} rows have an answer without a stop token: the model does not learn to end there "
                f"(speechkit.llm.template_lint.lint(tokenizer) says why)"
            )
        if self.cuts:
            found.append(f"{self.cuts:,} rows were cut to {self.max_len:,} tokens and end without a stop token")
        if broken := getattr(rows, "broken", ()):
            found.append(f"{len(broken):,} more were broken when they were read")
        return found


def _by_reason(left_out: Sequence[LeftOut]) -> list[str]:
    """ "longer than max_len 512: 3 (line 4, line 9, …)", the most frequent reason first."""
    places: dict[str, list[str]] = {}
    for one in left_out:
        places.setdefault(one.reason, []).append(one.where)
    ordered = sorted(places.items(), key=lambda item: -len(item[1]))
    return [
        f"{reason}: {len(found):,} ({', '.join(found[:SHOWN])}{', …' if len(found) > SHOWN else ''})"
        for reason, found in ordered
    ]
