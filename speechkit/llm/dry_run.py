"""The memory of a training step without the memory: a model of fake tensors goes through it and its bytes are counted.

In: a configuration of transformers and `PlanOptions`. Out: a `DryRun` with exact counts of weights, and with what is
alive beside them at every moment that could be the worst. Beside it `measure_step`, the same of a real model with real
tensors, counted by torch's own tracker: what the first is tested against.

Fake tensors know shape, dtype and storage; every operation of the model runs, in a second for eight billion weights.
Where on a GPU something else would run (kernels, flash attention, quantised products), `kept` stands in.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechkit.llm import kept
from speechkit.llm.plan_options import card_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechkit.device import Hardware
    from speechkit.llm.plan_options import PlanOptions

__all__ = ["Counts", "DryRun", "Measured", "Moment", "counts_of", "dry_run", "measure_step"]

LEAST_OFFLOAD = 1024  # bytes: what trl's offloading leaves where it is


def _grouped(x: torch.Tensor, y: torch.Tensor, offs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Products of experts, of fake tensors: torch's own shape function for them takes 16 bits alone."""
    if x.dim() == y.dim() == 2:
        return x.new_empty((offs.numel(), x.shape[0], y.shape[1]))
    return x.new_empty((x.shape[-2], y.shape[-1]))


@dataclass(frozen=True)
class Counts:
    """Numbers of a model, exact."""

    trained: tuple[int, ...]  # elements of each weight that is trained
    frozen: int  # elements of weights that are not, and lie in the dtype of the run
    quantised: int  # elements of weights that are packed
    outputs: int  # rows of those: one scale each at 8 bits
    largest_block: int  # elements of the largest layer of the stack: what sharding gathers at once
    outside: int  # elements of embedding, head and last norm
    layers: int
    hidden: int

    @property
    def total(self) -> int:
        """Elements of all weights."""
        return sum(self.trained) + self.frozen + self.quantised


@dataclass(frozen=True)
class Moment:
    """Bytes alive beside weights and optimizer at one moment."""

    activations: int  # without logits and gradients of weights
    logits: int  # whatever has the vocabulary for its last dimension
    gradients: int  # of weights, so far


@dataclass(frozen=True)
class DryRun:
    """What one step on one GPU, nothing sharded, was found to need."""

    moments: tuple[Moment, ...]  # the worst for each size of gradients so far
    compiled: bool  # whether kernels were counted as they run on a GPU


@dataclass(frozen=True)
class Measured:
    """Bytes of tensors at the peak of a real step, as torch's tracker has them."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # with logits and what is alive for a moment
    total: int

    def __str__(self) -> str:
        names = ("weights", "gradients", "optimizer", "activations", "total")
        return ", ".join(f"{name} {getattr(self, name):,} bytes" for name in names)


class _Alive(TorchDispatchMode):
    """Bytes of storages that operations made and nobody has let go of."""

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.bytes = {"activations": 0, "logits": 0, "gradients": 0}
        self.known: dict[int, list[Any]] = {}  # id of the storage → reference, size, kind
        self.worst: dict[int, Moment] = {}  # how many weights have gradients so far → moment
        self.accumulated = 0
        for one in (*model.parameters(), *model.buffers()):
            self.known[id(one.untyped_storage())] = [one.untyped_storage(), 0, "activations"]
        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._accumulated)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            out = _grouped(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                self._made(one)
        return out

    def _made(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.known:
            return
        wide = tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
        size, kind = storage.nbytes(), "logits" if wide else "activations"
        self.known[key] = [weakref.ref(storage, lambda _: self._gone(key)), size, kind]
        self.bytes[kind] += size
        self._look()

    def _gone(self, key: int) -> None:
        _, size, kind = self.known.pop(key)
        self.bytes[kind] -= size

    def _accumulated(self, weight: torch.Tensor) -> None:
        entry = self.known.get(id(weight.grad.untyped_storage())) if weight.grad is not None else None
        if entry is not None and entry[2] != "gradients":
            self.bytes[entry[2]] -= entry[1]
            entry[2] = "gradients"
            self.bytes["gradients"] += entry[1]
            self.accumulated += 1
            self._look()

    def _look(self) -> None:
        now = Moment(**self.bytes)
        before = self.worst.get(self.accumulated)
        if before is None or now.activations + now.logits > before.activations + before.logits:
            self.worst[self.accumulated] = now


def counts_of(config: Any, options: PlanOptions) -> Counts:
    """Exact: the whole model is made, on meta. Takes of the options what is trained, and how."""
    return _counts(*_model(config, options, compiled=True))


def dry_run(config: Any, options: PlanOptions, hardware: Hardware | None = None) -> DryRun:
    """Go through one step of a model of `config` with fake tensors; of a deep one with two that have fewer layers.

    config: a transformers configuration of a causal language model. Raises what transformers raises for a
    configuration that it has no model for. The random generators stay as they were.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    card = card_of(options, hardware)
    compiled = options.kernels and card is not None and _compiles(card.capability, options.dtype)
    depth = _text(config).num_hidden_layers
    few = min(depth, _uneven(config) + 3)
    found = []
    for layers in (few, few + 1) if depth > few + 1 else (depth,):
        short = _shortened(config, layers)
        model, _ = _model(short, options, compiled)
        _equip(model, options, compiled)
        with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
            _fake(model, getattr(torch, options.trained_dtype))
            alive = _Alive(model, _text(config).vocab_size)
            _step(model, options, alive)
        found.append(alive.worst)
    moments = found[0].values() if len(found) == 1 else _deeper(found[0], found[1], depth - few - 1)
    return DryRun(_undominated(moments), compiled)


