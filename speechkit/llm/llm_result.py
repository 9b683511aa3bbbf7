"""How the run of a language model ended: a frozen result that prints well, as JSON, and as a model card. No torch.

In: figures. Out: text. No path of the machine goes into the card: cards are published.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError
from speechkit.training.curve import Curve

if TYPE_CHECKING:
    from os import PathLike

    from speechkit.llm.llm_config import LlmConfig

__all__ = ["ENDINGS", "LlmResult", "llm_card"]

ENDINGS = {
    "steps": "all steps were made",
    "minutes": "the time was up",
    "stopped": "it was asked to stop; the same call goes on from here",
    "patience": "the kept-out loss had not fallen for as long as it may",
    "diverged": "the loss or the gradient was no number any more",
}
KINDS = {"lora": "LoRA", "qlora": "QLoRA", "full": "all weights"}


@dataclass(frozen=True)
class LlmResult:
    """What came of a run; `load_llm(result.best)` opens the model.

    Losses are nats per labelled token; `before` is the model that the run started from. `model` and `tokenizer` are
    those that were trained, with the best weights in; None where the result was read from its folder.
    """

    folder: Path
    best: Path | None  # adapter in peft's format, or a whole model; None: nothing fit to keep
    method: str
    ending: str  # a key of ENDINGS
    steps: int  # made
    best_step: int
    loss: float | None  # of the last steps, on what was trained on
    dev_loss: float | None  # of the best step, on rows kept out
    dev_loss_before: float | None
    trainable: int  # numbers that learnt
    total: int  # numbers in the model
    minutes: float  # of training and evaluation, over all sittings
    tokens: int  # trained on, repeats counted, padding not
    fill: float  # share of the tokens computed that was no padding
    memory_mib: float | None  # most that was in use
    memory_of: str  # what that is the memory of
    precision: str  # and why
    train_rows: int
    train_tokens: int
    dev_rows: int
    left_out: int  # rows that could not be used
    notes: tuple[str, ...] = ()
    curve: Curve = field(default_factory=Curve, repr=False, compare=False)
    model: Any = field(default=None, repr=False, compare=False)
    tokenizer: Any = field(default=None, repr=False, compare=False)

    @property
    def tokens_per_s(self) -> float | None:
        """Useful tokens per second of the whole run, evaluations included."""
        return self.tokens / self.minutes / 60 if self.minutes else None

    def __str__(self) -> str:
        share = self.trainable / self.total if self.total else 0.0
        kind = KINDS.get(self.method, self.method)
        speed = f", {self.tokens_per_s:,.0f} useful tokens/s" if self.tokens_per_s else ""
        lines = [
            self._losses(),
            f"{kind}: {self.trainable:,} of {self.total:,} numbers learnt ({share:.1%}), {self.precision}",
            f"{self.steps} steps in {self.minutes:.1f} min{speed}: {self.tokens:,} tokens of {self.train_rows:,} rows, "
            f"{self.fill:.1%} of what was computed",
            *self._memory(),
            f"ended at step {self.steps}: {ENDINGS[self.ending]}; best at step {self.best_step}",
            f"{'adapter' if self.method != 'full' else 'model'}: {self.best}" if self.best else "no model was kept",
        ]
        return "\n".join([*lines, *(f"note: {line}" for line in self.notes)])

    def _losses(self) -> str:
        if self.dev_loss is None:
            return "no row was kept out" + ("" if self.loss is None else f"; loss {self.loss:.3f} on the training rows")
        before = "" if self.dev_loss_before is None else f", from {self.dev_loss_before:.3f}"
        worth = f" (perplexity {math.exp(self.dev_loss):.3g})" if self.dev_loss < 20 else ""
        return f"kept-out loss {self.dev_loss:.3f}{worth}{before}, on {self.dev_rows:,} rows"

    def _memory(self) -> list[str]:
        if self.memory_mib is None:
            return []
        return [f"peak {self.memory_of}: {self.memory_mib:,.0f} MiB"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the curve, which has a file of its own, and without what was trained."""
        row = {one.name: getattr(self, one.name) for one in fields(self)}
        row = {name: value for name, value in row.items() if name not in ("curve", "model", "tokenizer")}
        return row | {"folder": str(self.folder), "best": str(self.best) if self.best else None}

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> LlmResult:
        """The result of the run in `folder`, wherever that lies now. Raises DataError where no run has ended."""
        path = Path(folder)
        try:
            row = json.loads((path / "result.json").read_text(encoding="utf-8"))
            row |= {"folder": path, "best": path / "best" if row["best"] else None, "notes": tuple(row["notes"])}
            return cls(**row, curve=Curve.load(path / "curve.jsonl"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} holds no finished run ({error}); run finetune(config, rows) first") from error


def llm_card(result: LlmResult, config: LlmConfig, origin: dict[str, Any]) -> str:
    """Markdown with the Hub's front matter; every figure in it was measured by the run."""
    base, published = str(origin["model"]), bool(origin.get("published"))
    adapter = result.method != "full"
    name = result.folder.resolve().name  # "." has none
    head = ["---", f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation"]
    head += [f"base_model: {base}"] if published else []
    head += ["tags:", "- lora" if adapter else "- fine-tuned", "---"]
    rows = [
        f"# {name}: {base} fine-tuned with speechkit",
        "",
        f"{KINDS[result.method]}: {result.trainable:,} of {result.total:,} numbers learnt.",
        *([f"{origin['adapter']}."] if origin.get("adapter") else []),
        "",
        "## How well it does",
        "",
        *_measured(result),
        "",
        "## What it was trained on",
        "",
        f"- {result.train_rows:,} rows, {result.train_tokens:,} tokens; kept out: {result.dev_rows:,} rows",
        f"- left out because they could not be used: {result.left_out:,} rows",
        *([f"- source: `{Path(config.train).name}`"] if config.train else []),
        "",
        f"{result.steps} steps in {result.minutes:.1f} minutes, {result.tokens:,} tokens, {result.precision};",
        f"{config.batch_tokens:,} tokens per batch, learning rate {config.learning_rate:g}.",
        *(f"- {note}" for note in result.notes),
        "",
        "## Use it",
        "",
        "    from speechkit import load_llm",
        f'    model, tokenizer = load_llm("{name}/best")',
        "",
        "## Repeat it",
        "",
        "    speechkit llm-finetune --config run.json",
        "",
        "`run.json` holds every setting, `curve.jsonl` every point of the run, `origin.json` data and versions:",
        "",
        *(f"- {package} {number}" for package, number in origin["versions"].items()),
    ]
    return "\n".join([*head, *rows]) + "\n"


def _measured(result: LlmResult) -> list[str]:
    if result.dev_loss is None:
        return ["No rows were kept out, so nothing was measured on rows that it has not seen."]
    rows = [
        f"Nats per answered token on {result.dev_rows:,} rows kept out. The best step was chosen on these very rows,",
        "so expect a little less on others.",
        "",
        "| | loss | perplexity |",
        "|---|---|---|",
    ]
    told = [] if result.dev_loss_before is None else [("before", result.dev_loss_before)]
    told += [(f"this model (step {result.best_step})", result.dev_loss)]
    return [*rows, *(f"| {what} | {loss:.4f} | {math.exp(min(loss, 100.0)):.4g} |" for what, loss in told)]
