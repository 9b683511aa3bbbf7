"""The verdict on an exported model: what was measured, what is asked for, whether it holds. Numbers only, no models."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError, OutputError

if TYPE_CHECKING:
    import os

__all__ = ["TIES", "UNDECIDED", "Parity", "Proof", "judged", "thresholds_of"]

KL_16_BITS = 0.02  # nats; mean over positions
TIES = {"F32": 2e-3, "F16": 0.02, "BF16": 0.1}  # nats; two tokens that near to each other may change places in greedy
UNDECIDED = 0.1  # nats, 52 to 48: the source itself all but tosses a coin, and the other side of it is no fault
TOP1 = {"Q8_0": 0.99, "Q6_K": 0.97, "Q5_K": 0.95, "Q4_K": 0.90, "Q4_0": 0.90}


@dataclass(frozen=True)
class Parity:
    """Of how many things how many were the same."""

    same: int
    of: int
    first: str = ""  # that was not, with both sides

    @property
    def share(self) -> float:
        return self.same / self.of if self.of else 1.0

    def __str__(self) -> str:
        return f"{self.same} of {self.of} the same" + (f"; the first that is not: {self.first}" if self.first else "")


@dataclass(frozen=True, repr=False)
class Proof:
    """An export compared with its source. `proved`: the comparison was made; `passed`: and every threshold held.

    kl is nats, of the export from the source, mean over `tokens` positions; with `top` below the vocabulary it is taken
    over the export's `top` likeliest tokens and one bucket for all others, which can only make it smaller.
    """

    file: str  # or folder, its name alone
    source: str
    quant: str
    prompts: int = 0
    tokens: int = 0  # positions whose next token was compared
    tokenizer: Parity | None = None  # token ids of texts
    template: Parity | None = None  # conversations rendered byte for byte, and their token ids
    stops: Parity | None = None  # tokens that end an answer
    top1: float | None = None  # share of positions with the same likeliest token
    ties: int = 0  # further positions, where the source has both tokens all but equally likely (UNDECIDED)
    kl: float | None = None
    max_logprob_difference: float | None = None  # nats, over all tokens that were compared
    greedy: Parity | None = None  # continuations, ties allowed as in TIES
    top: int = 0
    thresholds: dict[str, float] = field(default_factory=dict)
    proved: bool = False
    passed: bool = False
    forced: bool = False  # kept although it did not pass
    reasons: tuple[str, ...] = ()  # why it did not pass, or is not proved
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if not self.proved:
            return "unproved"
        return "passed" if self.passed else "failed, kept by force" if self.forced else "failed"

    def text(self) -> str:
        """For people: the verdict, then a line for each comparison."""
        lines = [f"{self.file} ({self.quant}) against {self.source}: {self.verdict}"]
        lines += [f"  because        {reason}" for reason in self.reasons]
        if self.top1 is not None:
            ties = f", {self.ties} more at a tie" if self.ties else ""
            lines.append(
                f"  next token     top-1 agrees on {self.top1:.1%} of {self.tokens} positions in {self.prompts} "
                f"prompts{ties}, KL {self.kl:.2g} nats, log-probabilities differ by at most "
                f"{self.max_logprob_difference:.2g}"
            )
        named = {
            "greedy": self.greedy,
            "tokenizer": self.tokenizer,
            "chat template": self.template,
            "stops": self.stops,
        }
        lines += [f"  {name:<14} {parity}" for name, parity in named.items() if parity is not None]
        asked = ", ".join(f"{name} {value:g}" for name, value in self.thresholds.items())
        lines += [f"  asked for      {asked}"] if asked else []
        return "\n".join([*lines, *(f"  note           {note}" for note in self.notes)])

    __str__ = text
    __repr__ = text

    def as_dict(self) -> dict[str, Any]:
        """JSON's types; `verdict` besides the fields."""
        return {"verdict": self.verdict, **json.loads(json.dumps(asdict(self)))}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `<file stem>.proof.json`. Raises OutputError where the folder cannot be written."""
        name = Path(self.file)
        path = Path(folder) / f"{name.stem if name.suffix == '.gguf' else name.name}.proof.json"
        try:
            path.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error}; free some space, or choose another folder"
            ) from error
        return path

    def enforce(self, force: bool = False) -> Proof:
        """This proof where it passed or could not be made; raises ExportError where it failed, unless `force`."""
        if not self.proved or self.passed:
            return self
        if force:
            return replace(self, forced=True)
        raise ExportError(
            f"{self.file} is not what {self.source} is, so that it was refused: {'; '.join(self.reasons)}. Choose a "
            "type of more bits where it is near, or force=True to keep it all the same (its proof will say so)"
        )


def thresholds_of(quant: str) -> dict[str, float]:
    """What a type must reach. greedy, top1: least share; kl: most. An unknown type has to agree as 4 bits have to."""
    if quant in TIES:
        return {"greedy": 1.0, "kl": KL_16_BITS}
    return {"top1": next((least for name, least in TOP1.items() if quant.startswith(name)), 0.90)}


def judged(proof: Proof) -> Proof:
    """With `passed` and the reasons where it did not."""
    reasons = list(proof.reasons)
    for name, parity, harm in (
        ("token ids", proof.tokenizer, "the tokenizer in the file cuts text otherwise, and answers will be nonsense"),
        ("chat template", proof.template, "the chat template in the file renders otherwise"),
        ("stop tokens", proof.stops, "answers will not end where they end in the source"),
    ):
        if parity is not None and parity.same < parity.of:
            reasons.append(f"{name}: {parity}: {harm}")
    for name, asked in proof.thresholds.items():
        found = proof.greedy.share if name == "greedy" and proof.greedy else getattr(proof, name)
        if name == "top1" and proof.top1 is not None:
            found = proof.top1 + proof.ties / max(1, proof.tokens)
        if not isinstance(found, float) or not (found <= asked if name == "kl" else found >= asked):
            what = {"greedy": "greedy continuations", "kl": "KL", "top1": "top-1 agreement"}[name]
            told = "was not measured" if not isinstance(found, float) else f"is {found:.4g}"
            more = f" ({proof.greedy.first})" if name == "greedy" and proof.greedy and proof.greedy.first else ""
            reasons.append(f"{what} {told}{more}, {proof.quant} must have {'≤' if name == 'kl' else '≥'} {asked:g}")
    return replace(proof, proved=True, passed=not reasons, reasons=tuple(reasons))
