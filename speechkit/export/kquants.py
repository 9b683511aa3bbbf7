"""Weights to GGUF's block types and back: Q4_K, Q5_K, Q6_K, Q8_0, Q4_0, Q5_0, Q5_1, with or without importance.

    packed = quantize(weight, "Q4_K")                     # (N, K) → (N, K / 256 · 144) uint8
    packed = quantize(weight, "Q4_K", importance=squares) # (K,): mean of the squared inputs, see `imatrix`
    weight = dequantize(packed, "Q4_K")                   # (N, K) float32

The search is llama.cpp's, and so are the bytes; only the codes of a sub-block whose scale is nought, which mean nothing
then, may differ. On a CPU numba compiles it (once; kept on disk), and threads work on chunks of rows; without numba
NumPy gives the same bytes, slowly. Weights on a CUDA device are searched there by the Triton kernel
`speechkit_kernels.k_quant`, where no importance is given. Any float dtype, any strides: a chunk at a time becomes
contiguous float32, so that memory stays near what goes in and out.
"""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.errors import ExportError, PlanError
from speechkit.export.kquants_kinds import BITS, BLOCK, BYTES, KINDS, trials_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

__all__ = ["BITS", "BLOCK", "BYTES", "dequantize", "engine", "quantize"]

CHUNK = 2**20  # weights that a thread takes at a time: what is found for them stays in L2
ON_GPU = ("Q4_K", "Q5_K", "Q6_K", "Q8_0")


