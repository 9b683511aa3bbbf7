"""Examples → training, development and test set. In: examples, shares, a seed. Out: `Split`. Knows no model.

A voice that was trained on is easier to recognise than any new one, so no speaker stands on two sides where speakers
are known; how it was done, and where it could not be, is said in `reason`. The same examples and seed give the same
sides, in any order of the rows.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from speechkit.errors import DataError
from speechkit.text import normalize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechkit.training.data import Example

__all__ = ["Split", "split_examples"]

OFF = 0.5  # relative; a side that misses its share by more is mentioned


@dataclass(frozen=True, repr=False)
class Split:
    """Three sets without a row in common; `dev` or `test` is empty where its share is 0."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    reason: str  # how it was split, and why so

    def sides(self) -> Iterator[tuple[str, tuple[Example, ...]]]:
        """Name and rows of each side, the training set first."""
        yield from (("train", self.train), ("dev", self.dev), ("test", self.test))

    def __repr__(self) -> str:
        return "\n".join([*(_line(name, rows) for name, rows in self.sides() if rows), self.reason])


def split_examples(
    examples: Sequence[Example],
    *,
    dev: float = 0.1,
    test: float = 0.1,
    by: Literal["auto", "speaker", "utterance"] = "auto",
    seed: int = 0,
    disjoint_text: bool = False,
) -> Split:
    """Shares of audio time, not of rows; every side with a share gets one clip at least.

    by: "speaker" keeps every speaker on one side and refuses where that cannot be; "utterance" ignores speakers; "auto"
    is by speaker where at least as many are known as there are sides, else by utterance. Rows without a speaker, among
    others with one, train: whoever speaks there may not be tested. disjoint_text: no sentence (normalised) on two sides
    either, which a corpus of prompts read by everybody does not allow together with speakers.

    Raises DataError: shares that leave nothing, fewer clips (speakers, texts) than sides, speakers not known.
    """
    rows = list(examples)
    shares = {"test": test, "dev": dev}
    wanted = [name for name, share in shares.items() if share]
    _check(shares, by, len(rows))
    voices, reason = _voices(rows, by, len(wanted) + 1)
    bound = {at for at, voice in enumerate(voices) if not voice} if any(voices) else set()
    groups = [group for group in _groups(rows, voices, disjoint_text) if bound.isdisjoint(group)]
    if len(groups) + bool(bound) <= len(wanted):
        raise DataError(_too_joined(len(groups) + bool(bound), len(wanted) + 1, any(voices)))
    lengths = [row.length_s() for row in rows]
    total = sum(lengths)
    dealt = _dealt(groups, lengths, {name: shares[name] * total for name in wanted}, random.Random(seed), bool(bound))
    notes = [reason, *(["no text on two sides"] if disjoint_text else [])]
    notes += [f"{len(bound)} rows without a speaker train"] if bound else []
    notes += _misses({name: sum(lengths[at] for at in dealt[name]) / total for name in wanted}, shares)
    held = {at for found in dealt.values() for at in found}
    sides = {name: tuple(rows[at] for at in sorted(found)) for name, found in dealt.items()}
    train = tuple(row for at, row in enumerate(rows) if at not in held)
    return Split(train, sides.get("dev", ()), sides.get("test", ()), "; ".join(notes))


def _check(shares: dict[str, float], by: str, rows: int) -> None:
    if min(shares.values()) < 0 or sum(shares.values()) >= 1 or by not in ("auto", "speaker", "utterance"):
        raise DataError(
            f"dev is {shares['dev']}, test {shares['test']}, by {by!r}; the shares are 0 or more and leave something "
            "to train on, by is 'auto', 'speaker' or 'utterance'"
        )
    sides = ["train", *(name for name, share in shares.items() if share)]
    if rows < len(sides):
        raise DataError(
            f"{rows} clip{'s' * (rows != 1)} cannot fill {len(sides)} sides ({', '.join(sides)}): give more clips, or "
            "dev=0 or test=0"
        )


