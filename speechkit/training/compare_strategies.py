"""One model, one training set, several strategies → a table of what each buys and costs. In: a configuration, examples.

Out: `StrategyTable`: error rates with intervals on every test set (the domain, and what must not be forgotten), minutes
of training and numbers that learnt. Every run is a fine-tuning run with a folder of its own, so a table that was broken
off goes on where it was. Knows no strategy by itself: `strategies` and `finetune` do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.asr.model import load_asr
from speechkit.errors import DataError
from speechkit.evaluation.compare import Comparison, compare
from speechkit.training.evaluate import evaluate
from speechkit.training.finetune import finetune
from speechkit.widgets.palette import card

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from speechkit.evaluation.errors import ErrorReport
    from speechkit.evaluation.metrics import Rate
    from speechkit.training.config import FinetuneConfig
    from speechkit.training.data import Example
    from speechkit.training.report import FinetuneResult

    Runs = Mapping[str, Mapping[str, Any]]

__all__ = ["FACTORS", "StrategyRun", "StrategyTable", "compare_strategies"]

# Learning rates relative to that of "all". The fewer numbers learn, the further each has to go; the matrices that
# adapters and LoRA add start at zero. Found on demo/en and sixty clips; with other data, search around them.
FACTORS = {"head": 20.0, "top-2": 4.0, "all": 1.0, "adapters": 6.0, "lora": 6.0}
BEFORE = "before"


@dataclass(frozen=True)
class StrategyRun:
    """One row: what was trained, and how it does on each test set. `result` is None for the model before."""

    name: str
    result: FinetuneResult | None
    reports: Mapping[str, ErrorReport] = field(repr=False)  # test set → what was heard

    def rate(self, test: str) -> Rate:
        """WER of a test set, CER where that is the first figure of its language. Raises DataError for another name."""
        return self.report(test).primary

    def report(self, test: str) -> ErrorReport:
        """Raises DataError for a test set that was not asked for."""
        if test not in self.reports:
            raise DataError(f"no test set {test!r}; there are {', '.join(map(repr, self.reports))}")
        return self.reports[test]

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text: name, a rate per test set, minutes, numbers that learnt."""
        rates = [str(report.primary) for report in self.reports.values()]
        if self.result is None:
            return (self.name, *rates, "–", "–")
        share = self.result.trainable / self.result.total
        return (self.name, *rates, f"{self.result.minutes:.1f}", f"{self.result.trainable:,} ({share:.1%})")

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {report.primary}" for name, report in self.reports.items())
        if self.result is None:
            return f"{self.name}: {rates}"
        return (
            f"{self.name}: {rates}; {self.result.trainable:,} numbers learnt in {self.result.minutes:.1f} min "
            f"({self.result.steps} steps)"
        )


