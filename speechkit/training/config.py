"""Everything that decides a fine-tuning run, as one frozen object that can be written, read, changed and compared.

In: keyword arguments, or JSON. Out: a `FinetuneConfig` that was checked. Knows no torch: the command line reads it
before anything heavy is loaded.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from dataclasses import replace as replaced
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from speechkit.errors import PlanError
from speechkit.training.settings import check_names, read_settings

__all__ = ["CHANGEABLE", "PRECISIONS", "STRATEGIES", "VOCABULARIES", "FinetuneConfig"]

STRATEGIES = ("head", "top-K", "all", "adapters", "lora", "distil")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
VOCABULARIES = ("auto", "keep", "extend", "new")

# What may differ when a run is resumed: how long it lasts, what it reports, and how it fits this machine. The learning
# rate follows `steps`, `epochs` and `minutes`, so after a change of those the curve is no longer that of one sitting.
CHANGEABLE = frozenset({
    "steps", "epochs", "minutes", "eval_every", "log_every", "patience", "keep", "workers", "cache_mb", "checkpointing",
    "resume", "folder", "train", "dev",
})  # fmt: skip

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,), "dict": (dict,), "None": (type(None),),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of one run. Seconds carry `_s`; shares and rates are fractions (0.1 is 10 %).

    At least one of `steps`, `epochs` and `minutes` is needed; the first that is reached ends the run.
    Raises PlanError, naming the setting, for a value of the wrong type or out of range.
    """

    model: str = "demo/en"  # what to start from: a name of `speechkit models`, a Hub id or a folder
    folder: str = "runs/finetune"  # where everything is written; made if absent
    train: str = ""  # where the examples come from: the command line reads these two, `finetune` is handed them
    dev: str = ""  # development set; the command line splits it off `train` where it is not named
    language: str | None = None  # ISO 639-1; decides casing and normalisation; None: the model's own
    strategy: str = "all"  # what is trained: "head", "top-4" (any number), "all", "adapters", "lora", "distil"
    strategy_options: dict[str, Any] = field(default_factory=dict)  # of that strategy, e.g. {"rank": 8} for "lora"
    vocabulary: str = "auto"  # "keep" the model's, "extend" it by new characters, "new"; "auto" keeps or extends
    steps: int | None = None  # updates of the weights
    epochs: float | None = None  # passes over the examples
    minutes: float | None = None  # of training, over all sittings, evaluations included
    learning_rate: float = 3e-4  # highest, of everything but the head
    head_learning_rate: float | None = None  # highest, of the CTC head; None: as the rest
    layer_decay: float = 1.0  # each layer nearer to the sound learns this much slower; 1: all alike
    warmup: float = 0.1  # share of the run in which the learning rate rises from nothing
    decay: float = 0.5  # share of the run, at its end, in which it falls to nothing
    weight_decay: float = 0.01  # of matrices; norms and biases have none
    max_grad_norm: float = 1.0  # longer gradients are shortened to this
    batch_s: float = 24.0  # seconds of audio per batch and process, padding included; a longer clip goes alone
    accumulation: int = 1  # batches per process whose gradients are added up before an update
    checkpointing: bool = False  # compute activations twice instead of keeping them: less memory, a third more time
    precision: str = "auto"  # "float32", "bfloat16", "float16"; CTC itself is always float32
    device: str = "auto"  # "cpu", "cuda", …
    spec_augment: float | None = None  # share of the frames to mask (SpecAugment); None: as the model's config says
    layerdrop: float = 0.0  # probability with which a layer is left out of a step
    augmentation: dict[str, Any] | None = None  # of the waveform: options of `training.augment.Augmentation`
    min_s: float = 0.1  # shorter clips are left out
    max_s: float = 30.0  # longer clips are left out
    eval_every: int = 0  # updates between evaluations, each of which leaves a checkpoint; 0: ten times over the run
    patience: int = 0  # evaluations without a better WER after which the run ends; 0: never
    log_every: int = 10  # updates between points of the curve
    keep: int = 2  # checkpoints to go on from that are kept; the best model is kept beside them
    seed: int = 0  # of the order of the examples, the augmentation and new weights
    workers: int | None = None  # processes that prepare batches; None: chosen
    cache_mb: int = 1024  # decoded audio stays in memory when it needs no more than this
    resume: bool = True  # go on from the last checkpoint in `folder`, if there is one

    def __post_init__(self) -> None:
        for name in ("model", "folder", "train", "dev"):
            if isinstance(getattr(self, name), PathLike):
                object.__setattr__(self, name, fspath(getattr(self, name)))
        _check_types(self)
        _check_length(self)
        _check_numbers(self)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("vocabulary", self.vocabulary, VOCABULARIES)
        name = re.sub(r"^top-[1-9]\d*$", "top-K", self.strategy)
        if name not in STRATEGIES or self.strategy == "top-K":
            raise PlanError(
                f"strategy is {self.strategy!r}; it can be {', '.join(repr(known) for known in STRATEGIES)}, with a "
                "number of layers for K, as in 'top-4'"
            )

    def replace(self, **changes: Any) -> FinetuneConfig:
        """The same settings but for `changes`. Raises PlanError for a name that is no setting."""
        check_names(changes, _names(), "FinetuneConfig.replace")
        return replaced(self, **changes)

    def to_json(self) -> str:
        """All settings as indented JSON; the inverse of :meth:`from_json`."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the configuration") -> FinetuneConfig:
        """JSON object → settings; what it does not name keeps its default.

        Raises PlanError for text that is no JSON object, a name that is no setting (naming the nearest that is), or a
        value that a setting cannot have. `where` opens those messages.
        """
        return cls(**read_settings(text, _names(), where))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> FinetuneConfig:
        """A JSON file, for example `run.json` of an earlier run → settings. Raises PlanError as :meth:`from_json`."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"{path} cannot be read ({error}); give a JSON file of settings") from error
        return cls.from_json(text, str(path))

    def differences(self, other: FinetuneConfig) -> tuple[str, ...]:
        """What keeps a run of `other` from going on as this one: `learning_rate is 0.001, was 0.0003`, one each."""
        return tuple(
            f"{one.name} is {getattr(self, one.name)!r}, was {getattr(other, one.name)!r}"
            for one in fields(self)
            if one.name not in CHANGEABLE and getattr(self, one.name) != getattr(other, one.name)
        )


