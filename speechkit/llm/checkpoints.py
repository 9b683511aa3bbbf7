"""Which ranks wrote a checkpoint, and whether those of now can go on from it. In: a folder. Out: yes, or the reason.

Weights of an adapter are whole in every checkpoint, as peft has them. What is in pieces is the optimizer's memory:
DeepSpeed writes one file a rank, which belongs to that number of ranks; FSDP writes torch's distributed checkpoint,
whose pieces say where they lie and can be divided anew. `record` writes the number beside them, `check` reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechkit.errors import PlanError
from speechkit.llm.plan_options import STRATEGIES

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["FILE", "Written", "check", "record", "written"]

FILE = "ranks.json"


@dataclass(frozen=True)
class Written:
    """By whom a checkpoint was written."""

    strategy: str  # of plan_options.STRATEGIES
    ranks: int

    def __str__(self) -> str:
        return f"{self.strategy} on {self.ranks} rank{'s' * (self.ranks != 1)}"


def record(folder: str | PathLike[str], strategy: str, ranks: int) -> Path:
    """Write `ranks.json` into a checkpoint; the file. For one of the ranks to call."""
    if strategy not in STRATEGIES or ranks < 1:
        raise PlanError(f"{strategy!r} on {ranks} ranks: the strategy can be {', '.join(map(repr, STRATEGIES))}")
    path = Path(folder) / FILE
    path.write_text(json.dumps(asdict(Written(strategy, ranks))) + "\n", encoding="utf-8")
    return path


def written(folder: str | PathLike[str]) -> Written:
    """By whom; where no file says so, read off what lies there: DeepSpeed's and FSDP's pieces have their numbers."""
    path = Path(folder) / FILE
    if path.is_file():
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            return Written(str(given["strategy"]), int(given["ranks"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(
                f"{path} does not say which ranks wrote the checkpoint ({error}); it was changed"
            ) from error
    pieces = list(Path(folder).glob("global_step*/*zero_pp_rank_*_optim_states.pt"))
    if pieces:
        third = any(Path(folder).glob("global_step*/zero_pp_rank_*_model_states.pt"))
        return Written("zero3" if third else "zero2", len(pieces))
    shards = {path.name.split("_")[2] for path in Path(folder).glob("*/__*_*.distcp")}
    return Written("fsdp2", len(shards)) if shards else Written("one", 1)


def check(folder: str | PathLike[str], strategy: str, ranks: int) -> str:
    """How a run of `strategy` on `ranks` goes on from this checkpoint. Raises PlanError where it cannot."""
    before, now = written(folder), Written(strategy, ranks)
    if before == now:
        return f"as it was written: {now}"
    if before.strategy == now.strategy == "fsdp2":
        return f"pieces of {before.ranks} ranks are divided anew among {ranks}"
    if before.strategy != now.strategy:
        raise PlanError(
            f"{folder} was written by {before}, and this is {now}: optimizers keep their memory in other pieces. Go on "
            f"with strategy {before.strategy} on {before.ranks}, or start a new run from the weights in best/"
        )
    raise PlanError(
        f"{folder} was written by {before}, and this is {now}: DeepSpeed keeps one file of optimizer memory a rank. Go "
        f"on with {before.ranks} ranks, or start a new run from the weights in best/, or convert the pieces with "
        "`python -m deepspeed.checkpoint.ds_to_universal` and load them with load_universal in its settings"
    )
