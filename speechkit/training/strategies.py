"""Which weights of a CTC model learn, and how fast. In: a loaded model and a strategy's name. Out: `Applied`.

The model is changed in place ("head", "top-K", "all", "adapters") or wrapped ("lora", "distil"); `Applied.model` is
what to train, `Applied.plain()` what to save. Knows no data, no loop and no files.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from speechkit.asr.masks import MaskedGroupNorm
from speechkit.errors import PlanError
from speechkit.training.anatomy import Anatomy, core_of, depth_of, part_sizes
from speechkit.training.config import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STRATEGIES", "Applied", "StrategyOptions", "apply_strategy", "enable_checkpointing", "parameter_groups"]

ROUNDING = 0.01  # of what the updates change
_PREFIXES = {"adapters": ("adapter_",), "lora": ("lora_",), "distil": ("student_", "distil_")}
_TOP = re.compile(r"top-(\d+)")
_NO_DECAY = re.compile(r"(\bbias|norm\.weight|norm\.bias|masked_spec_embed|original0)$")


@dataclass(frozen=True)
class StrategyOptions:
    """Settings of the strategies that have any; the others do not look at them."""

    freeze_features: bool = True  # "all", "distil": the front-end does not learn (wav2vec 2.0, section 4.3)
    adapter_dim: int = 64  # "adapters": width of the bottleneck in each layer
    lora_rank: int = 16
    lora_alpha: float = 32.0  # the update is scaled by alpha / rank
    lora_dropout: float = 0.05
    lora_targets: str = "attention"  # or "ffn", or "attention+ffn"
    student_layers: int = 0  # "distil": layers of the student; 0: half of the teacher's
    student_width: int = 0  # "distil": hidden size of the student; 0: the teacher's
    temperature: float = 2.0  # "distil"
    distil_weight: float = 0.5  # "distil": share of the teacher in the loss, the rest is CTC

    @classmethod
    def of(cls, strategy: str, given: Mapping[str, Any]) -> StrategyOptions:
        """Options by name, with or without the strategy's prefix: {"rank": 8} for "lora" is `lora_rank`.

        Raises PlanError for a name that there is not, or a value of another type.
        """
        known = [option.name for option in fields(cls)]
        named = {}
        for name, value in given.items():
            longer = [f"{prefix}{name}" for prefix in _PREFIXES.get(strategy, ())]
            full = next((option for option in (name, *longer) if option in known), None)
            if full is None:
                near = get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise PlanError(f"strategies have no option {name!r}; {hint}they have {', '.join(known)}")
            kind = type(getattr(cls, full))
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise PlanError(f"{full} is {value!r}; it should be of type {kind.__name__}, as {getattr(cls, full)!r}")
            named[full] = value
        return cls(**named)


@dataclass(frozen=True)
class Applied:
    """What a strategy made of a model; printing it gives one line of a table."""

    strategy: str
    model: Any = field(repr=False)  # to train
    trainable: int  # numbers that learn
    total: int  # numbers in the model that is trained; a teacher is not counted
    groups: tuple[tuple[str, int], ...]  # parts that learn, with their sizes
    names: tuple[str, ...] = field(repr=False)  # of the parameters that learn
    reason: str

    @property
    def share(self) -> float:
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {size:,}" for part, size in self.groups)
        return f"{self.strategy:<9} {self.trainable:>12,} of {self.total:>12,} learn ({self.share:6.1%})  {parts}"

    def plain(self) -> Any:
        """The transformers model to save: the student of a pair; of LoRA a merged copy; otherwise `model` itself.

        Warns where the merged copy answers otherwise than the updates do by more than rounding.
        """
        if self.strategy == "lora":
            from speechkit.training.lora import merge_lora

            merged = merge_lora(self.model)
            # a large model rounds by more than the bound; a broken merge is off by what was learnt
            if not merged.difference <= max(merged.bound, ROUNDING * merged.effect):
                warnings.warn(str(merged), RuntimeWarning, stacklevel=2)
            return merged.model
        return core_of(self.model)


def apply_strategy(model: Any, strategy: str, options: StrategyOptions | Mapping[str, Any] | None = None) -> Applied:
    """Choose the weights of a CTC model that learn.

    "head": the CTC head alone. "top-K" ("top-4"): the head and the last K encoder layers; front-end, projection,
    positional convolution and lower layers stay. "all": everything, the front-end on request only (Baevski et al.
    2020, arXiv:2006.11477, section 4.3). "adapters": a bottleneck in each layer and the head; see `adapters`. "lora":
    low-rank updates and the head; see `lora`. "distil": `model` becomes the teacher of a smaller student; see `distil`.

    A second call on the same model starts afresh with "head", "top-K" and "all". Raises PlanError for a strategy that
    does not exist or that the model cannot take, ModelError for a model without CTC head, MissingExtra without peft.
    """
    if not isinstance(options, StrategyOptions):
        options = StrategyOptions.of(strategy, options or {})
    parts = Anatomy.of(model)
    top = _TOP.fullmatch(strategy)
    if top:
        reason = _top(parts, int(top[1]))
    elif strategy == "head":
        reason = _top(parts, 0)
    elif strategy == "all":
        reason = _all(parts, options.freeze_features)
    elif strategy == "adapters":
        reason = _adapters(parts, options.adapter_dim)
    elif strategy == "lora":
        model, reason = _lora(model, options)
    elif strategy == "distil":
        model, reason = _distil(model, options)
    else:
        raise PlanError(_unknown(strategy, len(parts.layers)))
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return Applied(
        strategy=strategy,
        model=model,
        trainable=sum(weight.numel() for _, weight in named),
        total=sum(weight.numel() for weight in model.parameters()),
        groups=part_sizes(named),
        names=tuple(name for name, _ in named),
        reason=reason,
    )


def parameter_groups(
    model: Any,
    learning_rate: float,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
    head_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Parameters that learn → groups for a torch optimiser, slower the nearer they are to the sound.

    A weight of layer i of L learns at `learning_rate` · `layer_decay`^(L - 1 - i), what lies before the layers at
    one step less than layer 0 (Clark et al. 2020, ELECTRA, arXiv:2003.10555, appendix A); the head at `head_rate`, or
    `learning_rate`. Biases, norms and the mask vector are not decayed. Raises PlanError for a decay outside (0, 1] or
    when nothing learns.
    """
    if not 0 < layer_decay <= 1:
        raise PlanError(f"layer_decay is {layer_decay}; it lies in (0, 1]: 1 trains all layers alike, 0.9 is usual")
    depth = len(Anatomy.of(model).layers)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        level, decays = depth_of(name, depth), weight_decay > 0 and not _NO_DECAY.search(name)
        if "encoder.layer_norm." in name and getattr(model.config, "do_stable_layer_norm", False):
            level = depth  # this one stands behind the last layer
        rate = learning_rate * layer_decay ** max(0, depth - level)
        if level > depth and head_rate is not None:
            rate = head_rate
        group = {"params": [], "names": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((level, decays), group)
        groups[level, decays]["params"].append(weight)
        groups[level, decays]["names"].append(name)
    if not groups:
        raise PlanError("no parameter learns (requires_grad is False everywhere): call apply_strategy first")
    return [groups[key] for key in sorted(groups)]


def enable_checkpointing(model: Any) -> None:
    """Recompute each layer in the backward pass instead of keeping its activations; works under peft and distillation.

    The non-reentrant kind: the reentrant one gives no gradient to a layer whose input needs none, which is every
    layer above frozen ones, and the usual remedy (a hook on the input embeddings) has nothing to hook in a model that
    hears (peft#128).
    """
    parts = Anatomy.of(model)
    core = parts.model
    enable = getattr(core, "activation_checkpointing_enable", None) or core.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for layer in getattr(parts.features, "conv_layers", ()):
        if isinstance(getattr(layer, "layer_norm", None), MaskedGroupNorm):
            # it is told the lengths of its batch for the forward pass only: a later repeat would not know them
            layer.gradient_checkpointing = False


def _top(parts: Anatomy, count: int) -> str:
    depth = len(parts.layers)
    if count > depth:
        raise PlanError(f"top-{count} was asked of a model with {depth} encoder layers; top-1 to top-{depth} can be")
    _freeze(parts)
    above = [*parts.layers[depth - count :], parts.head]
    if count and getattr(parts.model.config, "do_stable_layer_norm", False):
        above.append(parts.encoder.layer_norm)  # behind the last layer here; before the first one in other models
    for module in above:
        module.requires_grad_(True)
    if not count:
        return "the CTC head alone: a new alphabet on sounds that the encoder already tells apart"
    return f"the head and the last {count} of {depth} layers: what lies below has learnt sounds, not the domain"


def _all(parts: Anatomy, freeze_features: bool) -> str:
    parts.model.requires_grad_(True)
    _front_end(parts, learns=not freeze_features)
    if freeze_features:
        return "everything but the convolutional front-end, as in the wav2vec 2.0 paper"
    return "everything, the convolutional front-end too: for sounds far from those of pretraining, and much data"


def _adapters(parts: Anatomy, dim: int) -> str:
    from speechkit.training.adapters import add_adapters

    added = add_adapters(parts.model, dim)
    _freeze(parts)
    for layer in parts.layers:
        layer.adapter_layer.requires_grad_(True)
    parts.head.requires_grad_(True)
    width = parts.model.config.adapter_attn_dim
    origin = "added, the model's outputs unchanged" if added else "already in the model"
    return f"a bottleneck of {width} in each layer ({origin}) and the head: one small file per language or domain"


def _lora(model: Any, options: StrategyOptions) -> tuple[Any, str]:
    from speechkit.training.lora import LoraOptions, add_lora

    lora = LoraOptions(options.lora_rank, options.lora_alpha, options.lora_dropout, options.lora_targets)
    wrapped = add_lora(model, lora)
    return wrapped, f"updates of rank {lora.rank} on {lora.targets} and the head: merged afterwards, no cost to run"


def _distil(model: Any, options: StrategyOptions) -> tuple[Any, str]:
    from speechkit.training.distil import DistilForCTC, DistilOptions, student_of

    depth = len(Anatomy.of(model).layers)
    student = student_of(model, options.student_layers or max(1, depth // 2), options.student_width or None)
    _all(Anatomy.of(student), options.freeze_features)
    pair = DistilForCTC(student, model, DistilOptions(options.temperature, options.distil_weight))
    layers, width = student.config.num_hidden_layers, student.config.hidden_size
    return (
        pair,
        f"a student of {layers} layers, {width} wide, follows the teacher's frames ({depth} layers) and the text",
    )


def _freeze(parts: Anatomy) -> None:
    parts.model.requires_grad_(False)
    _front_end(parts, learns=False)


def _front_end(parts: Anatomy, learns: bool) -> None:
    """Besides the weights transformers keeps a flag, which makes gradients run down to the samples while it is True."""
    parts.features.requires_grad_(learns)
    parts.features._requires_grad = learns


def _unknown(strategy: str, depth: int) -> str:
    known = [f"top-{k}" for k in range(1, depth + 1)] + [name for name in STRATEGIES if name != "top-K"]
    near = get_close_matches(strategy, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    names = ", ".join(f"top-1 … top-{depth}" if name == "top-K" else name for name in STRATEGIES)
    return f"unknown strategy {strategy!r}; it can be {names}{hint}"