def _voices(rows: Sequence[Example], by: str, sides: int) -> tuple[list[str], str]:
    """The speaker of each row, "" where unknown or not to be looked at, and how that was decided."""
    nobody = [""] * len(rows)
    if by == "utterance":
        return nobody, "by utterance, as asked: speakers may stand on two sides"
    counts = Counter(row.speaker for row in rows)
    silent = counts.pop("", 0)
    why = ""
    if not counts:
        why = "no row names a speaker"
    elif len(counts) == 1:
        why = f"only one speaker is known, {next(iter(counts))!r}"
    elif len(counts) + bool(silent) < sides:
        why = f"{len(counts)} speakers cannot fill {sides} sides"
    elif silent > len(rows) / 2:
        why = f"{silent} of {len(rows)} rows name no speaker"
    if not why:
        return [row.speaker for row in rows], f"by speaker: {len(counts)} speakers, none on two sides"
    if by == "speaker":
        fewer = "ask for fewer sides (test=0)" if len(counts) > 1 else "name their column when reading (speaker='…')"
        raise DataError(
            f"{why}, so the sides cannot be kept apart by speaker: {fewer}, or split by='utterance' and expect new "
            "voices to do worse"
        )
    return nobody, f"by utterance, since {why}: a voice may stand on two sides, and new voices will do worse"


def _groups(rows: Sequence[Example], voices: Sequence[str], disjoint_text: bool) -> list[list[int]]:
    """Rows that must stay together: one voice, and with `disjoint_text` one text; in an order of their own."""
    leader = list(range(len(rows)))

    def top(at: int) -> int:
        while leader[at] != at:
            leader[at] = leader[leader[at]]
            at = leader[at]
        return at

    first: dict[tuple[str, str], int] = {}
    for at, (row, voice) in enumerate(zip(rows, voices, strict=True)):
        ties = [("voice", voice)] if voice else []
        ties += [("text", normalize(row.text, row.language))] if disjoint_text else []
        for tie in ties:
            leader[top(at)] = top(first.setdefault(tie, at))
    found: dict[int, list[int]] = {}
    for at in range(len(rows)):
        found.setdefault(top(at), []).append(at)
    keys = [(row.speaker, row.text, row.name) for row in rows]
    return sorted(found.values(), key=lambda group: min(keys[at] for at in group))


def _dealt(
    groups: list[list[int]], lengths: Sequence[float], targets: dict[str, float], draw: random.Random, filled: bool
) -> dict[str, list[int]]:
    """Side → row numbers. `filled`: rows that must train are there, so every group may be held out."""
    draw.shuffle(groups)
    sizes = [sum(lengths[at] for at in group) for group in groups]
    left = list(range(len(groups)))
    dealt: dict[str, list[int]] = {}
    for after, (side, target) in zip(reversed(range(len(targets))), targets.items(), strict=True):
        spare = len(left) - after - (not filled)  # groups that this side may take at most
        taken: list[int] = []
        total = 0.0
        for group in left:
            if len(taken) < spare and abs(total + sizes[group] - target) < abs(total - target):
                taken.append(group)
                total += sizes[group]
        taken = taken or [min(left, key=lambda group: sizes[group])]
        left = [group for group in left if group not in set(taken)]
        dealt[side] = [at for group in taken for at in groups[group]]
    return dealt


def _misses(held: dict[str, float], shares: dict[str, float]) -> list[str]:
    """What to say of sides that could not be cut to their share of the audio."""
    off = [name for name, share in held.items() if abs(share - shares[name]) > OFF * shares[name]]
    return [
        f"{name} holds {held[name]:.0%} of the audio, not {shares[name]:.0%}: its parts are that long" for name in off
    ]


def _too_joined(parts: int, sides: int, spoken: bool) -> str:
    by = "speakers and texts" if spoken else "texts"
    return (
        f"shared {by} join the clips into {parts} part{'s' * (parts != 1)}, too few for {sides} sides: leave out "
        "disjoint_text, or " + ("split by='utterance'" if spoken else "ask for fewer sides (test=0)")
    )


def _line(name: str, rows: Sequence[Example]) -> str:
    seconds = sum(row.length_s() for row in rows)
    time = f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
    voices = len({row.speaker for row in rows} - {""})
    return f"{name:<5}  {len(rows):>7,} clips  {time:>10}  {voices or '?':>5} speakers"