def _uneven(config: Any) -> int:
    """Layers at the beginning of the stack that are unlike the rest: dense ones before experts."""
    text = _text(config)
    dense = [layer + 1 for layer in getattr(text, "mlp_only_layers", None) or ()]
    return max([int(getattr(text, "first_k_dense_replace", 0) or 0), *dense])


def _shortened(config: Any, layers: int) -> Any:
    """The same with fewer layers: memory grows by the same amount with each."""
    short = copy.deepcopy(config)
    text = _text(short)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short


def _deeper(less: dict[int, Moment], more: dict[int, Moment], layers: int) -> list[Moment]:
    """What `layers` more would make of the moments of two models that differ by one layer.

    In backward gradients grow layer by layer while activations shrink, both evenly: the worst moment is in the last
    layer of the stack or in the first. Moments are matched by how many weights have gradients, or have none yet, as
    far as both models are in a layer of the stack then that is followed, or preceded, by another.
    """
    ends = max(less), max(more)
    each = ends[1] - ends[0]  # weights of a layer
    found = []
    for count, here in more.items():
        left = ends[1] - count
        pairs = [count] if count < 2 * each else []
        pairs += [ends[0] - left] if left < 2 * each else []
        for there in (less[one] for one in pairs if one in less):
            grown = [
                getattr(here, name) + layers * (getattr(here, name) - getattr(there, name))
                for name in ("activations", "logits", "gradients")
            ]
            found.append(Moment(*grown))
    return found


def _compiles(capability: tuple[int, int], dtype: str) -> bool:
    from speechkit_kernels.launch import Hardware as Where
    from speechkit_kernels.launch import support

    return support(Where("cuda", capability), getattr(torch, dtype)).value


def _text(config: Any) -> Any:
    return config.get_text_config()


def _model(config: Any, options: PlanOptions, compiled: bool) -> tuple[Any, list[nn.Linear]]:
    """On meta, where peft can make its layers too, with what is trained marked; and the layers that are packed."""
    from transformers import AutoModelForCausalLM

    from speechkit.llm.lora import add_lora
    from speechkit.llm.lora_kernels import FEWEST

    full, quantised = options.method == "full", list[nn.Linear]()
    with torch.device("meta"):
        dtype = getattr(torch, options.trained_dtype if full else options.dtype)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if options.method == "qlora":
            quantised = kept.quantised_linear(model, (model.get_output_embeddings(),))
        if not full:
            model = add_lora(model, options.lora, kernels=False)
            rows = compiled or options.batch_tokens >= FEWEST
            if options.kernels and rows and not options.lora.dropout and not options.lora.dora:
                kept.fused_adapters(model)
    return model.train(), quantised


def _fake(model: nn.Module, trained: torch.dtype) -> None:
    """Weights and buffers of meta become fake ones, which have a device; tied ones stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                dtype = trained if weight.requires_grad else weight.dtype
                new = nn.Parameter(torch.empty(weight.shape, dtype=dtype), requires_grad=weight.requires_grad)
                module._parameters[name] = made.setdefault(id(weight), new)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), torch.empty(buffer.shape, dtype=buffer.dtype))


def _equip(model: Any, options: PlanOptions, compiled: bool) -> None:
    """Kernels, attention and checkpointing, as the run will have them."""
    from speechkit.errors import ModelError
    from speechkit.llm.apply import apply_kernels

    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if options.kernels:
        kinds = ("norms", "gated units", "rotary positions", *(["loss"] if _loss_runs(options) else []))
        with contextlib.suppress(ModelError):  # a family without kernels trains without
            apply_kernels(model, kinds)
        kept.stand_in(bare, compiled)
    if not options.kernels and _text(bare.config)._attn_implementation == "eager":
        return _checkpointed(bare, options)  # Gemma 2's: all scores are kept
    rows, length = options.rows
    mask = None if options.packing else torch.empty((rows, 1, length, length), dtype=torch.bool)
    name = kept.attend(not options.kernels and not options.packing, mask)
    bare.set_attn_implementation({"text_config": name} if _text(bare.config) is not bare.config else name)
    _checkpointed(bare, options)


def _checkpointed(model: Any, options: PlanOptions) -> None:
    if options.checkpointing == "none":
        return
    if options.method != "full":
        model.enable_input_require_grads()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    # ZeRO-3 takes frozen weights away between forward and recomputation, which the other kind checks for
    enable({"use_reentrant": options.strategy == "zero3" and options.method != "full"})


def _loss_runs(options: PlanOptions) -> bool:
    """Under ZeRO-3 the head is in pieces while the loss is computed: transformers' own loss runs, with all logits."""
    return options.strategy != "zero3"


