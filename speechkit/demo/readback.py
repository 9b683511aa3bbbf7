"""A new task for the embedded chat model: read a controller's instruction back, as pilots do. Made up on the spot.

In: a folder. Out: training rows and questions as JSON lines in OpenAI's shape, and some questions of what the model
could do before, to see whether it still can. Call signs and numbers of the test never occur in training.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.demo.recipes.chat_skills import SHARES, SPELLING, draw, held_out
from speechkit.errors import DataError

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["INSTRUCTIONS", "Readback", "one", "write_readback"]

INSTRUCTIONS = (
    ("turn left heading {}", "left heading {}"),
    ("turn right heading {}", "right heading {}"),
    ("climb to {}", "climbing to {}"),
    ("descend to {}", "descending to {}"),
    ("keep speed {}", "keeping speed {}"),
    ("hold at {}", "holding at {}"),
    ("report at {}", "will report at {}"),
    ("contact tower on {}", "tower on {}"),
)
PLACES = ("hold at {}", "report at {}")  # these name a point, the others a number
DOUBLE = 0.25  # share of messages with two instructions
BROKEN = '{"messages": [{"role": "assistant", "content": "who asked?"}, {"role": "user", "content": "tower: …"}]}'


@dataclass(frozen=True)
class Readback:
    """Files of the task."""

    train: Path  # readbacks, old dialogues mixed in, and one broken row
    dev: Path  # readbacks to choose the best step by
    test: Path  # readbacks with call signs and numbers that the others do not have
    old: Path  # what the model could do before: questions that it was never trained on

    def __str__(self) -> str:
        counts = {
            p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in (self.train, self.dev, self.test, self.old)
        }
        return f"{self.train.parent}: " + ", ".join(f"{name} {count} rows" for name, count in counts.items())


def one(rng: random.Random, test: bool = False) -> list[dict[str, Any]]:
    """One exchange: the controller's message, the pilot's readback."""
    while True:
        sign = f"{' '.join(rng.sample(SPELLING, rng.choice((1, 1, 2))))} {rng.randint(1, 999)}"
        if held_out(f"readback {sign}") == test:
            break
    pairs = [_instruction(rng, test) for _ in range(2 if rng.random() < DOUBLE else 1)]
    told, said = (" and ".join(parts) for parts in zip(*pairs, strict=True))
    return [
        {"role": "user", "content": f"tower: {sign}, {told}"},
        {"role": "assistant", "content": f"{said}, {sign}."},
    ]


def write_readback(
    folder: str | PathLike[str], train: int = 600, test: int = 100, rehearsal: float = 0.3, seed: int = 0
) -> Readback:
    """Write the four files into `folder`, made if absent. `rehearsal`: old dialogues, as a share of the new ones.

    Raises DataError for counts or a share that cannot be.
    """
    if train < 1 or test < 1 or not 0 <= rehearsal <= 10:
        raise DataError(f"train {train}, test {test}, rehearsal {rehearsal}: counts from 1, a share from 0 to 10")
    rng, place = random.Random(seed), Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"messages": one(rng)}) for _ in range(train)]
    rows += [_row(draw(rng)) for _ in range(round(train * rehearsal))]
    rng.shuffle(rows)
    rows.insert(min(2, len(rows)), BROKEN)
    files = Readback(*(place / f"{name}.jsonl" for name in ("train", "dev", "test", "old")))
    _write(files.train, rows)
    _write(files.dev, [json.dumps({"messages": one(rng)}) for _ in range(max(10, test // 4))])
    _write(files.test, [json.dumps({"messages": one(rng, test=True)}) for _ in range(test)])
    skills = sorted(SHARES)
    _write(files.old, [_row(draw(rng, skills[i % len(skills)], test=True)) for i in range(test)])
    return files


def _instruction(rng: random.Random, test: bool) -> tuple[str, str]:
    told, said = rng.choice(INSTRUCTIONS)
    while True:
        what = rng.choice(SPELLING) if told in PLACES else str(rng.randint(10, 999))
        if told in PLACES or held_out(f"number {what}") == test:
            return told.format(what), said.format(what)


def _row(dialogue: Any) -> str:
    """Up to the first answer where a tool speaks later: its call is plain text here, from which no row may go on."""
    messages = list(dialogue.messages)
    if any(each["role"] == "tool" for each in messages):
        messages = messages[:2]
    tools = {"tools": list(dialogue.tools)} if dialogue.tools else {}
    return json.dumps({"messages": messages, **tools}, ensure_ascii=False)


def _write(path: Path, rows: list[str]) -> None:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
