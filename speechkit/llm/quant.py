"""Weights in few bits: which kind a device can do, and the settings transformers loads it with.

In: "nf4", "int8", "fp8" or None, a device and its hardware. Out: a `Quant` with its reason. Only linear layers are
quantised, the head and the embeddings are not; an adapter trains on top of each kind. On a CPU with AVX512-BF16
bitsandbytes fetches a compiled product for 4 bits from the Hub (kernels-community) and runs it, when it is imported;
HF_HUB_OFFLINE=1 keeps it from that, and nothing here needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import PlanError
from speechkit.llm.precision import described, gpu_of

if TYPE_CHECKING:
    from speechkit.device import Gpu, Hardware

__all__ = ["QUANTS", "Quant", "check_name", "check_possible", "choose_quant", "possible", "quantised_already"]

QUANTS = ("nf4", "int8", "fp8")
NEEDS = {"nf4": (6, 0), "int8": (7, 5), "fp8": (8, 9)}  # compute capability
PACKAGES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "fp8": "torchao"}
SAYS = {
    "nf4": "4 bits (NF4 in blocks of 64, their scales in 8 bits)",
    "int8": "8 bits (LLM.int8, rows with outliers apart)",
    "fp8": "8 bits (float8 e4m3, one scale a row)",
}


@dataclass(frozen=True)
class Quant:
    """How weights are kept. `str` says it in a line."""

    kind: str | None  # one of QUANTS, what a repository says of its own weights, or None
    reason: str
    settings: Any = None  # transformers' quantization_config; None: as they come
    gib: float = 0.0  # of all weights, once they are loaded

    def __str__(self) -> str:
        size = "" if not self.gib else f", {self.gib:.2f} GiB" if self.gib >= 0.1 else f", {self.gib * 1024:.1f} MiB"
        return f"{self.kind or 'not quantised'}{size} ({self.reason})"


def possible(device: str, hardware: Hardware | None = None) -> dict[str, str]:
    """For each kind, why `device` cannot do it; an empty text where it can."""
    if device.partition(":")[0] == "mps":
        return {kind: f"{PACKAGES[kind]} has no kernels for an Apple GPU" for kind in QUANTS}
    gpu = gpu_of(device, hardware)
    if gpu is None:
        return {"nf4": "", "int8": "", "fp8": "float8 products need a GPU from sm_89 on, and this is a CPU"}
    return {kind: "" if gpu.capability >= least else _needs(least, gpu) for kind, least in NEEDS.items()}


def choose_quant(quant: str | None, device: str, dtype: str, hardware: Hardware | None = None) -> Quant:
    """The kind asked for, with the settings to load it by; `dtype` is what products are computed in.

    Raises PlanError for a kind that does not exist or that the device cannot do, naming those it can; MissingExtra
    where its package is not installed.
    """
    check_possible(quant, device, hardware)
    if quant is None:
        return Quant(None, f"as {dtype}; not asked for")
    package = PACKAGES[quant]
    extras.require(package, extra="llm", purpose=f"quant={quant!r}")
    reason = f"asked for: {SAYS[quant]}, computed in {dtype}, {package} {version(package)}"
    return Quant(quant, reason, _settings(quant, dtype))


def _needs(least: tuple[int, int], gpu: Gpu) -> str:
    return f"it needs sm_{least[0]}{least[1]} or later, and the device is {described(gpu)}"


def check_possible(quant: str | None, device: str, hardware: Hardware | None = None) -> None:
    """Raise PlanError for a kind that does not exist or that the device cannot do, naming those it can."""
    check_name(quant)
    if quant is None:
        return
    can = possible(device, hardware)
    if can[quant]:
        others = [repr(kind) for kind, why in can.items() if not why]
        use = f"this device can do {' and '.join(others)}, or quant=None" if others else "use quant=None"
        raise PlanError(f"quant is {quant!r}, but {can[quant]}; {use}")


def quantised_already(config: Any, quant: str | None) -> Quant | None:
    """How the repository itself keeps its weights; None where they are whole.

    Raises PlanError where a quant is asked for on top.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    told = found if isinstance(found, dict) else found.to_dict()
    bits = "4 bits, " if told.get("load_in_4bit") else "8 bits, " if told.get("load_in_8bit") else ""
    kind = f"{bits}{told.get('quant_method') or 'a method that it does not name'}"
    if quant is not None:
        raise PlanError(
            f"quant is {quant!r}, and the weights are quantised already ({kind}): load them with quant=None, or load "
            "the model that they were made from"
        )
    return Quant(kind, "as the repository has them")


def check_name(quant: str | None) -> None:
    """Raise PlanError unless this is None or one of QUANTS."""
    if quant is not None and quant not in QUANTS:
        raise PlanError(f"quant is {quant!r}; it can be None, {', '.join(repr(kind) for kind in QUANTS)}")


def _settings(quant: str, dtype: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if quant == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )  # fmt: skip
    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Float8WeightOnlyConfig

    return TorchAoConfig(Float8WeightOnlyConfig())