def _counts(model: Any, quantised: list[nn.Linear]) -> Counts:
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    trained = tuple(weight.numel() for weight in model.parameters() if weight.requires_grad)
    packed = sum(module.weight.numel() for module in quantised)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad) - packed
    stacks = [module for module in bare.modules() if isinstance(module, nn.ModuleList)]
    blocks = max(stacks, key=lambda stack: sum(one.numel() for one in stack.parameters()), default=nn.ModuleList())
    sizes = [sum(one.numel() for one in block.parameters()) for block in blocks] or [0]
    text = _text(bare.config)
    return Counts(
        trained, frozen, packed, sum(module.out_features for module in quantised), max(sizes),
        sum(one.numel() for one in model.parameters()) - sum(sizes), text.num_hidden_layers, text.hidden_size,
    )  # fmt: skip


def _step(model: Any, options: PlanOptions, alive: _Alive) -> None:
    rows, length = options.rows
    ids = torch.zeros((rows, length), dtype=torch.long)
    autocast: Any = contextlib.nullcontext()
    if options.dtype != "float32" and not options.strategy.startswith("zero"):  # DeepSpeed's model is in its dtype
        autocast = torch.autocast("cpu", getattr(torch, options.dtype))
    moved = _in_main_memory(alive.vocabulary) if options.checkpointing == "offload" else contextlib.nullcontext()
    with alive:
        with autocast, moved:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()


@contextlib.contextmanager
def _in_main_memory(vocabulary: int) -> Iterator[None]:
    """What is kept for backward leaves the GPU until it is due, but for weights, logits and small things."""

    def pack(tensor: torch.Tensor) -> Any:
        stays = isinstance(tensor, nn.Parameter) or tensor.nbytes < LEAST_OFFLOAD or tensor.shape[-1:] == (vocabulary,)
        base = tensor._base
        return tensor if stays or isinstance(base, nn.Parameter) else (tensor.shape, tensor.dtype)

    def unpack(held: Any) -> torch.Tensor:
        return held if isinstance(held, torch.Tensor) else torch.empty(held[0], dtype=held[1])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _undominated(moments: Any) -> tuple[Moment, ...]:
    """Those at which no other has both more gradients and more of the rest."""
    kept_: list[Moment] = []
    most = -1
    for one in sorted(moments, key=lambda moment: -moment.gradients):
        if one.activations + one.logits > most:
            kept_.append(one)
            most = one.activations + one.logits
    return tuple(kept_)


def measure_step(model: Any, batch: dict[str, torch.Tensor], *, dtype: str = "float32") -> Measured:
    """Two updates of a real model with AdamW; the second is counted, by torch's MemTracker, tensor by tensor.

    batch: what the model takes, `labels` among it. `dtype` other than float32 is autocast's. The weights change.
    """
    from torch.distributed._tools.mem_tracker import MemTracker

    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], foreach=False)
    kind = next(model.parameters()).device

    def step() -> None:
        with torch.autocast(kind.type, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    tracker: Any = MemTracker()  # type: ignore[no-untyped-call]
    none = SimpleNamespace(remove=lambda: None)
    for weight in model.parameters():
        if not weight.requires_grad:  # torch 2.14 would hang a hook on these too, which torch refuses
            tracker._param_to_grad_hook_handles[weight] = (none, none)
    tracker.track_external(model, optimizer, *batch.values())
    with tracker:
        step()
    peak: dict[str, int] = {}
    for device, found in tracker.get_tracker_snapshot("peak").items():
        if device == kind:
            peak = {str(getattr(name, "value", name)): size for name, size in found.items()}
    return _measured(peak)


def _measured(peak: dict[str, int]) -> Measured:
    names = {name.rpartition(".")[2].lower(): size for name, size in peak.items()}
    weights, gradients = names.get("parameter", 0) + names.get("buffer", 0), names.get("gradient", 0)
    optimizer, total = names.get("optstate", 0), names.get("total", 0)
    return Measured(weights, gradients, optimizer, total - weights - gradients - optimizer, total)