def quantize(x: Any, kind: str, importance: Any = None, *, threads: int | None = None) -> Bytes:
    """Weights (N, K) of any float dtype, NumPy or torch, → GGUF's bytes (N, K / weights of a block · its bytes).

    kind: a key of `BITS`; K is a multiple of `BLOCK[kind]`. importance: (K,), how much the squared error of each column
    counts, at least 0 (of Q8_0 ignored); where it is 0 for a whole block that block becomes 0, as in llama.cpp.
    threads: by default as many as torch uses. Raises PlanError for a kind, shape, dtype or importance that cannot be;
    ExportError for a weight that is NaN or infinite, named by row and column, and for one so large that its block's
    scale is infinite in float16.
    """
    count, width = _check(x, kind)
    given = None if importance is None else _check_importance(importance, width)
    packed = np.empty((count, width // BLOCK[kind] * BYTES[kind]), np.uint8)
    if not packed.size:
        return packed
    if given is None and kind in ON_GPU and _is_tensor(x) and x.is_cuda:
        return _on_gpu(x, kind)
    write = _writer()

    def work(rows: slice) -> None:
        part, blocks = _floats(x[rows]), packed[rows].reshape(-1, BYTES[kind])
        finite = write(part, kind, None if kind == "Q8_0" else given, blocks)
        _check_blocks(part, blocks, finite, kind, rows.start)

    _share_out(work, count, width, threads)
    return packed


def dequantize(rows: Any, kind: str, *, threads: int | None = None) -> Floats:
    """GGUF's bytes (N, bytes of a row) uint8 → weights (N, K) float32, those of the gguf package's `dequantize`.

    Raises PlanError for another kind, shape or dtype, and for rows that are not whole blocks.
    """
    _check_kind(kind)
    packed = np.asarray(rows)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] % BYTES[kind]:
        raise PlanError(
            f"rows are {packed.dtype} of shape {packed.shape}; {kind} wants uint8 (N, bytes), the bytes of a row a "
            f"multiple of {BYTES[kind]}"
        )
    width = packed.shape[1] // BYTES[kind] * BLOCK[kind]
    x = np.empty((len(packed), width), np.float32)
    if not x.size:
        return x
    read = _reader()

    def work(part: slice) -> None:
        blocks = np.ascontiguousarray(packed[part]).reshape(-1, BYTES[kind])
        x[part] = read(blocks, kind).reshape(-1, width)

    _share_out(work, len(packed), width, threads)
    return x


def engine() -> tuple[str, str]:
    """What searches on a CPU, "numba" or "numpy", and the reason."""
    if find_spec("numba") is None:
        return "numpy", "numba is not installed; pip install 'speechkit[export]' brings it, some ten times as fast"
    try:
        import_module("speechkit.export.kquants_numba")
    except ImportError as error:
        return "numpy", f"numba cannot be imported: {error}"
    return "numba", "numba is installed"


@cache
def _compiled() -> bool:
    name, reason = engine()
    if name == "numpy":
        warnings.warn(f"GGUF's types are searched by NumPy, slowly: {reason}", RuntimeWarning, stacklevel=4)
    return name == "numba"


def _writer() -> Callable[[Floats, str, Floats | None, Bytes], bool]:
    if _compiled():
        return _write
    from speechkit.export.kquants_numpy import write

    return write


def _reader() -> Callable[[Bytes, str], Floats]:
    if _compiled():
        return _read
    from speechkit.export.kquants_numpy import read

    return read


def _write(x: Floats, kind: str, importance: Floats | None, packed: Bytes) -> bool:
    """(N, K) contiguous → packed (B, bytes of a block) uint8; whether all weights are finite."""
    from speechkit.export import kquants_blocks as blocks
    from speechkit.export import kquants_numba as search

    about, flat, each, top = KINDS[kind], x.reshape(-1), x.reshape(-1, 32), np.float32(KINDS[kind].top)
    if kind == "Q8_0":
        return not blocks.pack_eight(each, each.view(np.int32), packed)
    if about.weights == 32:
        packed = packed.view(np.uint16)
        if importance is None and about.affine:
            return not blocks.pack_range(each, packed)
        if importance is None:
            return not blocks.pack_signed(each, top, packed)
    none = np.empty(0, np.float32)
    weights, spread, found = none, none, np.empty((len(flat) // about.size, search.FOUND), np.float32)
    if importance is not None:
        weights = importance
        if kind != "Q6_K":  # of a block of 256, twice; of 32, that of the whole row
            group, factor = (256, 2) if about.weights == 256 else (x.shape[1], 1)
            spread = np.empty(len(flat) // group, np.float32)
            search.spread_of(flat, group, np.float32(factor), spread)
    trials = trials_of(about, importance is not None)
    if about.affine:
        odd = search.search_affine(flat, weights, spread, trials, top, found)
    else:
        odd = search.search_symmetric(flat, about.size, weights, spread, trials, top, found)
    if kind == "Q6_K":
        blocks.pack_six(flat, found, packed)
    elif kind == "Q5_1":
        blocks.pack_ranged(each, found, packed)
    elif about.affine:
        blocks.pack_affine(flat, found, importance is not None, top, packed)
    else:
        blocks.pack_signed_found(each, found, top, packed)
    return not odd


def _read(packed: Bytes, kind: str) -> Floats:
    """(B, bytes of a block) contiguous → (B · weights,)."""
    from speechkit.export import kquants_read as reader

    about = KINDS[kind]
    x = np.empty(len(packed) * about.weights, np.float32)
    scales = np.full((len(packed), 2), -0.0, np.float32)  # a minimum of -0 changes no sum, not even -0
    scales[:, : len(about.halves)] = _halves(packed, kind)
    if kind == "Q6_K":
        reader.read_six(packed, scales, x)
    elif kind == "Q8_0":
        reader.read_eight(packed, scales, x)
    elif about.weights == 256:
        reader.read_affine(packed, scales, kind == "Q5_K", x)
    else:
        begin = 2 * len(about.halves)
        middle = np.int32(0 if about.affine else about.top)
        reader.read_nibbles(packed, scales, begin, about.bytes - begin > 16, middle, x)
    return x


def _halves(packed: Bytes, kind: str) -> NDArray[np.float16]:
    """d, and the minimum's scale where there is one, of each block: (B, 1 or 2)."""
    first, *others = KINDS[kind].halves  # one after the other
    return packed.view(np.float16)[:, first // 2 : first // 2 + 1 + len(others)]


def _on_gpu(x: Any, kind: str) -> Bytes:
    import torch
    from speechkit_kernels.k_quant import k_quant

    if not bool(torch.isfinite(x).all()):
        raise _not_finite(_floats(x), 0)
    packed: Bytes = k_quant(x.detach(), kind).cpu().numpy()
    _check_blocks(x, packed.reshape(-1, BYTES[kind]), True, kind, 0)
    return packed


def _share_out(work: Callable[[slice], None], count: int, width: int, threads: int | None) -> None:
    """`work` on slices of rows, in as many threads as are wanted; the first error is raised."""
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    if threads < 1:
        raise PlanError(f"threads is {threads}; give 1 or more")
    weights = min(CHUNK, max(CHUNK // 16, count * width // (4 * threads)))
    rows = max(1, weights // width)
    parts = [slice(first, min(first + rows, count)) for first in range(0, count, rows)]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        for _ in pool.map(work, parts):
            pass


def _is_tensor(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _floats(x: Any) -> Floats:
    """Contiguous float32 on the CPU; x itself where it is that already."""
    if _is_tensor(x):
        import torch

        return x.detach().to("cpu", torch.float32).contiguous().numpy()
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused
        return np.ascontiguousarray(x, np.float32)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise PlanError(f"kind is {kind!r}; give one of {', '.join(KINDS)}")


def _check(x: Any, kind: str) -> tuple[int, int]:
    _check_kind(kind)
    if not _is_tensor(x) and not isinstance(x, np.ndarray):
        raise PlanError(f"x is a {type(x).__name__}; give a NumPy array or a torch tensor (N, K)")
    name = str(x.dtype).removeprefix("torch.")
    if name not in ("float16", "bfloat16", "float32", "float64"):
        raise PlanError(f"x is {name}; give float32, bfloat16, float16 or float64")
    if x.ndim != 2:
        raise PlanError(f"x has shape {tuple(x.shape)}; wanted (N, K)")
    if x.shape[1] % BLOCK[kind]:
        fitting = [other for other in KINDS if x.shape[1] % BLOCK[other] == 0]
        raise PlanError(
            f"rows of {x.shape[1]} weights are no whole blocks of {kind}, which hold {BLOCK[kind]}; "
            + (f"of this width can be {', '.join(fitting)}" if fitting else "keep these weights in F16")
        )
    return x.shape[0], x.shape[1]


def _check_importance(importance: Any, width: int) -> Floats:
    given = _floats(importance)
    if given.shape != (width,):
        raise PlanError(f"importance has shape {given.shape}; the weights have {width} columns: give ({width},)")
    wrong = ~(np.isfinite(given) & (given >= 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise PlanError(f"importance of column {at} is {given[at]}; each is a finite number, 0 or more")
    return given


def _check_blocks(x: Any, blocks: Bytes, finite: bool, kind: str, first: int) -> None:
    """Raise ExportError where a weight is not finite, or a block's scale is not. x: the rows from `first` on."""
    halves = (_halves(blocks, kind).view(np.uint16) & 0x7C00) == 0x7C00
    if finite and not halves.any():
        return
    endless = halves.any(axis=1)
    x = _floats(x)
    if not np.isfinite(x).all():
        raise _not_finite(x, first)
    per_row, size = x.shape[1] // BLOCK[kind], BLOCK[kind]
    at = int(endless.argmax()) if endless.any() else int(np.abs(x).argmax()) // size
    row, column = at // per_row, at % per_row * size
    largest = np.abs(x[row, column : column + size]).max()
    raise ExportError(
        f"row {first + row}, columns {column} to {column + size - 1} of x reach {largest:.4g}: the scale of a {kind} "
        "block is a float16, which ends at 65504. Weights like these are broken; F32 can hold them"
    )


def _not_finite(x: Floats, first: int) -> ExportError:
    wrong = ~np.isfinite(x)
    row, column = (int(part) for part in np.unravel_index(int(wrong.argmax()), x.shape))
    return ExportError(
        f"row {first + row}, column {column} of x is {x[row, column]} ({int(wrong.sum())} such among these rows): no "
        "quantised type has a code for it. The model is broken; look for where its training diverged"
    )