def _names() -> list[str]:
    return [one.name for one in fields(FinetuneConfig)]


def _check_types(config: FinetuneConfig) -> None:
    for one in fields(config):
        value = getattr(config, one.name)
        names = [name.strip().partition("[")[0] for name in str(one.type).split("|")]
        # JSON writes 24.0 as 24; that True is an int is Python's history
        kinds = tuple(kind for name in names for kind in _KINDS[name])
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("null" if name == "None" else name for name in names)
            raise PlanError(f"{one.name} is {value!r}, which is of the wrong type; it should be {wanted}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PlanError(f"{name} is {value!r}; it can be {', '.join(repr(known) for known in allowed)}")


def _check_length(config: FinetuneConfig) -> None:
    limits = {"steps": config.steps, "epochs": config.epochs, "minutes": config.minutes}
    if all(limit is None for limit in limits.values()):
        raise PlanError("the run has no end: give steps, epochs or minutes, e.g. FinetuneConfig(minutes=5)")
    for name, limit in limits.items():
        if limit is not None and not limit > 0:
            raise PlanError(f"{name} is {limit}; it should be more than 0")


def _check_numbers(config: FinetuneConfig) -> None:
    lowest = {
        "accumulation": 1, "log_every": 1, "keep": 1, "eval_every": 0, "patience": 0, "cache_mb": 0, "weight_decay": 0,
        "min_s": 0, "seed": 0,
    }  # fmt: skip
    for name, least in lowest.items():
        if getattr(config, name) < least:
            raise PlanError(f"{name} is {getattr(config, name)}; it should be {least} or more")
    for name in ("learning_rate", "batch_s", "max_grad_norm"):
        if not 0 < getattr(config, name) < math.inf:
            raise PlanError(f"{name} is {getattr(config, name)}; it should be more than 0, and finite")
    for name in ("warmup", "decay", "spec_augment", "layerdrop"):
        share = getattr(config, name)
        if share is not None and not 0 <= share <= 1:
            raise PlanError(f"{name} is {share}, a share: it should lie between 0 and 1")
    if config.warmup + config.decay > 1:
        raise PlanError(f"warmup {config.warmup} and decay {config.decay} are more than the whole run together")
    if config.max_s <= config.min_s:
        raise PlanError(f"max_s is {config.max_s}, min_s is {config.min_s}: no clip would be left")
    if not 0 < config.layer_decay <= 1:
        raise PlanError(f"layer_decay is {config.layer_decay}; it should be more than 0 and at most 1")
    if config.head_learning_rate is not None and not config.head_learning_rate > 0:
        raise PlanError(f"head_learning_rate is {config.head_learning_rate}; it should be more than 0, or None")
    if config.workers is not None and config.workers < 0:
        raise PlanError(f"workers is {config.workers}; it should be 0 or more, or None")
