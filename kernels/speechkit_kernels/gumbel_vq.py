"""The quantiser of wav2vec 2.0: an entry of each codebook by a Gumbel choice, one launch, gradients straight through.

Of frame n and codebook g, with logits l (V,), uniform numbers u and temperature τ, in float32:

    q = -log(-log u)                        Gumbel noise (Jang, Gu & Poole 2017, arXiv:1611.01144)
    s = softmax((l + q) / τ),  i = argmax   soft probabilities, and the entry that is taken
    code = codebook[g, i]                   hard forward; backward as if it were Σ_v s_v · codebook[g, v]
    usage[g] = Σ_n m_n · p / Σ_n m_n,       p = softmax(l), m the mask: how evenly a codebook is used

Backward, with c = dcode and e[v] = c · codebook[g, v] (one product of matrices):

    dl = s · (e - Σ s · e) / τ  +  (m / Σ m) · p · (du - Σ p · du)         du the gradient of usage[g]
    dcodebook[g, i] += c

Neither the noise, the one-hot nor s or p are ever stored: backward computes them again from logits and the numbers, and
those, where a seed is given, from the seed. A program walks over frames of one codebook and sums usage in registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.launch import block_of, check_same, check_shape, on_its_device, programs, use_kernel, warps_of
from speechkit_kernels.reference.gumbel_vq import gumbel_vq as definition
from speechkit_kernels.wide_bmm import wide_bmm

__all__ = ["Quantised", "gumbel_vq"]

EDGE = 2.0**-24


@dataclass(frozen=True)
class Quantised:
    """What the quantiser chose."""

    codes: torch.Tensor  # (N, G·D), the entries side by side
    indices: torch.Tensor  # (N, G) int64, which they are
    usage: torch.Tensor  # (G, V) float32, average use of each entry, sums to 1 over V

    @property
    def perplexity(self) -> torch.Tensor:
        """How many entries are in use, summed over codebooks: Σ_g exp(entropy); G to G·V."""
        return torch.exp(-torch.special.xlogy(self.usage, self.usage).sum(dim=-1)).sum()


@triton.jit
def _noise(u_ptr, at, mask, seed, SEEDED: tl.constexpr, EDGE: tl.constexpr):
    """Gumbel noise of elements `at` of (N, G, V)."""
    u = tl.rand(seed, at.to(tl.int32)) if SEEDED else tl.load(u_ptr + at, mask=mask, other=0.5).to(tl.float32)
    return -tl.log(-tl.log(tl.minimum(tl.maximum(u, EDGE), 1 - EDGE)))


@triton.jit
def _softmax(x):
    e = tl.exp(x - tl.max(x, axis=0))
    return e / tl.sum(e, axis=0)


@triton.jit
def _forward(logits_ptr, u_ptr, mask_ptr, codebook_ptr, codes_ptr, indices_ptr, partial_ptr, frames, groups, entries,
             width, inverse_temperature, seed, MASKED: tl.constexpr, SEEDED: tl.constexpr, EDGE: tl.constexpr,
             BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    program, group = tl.program_id(0), tl.program_id(1)
    entry, lane = tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    known = entry < entries
    usage = tl.zeros((BLOCK_V,), tl.float32)
    for frame in range(program, frames, tl.num_programs(0)):
        row = tl.cast(frame, tl.int64) * groups + group
        at = row * entries + entry
        logits = tl.load(logits_ptr + at, mask=known, other=float("-inf")).to(tl.float32)
        noisy = (logits + _noise(u_ptr, at, known, seed, SEEDED, EDGE)) * inverse_temperature
        _, index = tl.max(noisy, axis=0, return_indices=True, return_indices_tie_break_left=True)
        index = tl.minimum(index, entries - 1)  # among NaN the winner may be a lane behind the last entry
        tl.store(indices_ptr + row, index.to(tl.int64))
        source = codebook_ptr + (tl.cast(group, tl.int64) * entries + index) * width
        for first in range(0, width, BLOCK_D):
            code = tl.load(source + first + lane, mask=first + lane < width, other=0.0)
            tl.store(codes_ptr + row * width + first + lane, code, mask=first + lane < width)
        share = _softmax(logits)
        if MASKED:
            share *= tl.load(mask_ptr + frame).to(tl.float32)
        usage += share
    tl.store(partial_ptr + (tl.cast(program, tl.int64) * groups + group) * entries + entry, usage, mask=known)


@triton.jit
def _backward(e_ptr, dusage_ptr, logits_ptr, u_ptr, mask_ptr, counted_ptr, dlogits_ptr, groups, entries,
              inverse_temperature, seed, MASKED: tl.constexpr, SEEDED: tl.constexpr, EDGE: tl.constexpr,
              BLOCK_V: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, BLOCK_V)
    known = entry < entries
    at = row * entries + entry
    logits = tl.load(logits_ptr + at, mask=known, other=float("-inf")).to(tl.float32)
    soft = _softmax((logits + _noise(u_ptr, at, known, seed, SEEDED, EDGE)) * inverse_temperature)
    e = tl.load(e_ptr + at, mask=known, other=0.0)
    gradient = soft * (e - tl.sum(soft * e, axis=0)) * inverse_temperature
    share = _softmax(logits)
    du = tl.load(dusage_ptr + (row % groups) * entries + entry, mask=known, other=0.0)
    part = share * (du - tl.sum(share * du, axis=0)) / tl.load(counted_ptr)
    if MASKED:
        part *= tl.load(mask_ptr + row // groups).to(tl.float32)
    tl.store(dlogits_ptr + at, (gradient + part).to(dlogits_ptr.dtype.element_ty), mask=known)


def _launch_forward(
    logits: torch.Tensor, codebook: torch.Tensor, uniform: torch.Tensor | None, temperature: float, seed: int,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """→ codes (N, G, D), indices (N, G), Σ_n m · p (G, V) float32."""
    frames, groups, entries = logits.shape
    width = codebook.shape[2]
    codes = torch.empty((frames, groups, width), dtype=codebook.dtype, device=logits.device)
    indices = torch.empty((frames, groups), dtype=torch.int64, device=logits.device)
    shared = programs(logits.device, frames, each=16)
    partial = torch.zeros((shared, groups, entries), dtype=torch.float32, device=logits.device)
    if frames:
        block = block_of(entries)
        _forward[(shared, groups)](
            logits, logits if uniform is None else uniform, logits if mask is None else mask, codebook, codes, indices,
            partial, frames, groups, entries, width, 1 / temperature, seed, MASKED=mask is not None,
            SEEDED=uniform is None, EDGE=EDGE, BLOCK_V=block, BLOCK_D=min(1024, block_of(width)),
            num_warps=warps_of(block),
        )  # fmt: skip
    return codes, indices, partial.sum(dim=0)


class _GumbelVQ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, codebook: torch.Tensor, uniform: torch.Tensor | None, temperature: float,
        seed: int, mask: torch.Tensor | None,
    ) -> Any:  # fmt: skip
        logits, codebook = logits.contiguous(), codebook.contiguous()
        codes, indices, total = _launch_forward(logits, codebook, uniform, temperature, seed, mask)
        frames = logits.new_full((), len(logits), dtype=torch.float32)
        counted = (frames if mask is None else mask.sum(dtype=torch.float32)).clamp(min=1)
        ctx.save_for_backward(logits, codebook, uniform, mask, indices, counted)
        ctx.temperature, ctx.seed = temperature, seed
        ctx.mark_non_differentiable(indices)
        return codes.flatten(1), indices, total / counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, codebook, uniform, mask, indices, counted = ctx.saved_tensors
        (frames, groups, entries), width = logits.shape, codebook.shape[2]
        dcodes = gradients[0].view(frames, groups, width)
        dlogits = dcodebook = None
        if ctx.needs_input_grad[0]:
            dlogits = torch.empty_like(logits)
            e = torch.empty((frames, groups, entries), dtype=torch.float32, device=logits.device)
            e.copy_(wide_bmm(dcodes.transpose(0, 1), codebook.to(dcodes.dtype).mT).transpose(0, 1))
            if frames:
                block = block_of(entries)
                _backward[(frames * groups,)](
                    e, gradients[2].contiguous(), logits, logits if uniform is None else uniform,
                    logits if mask is None else mask, counted, dlogits, groups, entries, 1 / ctx.temperature, ctx.seed,
                    MASKED=mask is not None, SEEDED=uniform is None, EDGE=EDGE, BLOCK_V=block,
                    num_warps=warps_of(block),
                )  # fmt: skip
        if ctx.needs_input_grad[1]:
            flat = torch.zeros((groups * entries, width), dtype=torch.float32, device=logits.device)
            where = indices + torch.arange(groups, device=logits.device) * entries
            flat.index_add_(0, where.flatten(), dcodes.reshape(-1, width).float())
            dcodebook = flat.view(codebook.shape).to(codebook.dtype)
        return dlogits, dcodebook, None, None, None, None


@on_its_device
def gumbel_vq(
    logits: torch.Tensor,
    codebook: torch.Tensor,
    temperature: float = 2.0,
    *,
    uniform: torch.Tensor | None = None,
    seed: int | None = None,
    mask: torch.Tensor | None = None,
) -> Quantised:
    """Logits (N, G, V) and codebooks (G, V, D) → the chosen entries, which they are, and how evenly they are used.

    uniform: (N, G, V) numbers in 0..1 that make the noise; or seed: a whole number that gives them (others on a GPU
    than on a CPU, as torch's own). With neither, nothing is drawn: the largest logit wins, as at inference, usage
    counts winners, and logits get no gradient. mask: (N,) bool, the frames that usage counts.
    Differentiable in logits and codebook. float32 inside, codes in the codebook's dtype.
    Raises ValueError for shapes, devices or dtypes that do not fit, a temperature that is not positive, and both
    `uniform` and `seed`.
    """
    _check(logits, codebook, temperature, uniform, seed, mask)
    if uniform is None and seed is None:
        return _most_likely(logits, codebook, mask)
    kernel = use_kernel("gumbel_vq", logits, width=logits.shape[2])
    if uniform is None and (not kernel or logits.numel() >= 2**31):  # the kernel counts its numbers in 32 bits
        generator = torch.Generator(logits.device).manual_seed(int(seed or 0))
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
    if uniform is not None and not kernel:
        return Quantised(*definition(logits, codebook, uniform, temperature, mask))
    given = None if uniform is None else uniform.contiguous()
    kept = None if mask is None else mask.contiguous()
    return Quantised(*_GumbelVQ.apply(logits, codebook, given, temperature, int(seed or 0), kept))


def _most_likely(logits: torch.Tensor, codebook: torch.Tensor, mask: torch.Tensor | None) -> Quantised:
    indices = logits.argmax(dim=-1)  # (N, G)
    groups, entries = codebook.shape[:2]
    codes = codebook[torch.arange(groups, device=logits.device), indices]  # (N, G, D)
    counts = torch.zeros((groups, entries), dtype=torch.float32, device=logits.device)
    weights = torch.ones_like(indices, dtype=torch.float32) * (1.0 if mask is None else mask.float()[:, None])
    counts.scatter_add_(1, indices.T, weights.T)
    return Quantised(codes.flatten(1), indices, counts / counts.sum(dim=1, keepdim=True).clamp(min=1))


def _check(
    logits: torch.Tensor, codebook: torch.Tensor, temperature: float, uniform: torch.Tensor | None, seed: int | None,
    mask: torch.Tensor | None,
) -> None:  # fmt: skip
    name = "gumbel_vq"
    if logits.dim() != 3 or not logits.shape[2]:
        raise ValueError(f"{name}: logits have shape {tuple(logits.shape)}; wanted (N, G, V) with V ≥ 1")
    check_same(name, {"logits": logits, "codebook": codebook} | ({} if uniform is None else {"uniform": uniform}))
    if codebook.dim() != 3 or codebook.shape[:2] != logits.shape[1:]:
        wanted = ", ".join(map(str, logits.shape[1:]))
        raise ValueError(f"{name}: codebook has shape {tuple(codebook.shape)}; wanted ({wanted}, D)")
    if not temperature > 0:
        raise ValueError(f"{name}: temperature is {temperature}; give a positive number")
    if uniform is not None:
        check_shape(name, "uniform", uniform, logits.shape)
        if seed is not None:
            raise ValueError(f"{name}: both uniform numbers and a seed ({seed}) are given; give one of them")
    if mask is not None:
        check_shape(name, "mask", mask, logits.shape[:1])
        if mask.dtype != torch.bool or mask.device != logits.device:
            raise ValueError(f"{name}: mask is {mask.dtype} on {mask.device}; give torch.bool on {logits.device}")
