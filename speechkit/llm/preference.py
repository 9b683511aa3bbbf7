"""Training by preference through trl: DPO on pairs of answers, GRPO on a reward that a Python function gives.

In: rows, settings, for GRPO a function. Out: a `PreferenceResult`. Direct preference optimisation: Rafailov et al.
2023, arXiv:2305.18290; group relative policy optimisation: Shao et al. 2024, arXiv:2402.03300. Prompts are rendered
here, with their tools, so that the template writes them as it does in use.

One process and one sitting: neither goes on from a checkpoint, the model is written when the run has ended. A run
takes as long as its answers take to write; for more, trl's own scripts with a server for generation are the place.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from speechkit import extras
from speechkit.errors import DataError, OutputError, PlanError
from speechkit.llm.quiet import quiet
from speechkit.training.curve import Curve, Point
from speechkit.training.process import import_notes_off, random_state_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speechkit.llm.base import Base
    from speechkit.llm.preference_config import PreferenceConfig
    from speechkit.llm.rows import Row

__all__ = ["PreferenceResult", "train_dpo", "train_grpo"]

SCORES = {"dpo": "rewards/margins", "grpo": "reward"}  # trl's names of what should rise


@dataclass(frozen=True)
class PreferenceResult:
    """What came of a run. `before` and `after` are means over the first and the last fifth of its points."""

    folder: Path
    best: Path  # adapter in peft's format, or a whole model, after the last step
    kind: str  # "dpo" or "grpo"
    steps: int
    before: float  # DPO: margin of the better answer's reward; GRPO: mean reward
    after: float
    trainable: int
    total: int
    minutes: float
    rows: int
    notes: tuple[str, ...] = ()
    curve: Curve = field(default_factory=Curve, repr=False, compare=False)
    model: Any = field(default=None, repr=False, compare=False)
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        what = "margin between the answers" if self.kind == "dpo" else "mean reward"
        lines = [
            f"{what} {self.after:.3f}, from {self.before:.3f}",
            f"{self.kind.upper()}: {self.trainable:,} of {self.total:,} numbers learnt from {self.rows:,} rows, "
            f"{self.steps} steps in {self.minutes:.1f} min",
            f"model: {self.best}",
        ]
        return "\n".join([*lines, *(f"note: {line}" for line in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the curve and without what was trained."""
        row = {one.name: getattr(self, one.name) for one in fields(self)}
        row = {name: value for name, value in row.items() if name not in ("curve", "model", "tokenizer")}
        return row | {"folder": str(self.folder), "best": str(self.best)}


def train_dpo(
    config: PreferenceConfig,
    rows: Any,
    *,
    model: Any = None,
    tokenizer: Any = None,
    on_point: Callable[[Point], None] | None = None,
    stop: Any = None,
) -> PreferenceResult:
    """Make the chosen answers likelier than the rejected ones, held near the model before by `beta`.

    rows: preference rows, or what `read_rows` makes them from. The other arguments are as `finetune` has them; a
    point's `reward` is the margin between the answers. Raises DataError where no row is a pair that fits.
    """
    with import_notes_off(), quiet(), random_state_kept():
        run = _Run("dpo", config, _rows(rows, "preference"), (model, tokenizer))
        pairs = _pairs(run)
        from datasets import Dataset
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        class Trainer(DPOTrainer):
            """Takes the tokens that were made here."""

            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset

        beta = 0.1 if config.beta is None else config.beta
        made = DPOConfig(**run.settings(), beta=beta, max_length=None, per_device_train_batch_size=config.rows)
        return run.go(on_point, stop, lambda watch: Trainer(
            model=run.base.model, args=made, train_dataset=Dataset.from_list(pairs),
            processing_class=run.base.tokenizer, callbacks=[watch],
        ))  # fmt: skip


