"""`speechkit finetune`: a JSON file of settings, or options → a fine-tuning run, told line by line. Knows no torch.

Exit status: 0 the run ended as planned; 1 it diverged; 2 wrong settings, data or model; 130 stopped by Ctrl-C, which
leaves a checkpoint: the same command goes on. Under torchrun only the first process prints.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import terminal
from speechkit.errors import DataError, SpeechkitError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from speechkit.training.config import FinetuneConfig
    from speechkit.training.curve import Point
    from speechkit.training.data import Example
    from speechkit.training.data_report import DataReport

__all__ = ["add_finetune"]

OK, DIVERGED, STOPPED = 0, 1, 130
DEV_SHARE = 0.1  # of the training data, where no development set is named


def add_finetune(commands: Any) -> None:
    """Add the subcommand to the parsers of `speechkit`."""
    parser = commands.add_parser(
        "finetune",
        help="fine-tune a model on recordings with their texts",
        description="Fine-tune a CTC model. Settings come from a JSON file (see FinetuneConfig; `run.json` of an "
        "earlier run is one) and from the options, which win. The same command goes on where a run was stopped.",
        epilog="Several GPUs: torchrun --nproc-per-node 4 -m speechkit finetune --config run.json",
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="JSON object of settings")
    add("--train", metavar="PATH", help="folder of audio with texts, CSV, TSV, JSONL or a Common Voice folder")
    add("--dev", metavar="PATH", help="development set (default: a tenth of the training data, by speaker)")
    add("--model", metavar="NAME", help="a name from `speechkit models`, a Hub id or a folder (default: demo/en)")
    add("--out", dest="folder", metavar="DIR", help="folder of the run (default: runs/finetune)")
    add("--strategy", metavar="S", help="head, top-4, all, adapters, lora, distil (default: all)")
    add("--language", metavar="CODE", help="language of the texts")
    add("--steps", type=int, metavar="N", help="updates of the weights")
    add("--epochs", type=float, metavar="X", help="passes over the training data")
    add("--minutes", type=float, metavar="M", help="time limit")
    add("--learning-rate", type=float, metavar="X", help="highest learning rate")
    add("--batch-s", type=float, metavar="S", help="seconds of audio per batch, padding included")
    add("--seed", type=int, metavar="N", help="of order, augmentation and new weights")
    add("--no-resume", dest="resume", action="store_false", default=None, help="refuse to go on from a checkpoint")
    add("--json", action="store_true", help="print each point and the result as JSON lines")
    parser.set_defaults(command=_finetune)


def config_of(arguments: argparse.Namespace) -> FinetuneConfig:
    """The settings of the file, changed by the options that were given. Raises PlanError for what cannot be."""
    import json

    from speechkit.training.config import FinetuneConfig

    names = (
        "train dev model folder strategy language steps epochs minutes learning_rate batch_s seed resume".split()
    )  # fmt: skip
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.config is not None:
        return FinetuneConfig.load(arguments.config).replace(**given)
    return FinetuneConfig.from_json(json.dumps(given), "the command line")


def _finetune(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    if not config.train:
        raise DataError('no training data is named: give --train PATH, or "train" in the JSON file')
    train, dev, note = _data(config)
    from speechkit.training.finetune import finetune

    first = int(os.environ.get("RANK", "0")) == 0
    printer = _Printer(arguments.json)
    if first and note:
        printer.note(note)
    with _stop_by_signal() as stop:
        result = finetune(config, train, dev, on_data=printer.data, on_point=printer if first else None, stop=stop)
    if first:
        printer.result(result)
    if result.ending == "stopped":
        return STOPPED
    return DIVERGED if result.ending == "diverged" else OK


def _data(config: FinetuneConfig) -> tuple[Any, Any, str]:
    from speechkit.training.data import read_examples

    train = read_examples(config.train, language=config.language)
    if config.dev:
        return train, read_examples(config.dev, language=config.language), ""
    from speechkit.training.check import check_examples
    from speechkit.training.split import split_examples

    good, bad = _measured(train)
    if bad and len(good) < 2:
        report = check_examples(train, min_s=config.min_s, max_s=config.max_s)  # raises where nothing can be used
        raise DataError(f"one clip cannot be both trained on and judged by. {report}")
    parts = split_examples(good, dev=DEV_SHARE, test=0.0, seed=config.seed)
    note = f"development set: {len(parts.dev)} of {len(good)} clips; {parts.reason}"
    return [*parts.train, *bad], parts.dev, note


def _measured(rows: list[Example]) -> tuple[list[Example], list[Example]]:
    """Rows with their length, and rows without text or sound to read: those go to the check, which says why."""
    good, bad = [], []
    for row in rows:
        if row.fault or not row.text.strip():
            bad.append(row)
            continue
        try:
            good.append(replace(row, seconds=row.length_s()))
        except SpeechkitError:
            bad.append(row)
    return good, bad


class _Printer:
    """Points as lines: for readers, or for programs."""

    def __init__(self, as_json: bool) -> None:
        self.json = as_json

    def __call__(self, point: Point) -> None:
        if self.json:
            self._row({name: value for name in point.__slots__ if (value := getattr(point, name)) is not None})
            return
        parts = [f"step {point.step:6d}", terminal.clock(point.elapsed_s)]
        parts += [f"loss {point.loss:.4f}"] if point.loss is not None else []
        parts += [f"learning rate {point.learning_rate:.1e}"] if point.learning_rate is not None else []
        parts += [f"WER {point.wer:.1%}"] if point.wer is not None else []
        parts += [f"CER {point.cer:.1%}"] if point.cer is not None else []
        print("  ".join(parts), flush=True)

    def note(self, text: str) -> None:
        print(f"speechkit: {text}", file=sys.stderr, flush=True)

    def data(self, name: str, report: DataReport) -> None:
        """On the error stream in both forms: what is left out, and why."""
        self.note(f"{name} data: {report}")

    def result(self, result: Any) -> None:
        if self.json:
            self._row(result.to_dict())
        else:
            print(result, flush=True)

    def _row(self, row: dict[str, Any]) -> None:
        import json

        print(json.dumps(row, ensure_ascii=False, default=str), flush=True)


class _Stop:
    """Set by the first Ctrl-C (or by SIGTERM, which clusters send before they take a machine back)."""

    requested = False


@contextmanager
def _stop_by_signal() -> Iterator[_Stop]:
    """The first signal ends the run after the update at hand; a second one ends it at once."""
    stop = _Stop()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: Any) -> None:
        stop.requested = True
        print("speechkit: stopping after this step; once more stops at once", file=sys.stderr, flush=True)
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