@dataclass(frozen=True, repr=False)
class StrategyTable:
    """The model before, then every run in the order in which it was made."""

    runs: tuple[StrategyRun, ...]

    @property
    def before(self) -> StrategyRun:
        return self.runs[0]

    @property
    def tests(self) -> tuple[str, ...]:
        return tuple(self.before.reports)

    def __getitem__(self, name: str) -> StrategyRun:
        for run in self.runs:
            if run.name == name:
                return run
        raise KeyError(f"{name!r}; there are {', '.join(repr(run.name) for run in self.runs)}")

    def best(self, test: str) -> StrategyRun:
        """The run with the lowest rate on one test set, the model before included; of equals the earliest."""
        return min(self.runs, key=lambda run: run.rate(test).value)

    def against_before(self, name: str, test: str) -> Comparison:
        """A run against the model before on one test set, clip by clip (paired bootstrap)."""
        one, other = self.before.report(test), self[name].report(test)
        return compare(replace(one, name=self.before.name), replace(other, name=name))

    def with_run(self, run: StrategyRun) -> StrategyTable:
        """A table with one more row. Raises DataError where it was not measured on the same test sets."""
        if tuple(run.reports) != self.tests:
            raise DataError(
                f"{run.name} was measured on {', '.join(run.reports)}, the table on {', '.join(self.tests)}"
            )
        return StrategyTable((*self.runs, run))

    @property
    def head(self) -> tuple[str, ...]:
        """Titles of the columns."""
        units = ["WER" if self.before.rate(test).unit == "word" else "CER" for test in self.tests]
        rates = (f"{unit} {test}" for unit, test in zip(units, self.tests, strict=True))
        return ("strategy", *rates, "minutes", "numbers that learn")

    def __repr__(self) -> str:
        rows = [self.head, *(run.cells for run in self.runs)]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(room) if at else cell.ljust(room) for at, (cell, room) in enumerate(pairs)).rstrip()
            for pairs in (list(zip(row, wide, strict=True)) for row in rows)
        )

    def _repr_html_(self) -> str:
        head = _html_row(self.head, "th")
        body = "".join(_html_row(run.cells, "td") for run in self.runs)
        return (
            f'<section aria-label="Strategies" style="{card()}"><table><thead>{head}</thead>'
            f"<tbody>{body}</tbody></table></section>"
        )


def compare_strategies(
    config: FinetuneConfig,
    train: Sequence[Example],
    dev: Sequence[Example],
    tests: Mapping[str, Sequence[Example]],
    runs: Runs | None = None,
    *,
    on_run: Callable[[StrategyRun], Any] | None = None,
    stop: Any = None,
) -> StrategyTable:
    """Fine-tune `config.model` once per run, and measure the model before and every result on all `tests`.

    config: what the runs have in common; its folder holds one folder per run. runs: name → what differs, by the names
    of the configuration; where no strategy is named, the run's name is one. None: those of `FACTORS`, each with its
    learning rate. on_run: called with each row as it is made. stop: as in `finetune`; the rows made so far are
    returned.

    Raises DataError without a test set or with a name that is taken twice or cannot be a folder, and what `finetune`
    raises.
    """
    chosen = _configurations(config, runs)
    if not tests:
        raise DataError('there is no test set; give at least one, tests={"domain": examples}')
    made: list[StrategyRun] = []

    def add(name: str, result: FinetuneResult | None, source: Any) -> None:
        recognizer = load_asr(source, config.device)
        made.append(StrategyRun(name, result, {key: evaluate(recognizer, rows) for key, rows in tests.items()}))
        if on_run is not None:
            on_run(made[-1])

    add(BEFORE, None, config.model)
    for name, one in chosen.items():
        result = finetune(one, train, dev, stop=stop)
        if result.ending == "stopped":
            break
        if result.best is None:
            raise DataError(f"run {name} left no model: {result}")
        add(name, result, result.best)
    return StrategyTable(tuple(made))


def _configurations(config: FinetuneConfig, runs: Runs | None) -> dict[str, FinetuneConfig]:
    if runs is None:
        runs = {name: {"learning_rate": config.learning_rate * factor} for name, factor in FACTORS.items()}
    found = {}
    for name, changes in runs.items():
        if not name or name in (BEFORE, ".", "..") or any(sign in name for sign in "/\\"):
            raise DataError(f"a run is named {name!r}; a name becomes a folder, so no slashes, and not {BEFORE!r}")
        folder = str(Path(config.folder) / name)
        found[name] = config.replace(**{"strategy": name, "folder": folder, **changes})
    return found


def _html_row(cells: Sequence[str], tag: str) -> str:
    """Names to the left, figures to the right: notebooks put all of them to the right."""
    sides = ["left", *["right"] * (len(cells) - 1)]
    styled = (f'<{tag} style="text-align:{side};padding:3px 12px">' for side in sides)
    return f"<tr>{''.join(f'{start}{escape(cell)}</{tag}>' for start, cell in zip(styled, cells, strict=True))}</tr>"