def train_grpo(
    config: PreferenceConfig,
    prompts: Any,
    reward: Callable[[Row, str], float],
    *,
    model: Any = None,
    tokenizer: Any = None,
    on_point: Callable[[Point], None] | None = None,
    stop: Any = None,
) -> PreferenceResult:
    """Let the model answer each prompt several times and make the answers likelier that `reward` finds better.

    prompts: prompt rows, or what `read_rows(…, kind="prompt")` makes them from. reward: called with the row (its
    messages, its tools, its further columns in `extra`) and one answer, without special tokens; a number, higher is
    better. The other arguments are as `finetune` has them; a point's `reward` is the mean over the answers.
    Raises DataError where there is no prompt or the reward is no number; what `reward` raises itself passes.
    """
    if not callable(reward):
        raise PlanError(f"reward is a {type(reward).__name__}; give a function of a row and an answer → number")
    with import_notes_off(), quiet(), random_state_kept():
        run = _Run("grpo", config, _rows(prompts, "prompt"), (model, tokenizer))
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        asked = [{"prompt": _rendered(run.base.tokenizer, row), "place": place} for place, row in enumerate(run.rows)]

        def judged(completions: list[str], place: list[int], **_: Any) -> list[float]:
            return [_number(reward(run.rows[at], text), at) for at, text in zip(place, completions, strict=True)]

        made = GRPOConfig(
            **run.settings(), beta=config.beta or 0.0, num_generations=config.generations,
            per_device_train_batch_size=config.rows * config.generations, temperature=config.temperature,
            max_completion_length=config.max_new_tokens,
        )  # fmt: skip
        return run.go(on_point, stop, lambda watch: GRPOTrainer(
            model=run.base.model, reward_funcs=cast("Any", judged), args=made, train_dataset=Dataset.from_list(asked),
            processing_class=run.base.tokenizer, callbacks=[watch],
        ))  # fmt: skip


