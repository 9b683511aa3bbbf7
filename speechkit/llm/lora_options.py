"""What an adapter is to be: rank, strength, where it goes. One frozen object, checked; knows neither torch nor peft.

In: keyword arguments. Out: a `LoraOptions` whose combination can work, or a PlanError that names one that can. The
update of a weight W (N, K) is scale · B A with A (R, K) and B (N, R) (Hu et al. 2021, arXiv:2106.09685).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from typing import Any

from speechkit.errors import PlanError

__all__ = ["INITS", "PARTS", "LoraOptions"]

PARTS = ("text", "vision", "both")
INITS = ("default", "gaussian", "random")
MOVES_BASE = (
    "pissa",
    "olora",
    "loftq",
    "corda",
    "eva",
    "lora_ga",
    "mica",
)  # of peft's; each needs more than an adapter


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Settings of one adapter. Raises PlanError, naming the setting, for what cannot work."""

    rank: int = 16  # R, the width of the update
    alpha: float = 32.0  # the update is multiplied by alpha / rank, with `rslora` by alpha / √rank
    dropout: float = 0.0  # share of inputs of the update that are zeroed in training; 0 leaves the fused kernel on
    rslora: bool = False  # rank-stabilised scale (Kalajdzievski 2023, arXiv:2312.03732): worth it from rank 64 on
    dora: bool = False  # magnitude and direction apart (Liu et al. 2024, arXiv:2402.09353); no fused kernel
    targets: tuple[str, ...] = ("auto",)  # "auto": the family's; "all-linear"; or names of layers, as "q_proj"
    part: str = "text"  # of a model that sees: "text", "vision" (tower and projector), "both"
    init: str = "default"  # B zero and A "default" (Kaiming) or "gaussian"; "random": B too, for tests
    experts: bool = False  # adapt the weights of experts too, which are one 3-D tensor for all; dropout must be 0
    also_train: tuple[str, ...] = ()  # modules that are trained whole and saved beside the adapter, as "lm_head"

    def __post_init__(self) -> None:
        for name in ("targets", "also_train"):
            value = getattr(self, name)
            if not isinstance(value, str | list | tuple | set | frozenset):
                raise PlanError(f"{name} is {value!r}; it should be a name of layers, such as 'q_proj', or several")
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        _check_types(self)
        _check_numbers(self)
        _check_words(self)
        if self.experts and (self.dora or self.dropout):
            what = "dora" if self.dora else f"dropout {self.dropout}"
            raise PlanError(
                f"experts=True does not go with {what}: peft adapts a tensor of experts by its sum with the update, "
                f"nothing in between; leave experts or {what.split(' ')[0]} out"
            )

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def replace(self, **changes: Any) -> LoraOptions:
        """The same but for `changes`, checked again."""
        return replaced(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `LoraOptions(**options.as_dict())` is the same again."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        kind = "DoRA" if self.dora else "LoRA"
        scale = f"alpha {self.alpha:g}{' / √rank' if self.rslora else ''}"
        more = [f"dropout {self.dropout:g}"] * bool(self.dropout) + ["experts"] * self.experts
        more += [f"{', '.join(self.also_train)} whole"] * bool(self.also_train)
        told = {"auto": "the layers that its family is adapted on", "all-linear": "all linear layers"}
        where = ", ".join(told.get(one, one) for one in self.targets)
        where += f" ({self.part})" if self.part != "text" else ""
        return f"{kind} of rank {self.rank}, {scale}, on {where}" + "".join(f", {one}" for one in more)


def _check_types(options: LoraOptions) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "rank": (int,), "alpha": (int, float), "dropout": (int, float), "rslora": (bool,), "dora": (bool,),
        "part": (str,), "init": (str,), "experts": (bool,),
    }  # fmt: skip
    for name, allowed in kinds.items():
        value = getattr(options, name)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            wanted = "a number" if float in allowed else f"of type {allowed[0].__name__}"
            raise PlanError(f"{name} is {value!r}; it should be {wanted}")
    for name in ("targets", "also_train"):
        if broken := [value for value in getattr(options, name) if not isinstance(value, str) or not value]:
            raise PlanError(f"{name} holds {broken[0]!r}; it should hold names of layers, such as 'q_proj'")


def _check_numbers(options: LoraOptions) -> None:
    if options.rank < 1:
        raise PlanError(f"rank is {options.rank}; it should be 1 or more, usually 8 to 64")
    if not 0 < options.alpha < math.inf:
        raise PlanError(f"alpha is {options.alpha}; it should be more than 0, usually once or twice the rank")
    if not 0 <= options.dropout < 1:
        raise PlanError(f"dropout is {options.dropout}, a share: it should be 0 or more and less than 1")


def _check_words(options: LoraOptions) -> None:
    if options.part not in PARTS:
        raise PlanError(f"part is {options.part!r}; it can be {', '.join(map(repr, PARTS))}")
    if options.init.partition("_")[0] in MOVES_BASE or options.init in MOVES_BASE:
        raise PlanError(
            f"init is {options.init!r}, which changes the base's own weights or needs data: its adapter alone, put on "
            f"the base again, would be another model. It can be {', '.join(map(repr, INITS))}"
        )
    if options.init not in INITS:
        raise PlanError(f"init is {options.init!r}; it can be {', '.join(map(repr, INITS))}")
    if not options.targets:
        raise PlanError("targets is empty, so that nothing would learn; give 'auto', 'all-linear' or names of layers")
    for word in ("auto", "all-linear"):
        if word in options.targets and len(options.targets) > 1:
            raise PlanError(f"targets is {options.targets}: {word!r} stands alone; leave it or the names out")
