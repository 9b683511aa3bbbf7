"""A 4-bit base on a CPU, kept in the layout that has gradients. In: a model. Out: a context for its training.

On CPUs with bfloat16 instructions bitsandbytes (0.50) rearranges a layer's weight the first time that it runs in
evaluation mode. From then on its product has no backward: gradients stop at that layer, with a warning at best, and
whatever lies below learns nothing from above. An evaluation before the first step is enough.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["differentiable"]

SWITCH = "support_avx512bf16_for_cpu"  # what bitsandbytes asks each layer before it rearranges its weight


@contextmanager
def differentiable(model: Any) -> Iterator[int]:
    """While open no weight is rearranged, and those that were are put back; yields how many that were."""
    layers = [module for module in model.modules() if getattr(module, SWITCH, False)]
    for layer in layers:
        setattr(layer, SWITCH, False)
    try:
        yield sum(_put_back(layer) for layer in layers)
    finally:
        for layer in layers:
            setattr(layer, SWITCH, True)


def _put_back(layer: Any) -> bool:
    state = getattr(layer.weight, "quant_state", None)
    if state is None or not getattr(state, "packing_format_for_cpu", False):
        return False
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(layer.weight.data, state)
    return True