class _Run:
    """What both kinds have in common."""

    def __init__(self, kind: str, config: PreferenceConfig, rows: Sequence[Row], given: tuple[Any, Any]) -> None:
        extras.require("trl", extra="llm", purpose=f"{kind.upper()} training")
        from transformers import set_seed

        from speechkit.device import choose_device
        from speechkit.llm.base import make_learn, open_base

        self.kind, self.config, self.rows = kind, config, tuple(rows)
        self.device = choose_device(config.device).value
        self.folder = Path(config.folder).expanduser()
        if (self.folder / "result.json").is_file():
            raise PlanError(
                f"{self.folder} holds a finished run; name another folder, or remove this one to start over"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            config.save(self.folder / "run.json")
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written ({error}); name another folder") from error
        set_seed(config.seed)
        self.base: Base = make_learn(open_base(config.as_llm(), self.device, *given), config.as_llm())
        self.notes = list(self.base.notes)

    def settings(self) -> dict[str, Any]:
        """Those of trl's settings that both kinds have."""
        config, on_cpu = self.config, self.device == "cpu"
        return {
            "output_dir": str(self.folder / "trl"), "max_steps": config.steps, "seed": config.seed,
            "gradient_accumulation_steps": config.accumulation, "gradient_checkpointing": False,
            "learning_rate": config.learning_rate, "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": math.ceil(config.warmup * config.steps), "max_grad_norm": config.max_grad_norm,
            "bf16": self.base.precision.value == "bfloat16", "fp16": self.base.precision.value == "float16",
            "use_cpu": on_cpu, "dataloader_pin_memory": not on_cpu, "logging_steps": config.log_every,
            "logging_nan_inf_filter": False, "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        }  # fmt: skip

    def go(self, tell: Callable[[Point], None] | None, stop: Any, make: Callable[[Any], Any]) -> PreferenceResult:
        from transformers import PrinterCallback

        from speechkit.llm.base import mode_kept
        from speechkit.llm.four_bits import differentiable
        from speechkit.llm.preference_watch import PreferenceWatch

        model, start = self.base.model, time.perf_counter()
        kinds = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
        watch = PreferenceWatch(SCORES[self.kind], self.device, tell, stop)
        with mode_kept(model), differentiable(model):
            trainer = make(watch)
            trainer.remove_callback(PrinterCallback)
            for name, weight in model.named_parameters():  # trl makes them bfloat16, where small updates are lost
                if name in kinds:
                    weight.data = weight.data.to(kinds[name])
            trainer.train()
            if "ref" in getattr(model, "peft_config", {}):
                model.delete_adapter("ref")  # trl's copy of the adapter as it was
        return self._written(watch, trainer.state.global_step, (time.perf_counter() - start) / 60)

    def _written(self, watch: Any, steps: int, minutes: float) -> PreferenceResult:
        from speechkit.training.storage import writing

        model, best = self.base.model, self.folder / "best"
        counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
        scores = [point.reward for point in watch.points if point.reward is not None]
        part = max(1, len(scores) // 5)
        mean = [sum(few) / max(1, len(few)) for few in (scores[:part], scores[-part:])]
        curve = Curve(tuple(watch.points), self.config.steps, self.folder.name)
        result = PreferenceResult(
            self.folder, best, self.kind, steps, mean[0], mean[1], sum(n for n, learns in counts if learns),
            sum(n for n, _ in counts), minutes, len(self.rows), tuple(self.notes), curve, model, self.base.tokenizer,
        )  # fmt: skip
        with writing(best, lambda: ""):
            model.save_pretrained(best)
            self.base.tokenizer.save_pretrained(best)
            curve.save(self.folder / "curve.jsonl")
            text = json.dumps(result.to_dict(), ensure_ascii=False, indent=2)
            (self.folder / "result.json").write_text(text + "\n", encoding="utf-8")
        return result


def _rows(given: Any, kind: str) -> tuple[Row, ...]:
    from speechkit.llm.rows import Row, read_rows

    ours = isinstance(given, (list, tuple)) and given and all(isinstance(row, Row) for row in given)
    rows = tuple(given) if ours else tuple(read_rows(given, kind=kind))
    wrong = next((row for row in rows if row.kind != kind), None)
    if wrong is not None:
        raise DataError(f"{wrong.where or 'a row'} is a {wrong.kind} row, and these should be {kind} rows")
    return rows


def _rendered(tokenizer: Any, row: Row) -> str:
    """The prompt as the template writes it; what the tokenizer itself puts before every text is left to it."""
    from speechkit.llm.chat import render

    text = render(tokenizer, row.messages, row.tools, generate=True)
    begin = tokenizer.bos_token
    adds = bool(begin) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text[len(begin) :] if adds and text.startswith(begin) else text


def _pairs(run: _Run) -> list[dict[str, list[int]]]:
    """Tokens of prompt, chosen and rejected answer; what is longer than the model takes is left out."""
    from speechkit.llm.chat import render

    tokenizer, found = run.base.tokenizer, []
    longest = min(run.config.max_len or run.base.longest, run.base.longest)
    for row in run.rows:
        texts = [render(tokenizer, row.messages, row.tools, generate=True)]
        texts += [render(tokenizer, (*row.messages, *answer), row.tools) for answer in (row.chosen, row.rejected)]
        asked, chosen, rejected = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        same = min(_common(asked, chosen), _common(asked, rejected))
        if max(len(chosen), len(rejected)) <= longest and chosen[same:] != rejected[same:]:
            parts = {"prompt_ids": asked[:same], "chosen_ids": chosen[same:], "rejected_ids": rejected[same:]}
            found.append(parts)
    if not found:
        raise DataError(f"none of {len(run.rows)} pairs can be used: all are longer than {longest} tokens, or alike")
    if len(found) < len(run.rows):
        run.notes.append(f"left out: {len(run.rows) - len(found)} pairs longer than {longest} tokens, or alike")
    return found


def _common(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _number(value: Any, place: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"the reward of an answer to row {place} is {value!r}; it should be a number") from error
    if not math.isfinite(number):
        raise DataError(f"the reward of an answer to row {place} is {number}; it should be finite")
    return number
