"""`speechkit llm-finetune`: a JSON file of settings, or options → a language model's run, told line by line. No torch.

Exit status: 0 the run ended as planned, or the plan was printed; 1 it diverged; 2 wrong settings, data or model; 130
stopped by Ctrl-C, which leaves a checkpoint: the same command goes on. Of several processes only the first prints.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import terminal
from speechkit.cli_training import DIVERGED, OK, STOPPED, _stop_by_signal
from speechkit.errors import DataError, PlanError

if TYPE_CHECKING:
    import argparse

    from speechkit.llm.llm_config import LlmConfig
    from speechkit.training.curve import Point

__all__ = ["add_llm_finetune"]

NAMES = (
    "train", "dev", "model", "folder", "method", "quant", "rank", "steps", "epochs", "minutes", "learning_rate",
    "batch_tokens", "max_len", "seed", "resume", "distributed",
)  # fmt: skip
DEV_SHARE, DEV_MOST = 0.1, 500  # of the training rows, where no others are named to be kept out


def add_llm_finetune(commands: Any) -> None:
    """Add the subcommand to the parsers of `speechkit`."""
    parser = commands.add_parser(
        "llm-finetune",
        help="fine-tune a language model on chats or instructions",
        description="Fine-tune a language model: adapters (lora), adapters on a 4-bit base (qlora), or every weight "
        "(full). Settings come from a JSON file (see LlmConfig; `run.json` of an earlier run is one) and from the "
        "options, which win. The same command goes on where a run was stopped.",
        epilog="Several GPUs: --plan 8 --strategy zero3 prints what each needs, and the line that starts the run.",
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="JSON object of settings")
    add("--train", metavar="FILE", help="rows: .jsonl, .json or .csv with chats, instructions or completions")
    add("--dev", metavar="FILE", help="rows that are kept out (default: a tenth of the training rows)")
    add("--model", metavar="NAME", help="a name from `speechkit models`, a Hub id or a folder (default: demo/chat)")
    add("--out", dest="folder", metavar="DIR", help="folder of the run (default: runs/llm-finetune)")
    add("--method", metavar="M", help="lora, qlora or full (default: lora)")
    add("--quant", metavar="Q", help="of the base under qlora: nf4 or int8 (default: nf4)")
    add("--rank", type=int, metavar="R", help="of the adapters (default: 16)")
    add("--steps", type=int, metavar="N", help="updates of the weights")
    add("--epochs", type=float, metavar="X", help="passes over the training rows")
    add("--minutes", type=float, metavar="M", help="time limit")
    add("--learning-rate", type=float, metavar="X", help="highest learning rate")
    add("--batch-tokens", type=int, metavar="N", help="tokens per batch: the size of a packed block")
    add("--max-len", type=int, metavar="N", help="tokens of the longest row; longer ones are left out")
    add("--seed", type=int, metavar="N", help="of order and new weights")
    add("--no-resume", dest="resume", action="store_false", default=None, help="refuse to go on from a checkpoint")
    add("--plan", type=int, metavar="N", help="print what each of N processes needs, one a GPU, and end")
    add("--strategy", metavar="S", help="of the plan: one, zero2, zero3 or fsdp2 (default: zero2 on several GPUs)")
    add("--card", metavar="C", help="of the plan: T4, L4, A100-40, A100-80, H100, H200, cpu (default: what is here)")
    add("--host", metavar="NAME", help="of the plan: the first of several machines, on which the processes meet")
    add("--nodes", type=int, default=1, metavar="N", help="of the plan: machines (default: 1)")
    add("--write", type=Path, metavar="DIR", help="of the plan: write settings and launch scripts there")
    add("--distributed", metavar="FILE", help="settings of DeepSpeed or FSDP that a plan wrote")
    add("--json", action="store_true", help="print each point and the result as JSON lines")
    parser.set_defaults(command=_finetune)


def config_of(arguments: argparse.Namespace) -> LlmConfig:
    """The settings of the file, changed by the options that were given. Raises PlanError for what cannot be."""
    import json

    from speechkit.llm.llm_config import LlmConfig

    given = {name: value for name in NAMES if (value := getattr(arguments, name)) is not None}
    if arguments.config is not None:
        return LlmConfig.load(arguments.config).replace(**given)
    if arguments.plan is not None:
        given = {"steps": 1, **given}  # how long the run is to last does not change what it needs
    return LlmConfig.from_json(json.dumps(given), "the command line")


def _finetune(arguments: argparse.Namespace) -> int:
    for name in ("strategy", "card", "host", "write"):
        if getattr(arguments, name) is not None and arguments.plan is None:
            raise PlanError(f"--{name} belongs to a plan: give --plan N, with the number of GPUs, too")
    config = config_of(arguments)
    if arguments.plan is not None:
        return _plan(arguments, config)
    if not config.train:
        raise DataError('no training rows are named: give --train FILE, or "train" in the JSON file')
    first = int(os.environ.get("RANK", "0")) == 0
    printer = _Printer(arguments.json, first)
    train, dev = _data(config, printer)
    from speechkit.llm.quiet import quiet

    with quiet():
        from speechkit.llm.finetune import finetune
        from speechkit.llm.ranks import leave

    printer.note(f"opening {config.model}")
    with _stop_by_signal() as stop:
        result = finetune(config, train, dev, on_point=printer if first else None, stop=stop)
    printer.result(result)
    leave()
    if result.ending == "stopped":
        return STOPPED
    return DIVERGED if result.ending == "diverged" else OK


def _plan(arguments: argparse.Namespace, config: LlmConfig) -> int:
    """What every process needs, whether it fits, and the line that starts them."""
    from speechkit.llm.plan_options import PlanOptions
    from speechkit.llm.quiet import quiet

    ranks = arguments.plan
    strategy = arguments.strategy or ("one" if ranks == 1 else "zero2")
    more = {"strategy": strategy, "ranks": ranks, "nodes": arguments.nodes, "card": arguments.card}
    options = PlanOptions.of(config, **more)
    with quiet():
        from speechkit.llm.plan import plan

        found = plan(config.model, options)
    print(found)
    if options.sharded:
        _launch(arguments, found)
    return OK


def _launch(arguments: argparse.Namespace, found: Any) -> None:
    """Write the settings that the processes share and say how they are started."""
    from speechkit.llm.distributed import write_configs
    from speechkit.llm.launch_lines import Launch, launch_line

    place = arguments.write or Path("launch")
    settings = place / ("fsdp.json" if found.options.strategy == "fsdp2" else "deepspeed.json")
    file = str(arguments.config or "run.json")
    command = ("-m", "speechkit", "llm-finetune", "--config", file, "--distributed", str(settings))
    if arguments.write is not None:
        files = write_configs(found, place, command)
        print(f"\nwritten: {', '.join(str(path) for path in files.values())}")
    else:
        print("\n--write launch writes the settings that these processes share, and a script for SLURM; then")
    launch = Launch.of(found.options, command, head=arguments.host or "localhost")
    print(f"start it with\n  {launch_line(launch)}")


def _data(config: LlmConfig, printer: _Printer) -> tuple[Any, Any]:
    """The rows to train on and those kept out, which are split off where none are named."""
    from speechkit.llm.rows import Rows, read_rows

    train = read_rows(config.train)
    if config.dev:
        dev = read_rows(config.dev)
        printer.note(f"training rows: {train}")
        printer.note(f"kept-out rows: {dev}")
        return train, dev
    printer.note(f"training rows: {train}")
    kept, out = _split(list(train), config.seed)
    printer.note(f"kept out: {len(out)} of {len(train)} rows, drawn by chance (seed {config.seed}); --dev names others")
    return Rows(tuple(kept), train.broken, train.source), out


def _split(rows: list[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """A tenth apart, at most DEV_MOST; rows that ask the same stay together, or they would be judged as learnt."""
    import random

    asked = [_question(row) for row in rows]
    different = sorted(set(asked))
    if len(different) < 2:
        raise DataError("all rows ask the same, so none can be kept out: name other rows with --dev")
    random.Random(seed).shuffle(different)
    apart = set(different[: max(1, min(DEV_MOST, round(DEV_SHARE * len(different))))])
    parts: tuple[list[Any], list[Any]] = ([], [])
    for row, question in zip(rows, asked, strict=True):
        parts[question in apart].append(row)
    return parts


def _question(row: Any) -> str:
    """What a row asks: all that is said before the last answer."""
    said = [f"{one.role}: {one.content}" for one in row.messages]
    return "\n".join(said[:-1]) if len(said) > 1 else row.prompt or row.text or "\n".join(said)


class _Printer:
    """Points as lines: for readers, or for programs."""

    def __init__(self, as_json: bool, first: bool = True) -> None:
        self.json, self.first = as_json, first
        self._before: Point | None = None

    def __call__(self, point: Point) -> None:
        if self.json:
            self._row({name: value for name in point.__slots__ if (value := getattr(point, name)) is not None})
            return
        parts = [f"step {point.step:6d}", terminal.clock(point.elapsed_s)]
        parts += [f"loss {point.loss:.4f}" if point.loss is not None else " " * 11]
        parts += [f"kept-out loss {point.dev_loss:.4f}" if point.dev_loss is not None else " " * 20]
        parts += [f"{self._speed(point):>15}"]
        parts += [f"{point.memory_mib:7,.0f} MiB"] if point.memory_mib is not None else []
        parts += [f"learning rate {point.learning_rate:.1e}"] if point.learning_rate is not None else []
        print("  ".join(parts).rstrip(), flush=True)
        self._before = point

    def _speed(self, point: Point) -> str:
        """Useful tokens per second since the point before."""
        before = self._before
        if before is None or point.tokens is None or before.tokens is None or point.elapsed_s <= before.elapsed_s:
            return ""
        return f"{(point.tokens - before.tokens) / (point.elapsed_s - before.elapsed_s):,.0f} tokens/s"

    def note(self, text: str) -> None:
        if self.first:
            print(f"speechkit: {text}", file=sys.stderr, flush=True)

    def result(self, result: Any) -> None:
        if not self.first:
            return
        if self.json:
            self._row(result.to_dict())
        else:
            print(result, flush=True)

    def _row(self, row: dict[str, Any]) -> None:
        import json

        print(json.dumps(row, ensure_ascii=False, default=str), flush=True)
