"""Weights with one scale a row (int8, float8 e4m3) and the low-rank update, by their definitions.

Of each row w (K,) of a weight (N, K), in float32:

    scale = max |w| / most              most = 127 for int8, 448 for e4m3
    value = w / scale                   to the nearest that the format has, ties to even
    w'    = value · scale

Row by row, so that a product needs the scale once a sum: y[n] = scale[n] · Σ value[n, k] x[k].
Int8: Dettmers et al. 2022, arXiv:2208.07339, section 2.1, absmax by row; e4m3: Micikevicius et al. 2022,
arXiv:2209.05433. Low rank: Hu et al. 2021, arXiv:2106.09685, equation 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from speechkit_kernels.reference.nf4 import NF4Weight, nf4_dequantise

__all__ = ["MOST", "RowWeight", "lora_linear", "row_dequantise", "row_linear", "row_quantise"]

MOST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, eq=False)
class RowWeight:
    """A frozen weight (N, K) in 8 bits, one scale a row. Satisfies `Weight`; methods import the kernels they need."""

    values: torch.Tensor  # (N, K) int8 or float8_e4m3fn, without gaps
    scale: torch.Tensor  # (N,) float32
    dtype: torch.dtype  # of what it was made

    def __post_init__(self) -> None:
        if not self.values.is_contiguous() or not self.scale.is_contiguous():
            raise ValueError(
                f"RowWeight: values have strides {self.values.stride()}, scale {self.scale.stride()}; "
                "give both without gaps"
            )

    def __repr__(self) -> str:
        kind = str(self.values.dtype).removeprefix("torch.")
        return f"RowWeight({self.shape[0]} x {self.shape[1]}, {kind}, {self.nbytes:,} bytes, {self.device})"

    @property
    def shape(self) -> tuple[int, int]:
        outer, inner = self.values.shape
        return outer, inner

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes

    def to(self, device: torch.device | str) -> RowWeight:
        """The same weight on another device."""
        return replace(self, values=self.values.to(device), scale=self.scale.to(device))

    def dequantise(self, dtype: torch.dtype | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """(N, K) in `dtype`, by default that of what it was made of, or into `out`."""
        if out is None:
            out = torch.empty(self.shape, dtype=dtype or self.dtype, device=self.device)
        return out.copy_(self.values).mul_(self.scale[:, None])  # each format's values are exact in a half

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(M, K) → (M, N), without a gradient; added onto `onto` if given."""
        from speechkit_kernels.row_linear import product

        return product(x, self, bias, onto)

    def input_gradient(self, dy: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """(M, N) → (M, K), without a gradient; added onto `onto` if given."""
        from speechkit_kernels.weights import library_gradient

        return library_gradient(dy, self, onto)

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, K) → (…, N), differentiable in x and bias."""
        from speechkit_kernels.row_linear import row_linear

        return row_linear(x, self, bias)


def row_quantise(weight: torch.Tensor, dtype: torch.dtype = torch.int8) -> RowWeight:
    """(N, K) float → RowWeight in int8 or float8_e4m3fn."""
    if dtype not in MOST or weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"row_quantise: got {weight.dtype} of shape {tuple(weight.shape)} for {dtype}; "
            "give a float (N, K) for torch.int8 or torch.float8_e4m3fn"
        )
    wide = weight.detach().float().contiguous()  # a transposed one would keep its strides through all that follows
    most = wide.abs().amax(dim=1) if weight.shape[1] else wide.new_zeros(weight.shape[0])
    scale = most / MOST[dtype]
    value = wide / scale.where(scale > 0, 1.0)[:, None]
    value = value.clamp(-MOST[dtype], MOST[dtype])  # e4m3 has no infinity: what rounds past its most is NaN
    return RowWeight((value.round() if dtype == torch.int8 else value).to(dtype), scale, weight.dtype)


def row_dequantise(weight: RowWeight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """RowWeight → (N, K) in `dtype`, by default that of what it was made of."""
    return (weight.values.float() * weight.scale[:, None]).to(dtype or weight.dtype)


def row_linear(x: torch.Tensor, weight: RowWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y = x Wᵀ + bias with W dequantised in the dtype of x, summed in float32. x: (…, K); bias: (N,)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide) @ row_dequantise(weight, x.dtype).to(wide).T
    return (y if bias is None else y + bias.to(wide)).to(x.dtype)


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor | NF4Weight | RowWeight,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = x Wᵀ + scale · (x Aᵀ) Bᵀ + bias, all in the dtype of x, summed in float32.

    x: (…, K); weight: (N, K); a: (R, K); b: (N, R); bias: (N,).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if isinstance(weight, NF4Weight):
        weight = nf4_dequantise(weight, x.dtype)
    elif isinstance(weight, RowWeight):
        weight = row_dequantise(weight, x.dtype)
    w, a, b = (matrix.to(x.dtype).to(wide) for matrix in (weight, a, b))
    y = x.to(wide) @ w.T + scale * (x.to(wide) @ a.T) @ b.T
    return (y if bias is None else y + bias.to(wide)).to(x.dtype)
