"""Formats of a merged folder: how transformers is told of each, and which of them this machine can write.

In: a format's name and a device. Out: settings for `from_pretrained`, or the reason why there are none. Every format is
written as safetensors; torchao's tensors are taken apart for that (torchao ≥ 0.15), never pickled.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import ExportError, PlanError

if TYPE_CHECKING:
    from speechkit.device import Hardware

__all__ = ["BITS", "FORMATS", "check_possible", "notes_of", "settings_of", "widths_of"]

FORMATS = ("16-bit", "nf4", "int8", "int4", "fp8")
BITS = {
    "16-bit": 16.0,
    "nf4": 4.13,
    "int8": 8.1,
    "int4": 8.6,
    "fp8": 8.1,
}  # of a linear layer's weight, scales included
PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao", "int4": "torchao", "fp8": "torchao"}
GROUP = 32  # weights that share a scale in int4
FP8_LEAST, INT4_LEAST = (8, 9), (8, 0)  # compute capability


def check_possible(format: str, device: str, hardware: Hardware | None = None) -> None:
    """Raises PlanError for an unknown format and for one that `device` cannot run, MissingExtra for its package."""
    if format not in FORMATS:
        raise PlanError(f"format is {format!r}; it can be {', '.join(map(repr, FORMATS))}")
    if format not in PACKAGES:
        return
    if device.partition(":")[0] == "mps":
        raise PlanError(f"format is {format!r}, for which an Apple GPU has no kernels; use device='cpu' or '16-bit'")
    from speechkit.llm.precision import described, gpu_of

    gpu = gpu_of(device, hardware)
    if format == "fp8" and gpu is not None and gpu.capability < FP8_LEAST:
        raise PlanError(
            f"format is 'fp8', whose products need a GPU from sm_89 on, and this is {described(gpu)}; use 'int8', or "
            "device='cpu', which multiplies in the wider type"
        )
    extras.require(PACKAGES[format], extra="llm", purpose=f"format={format!r}")


def settings_of(format: str, device: str, dtype: Any, hardware: Hardware | None = None) -> Any:
    """transformers' quantization_config; None for 16 bits. dtype: torch's, that products are computed in."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if format == "16-bit":
        return None
    if format == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    import torch
    from torchao import quantization as torchao

    if format == "int8":
        return TorchAoConfig(torchao.Int8WeightOnlyConfig(version=2))
    if format == "fp8":
        return TorchAoConfig(torchao.Float8WeightOnlyConfig())
    if _tiles(device, dtype, hardware):
        return TorchAoConfig(
            torchao.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d"),
        )
    kinds: Any = torch  # its stubs lack the types below a byte
    return TorchAoConfig(
        torchao.IntxWeightOnlyConfig(
            weight_dtype=kinds.int4,
            granularity=torchao.PerGroup(GROUP),
            intx_choose_qparams_algorithm="hqq_scale_only",
        )
    )


def _tiles(device: str, dtype: Any, hardware: Hardware | None) -> bool:
    """Whether torchao's int4 kernel runs: bfloat16, from sm_80 on."""
    import torch

    from speechkit.llm.precision import gpu_of

    gpu = gpu_of(device, hardware)
    return gpu is not None and gpu.capability >= INT4_LEAST and dtype == torch.bfloat16


def notes_of(format: str, device: str, dtype: Any, hardware: Hardware | None = None) -> tuple[str, ...]:
    """What there is to know of a folder in this format."""
    if format not in PACKAGES:
        return ()
    notes = [f"read by transformers with {PACKAGES[format]} (written with {version(PACKAGES[format])})"]
    if format == "int4" and _tiles(device, dtype, hardware):
        notes.append("packed for NVIDIA GPUs from sm_80 on, the only place where it can be read")
    elif format == "int4":
        notes.append(
            "torchao packs two weights a byte on GPUs only; here each takes a byte of its own: no smaller than int8, "
            "less exact, of use for torchao's own exports. For half the size write 'nf4', or a GGUF file"
        )
    if format == "fp8":
        notes.append("its products are fast from sm_89 on; elsewhere weights are widened first")
    return tuple(notes)


def widths_of(model: Any, format: str) -> None:
    """Raises ExportError for linear layers whose width the format's groups do not divide."""
    import torch

    if format != "int4":
        return
    wrong = [
        f"{name} ({one.in_features})"
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.Linear) and one.in_features % GROUP
    ]
    if wrong:
        raise ExportError(
            f"int4 keeps a scale for each {GROUP} weights, which do not divide the width of {len(wrong)} layers: "
            f"{', '.join(wrong[:3])}; write 'int8' or 'nf4'"
        )
