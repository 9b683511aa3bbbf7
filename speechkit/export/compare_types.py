"""Which type of GGUF file: a model written in several, and for each its size beside what llama.cpp makes of it.

In: what `export_gguf` takes. Out: `Types`, which prints as a table and draws itself. Every file is compared with the
source; a type that does not hold its own threshold stays in the table, marked, which is what the table is for.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechkit import extras
from speechkit.errors import DataError, OutputError, PlanError
from speechkit.widgets.palette import ACCENT, LINE, PAPER, SOFT, Theme, figure_theme

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from speechkit.export.proof_report import Proof

__all__ = ["TYPES", "TypeRow", "Types", "compare_types", "relative_rmse"]

SAME = 1e-6  # nats: rounding of log-probabilities
TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")


@dataclass(frozen=True)
class TypeRow:
    """One file. What was not measured is NaN: where it could not be proved the verdict says so."""

    quant: str
    path: Path
    bytes: int
    bits_per_weight: float  # of the whole file, its tokenizer too
    rmse: float  # of all weights together, relative to their root mean square
    top1: float  # share of positions with the source's likeliest token
    kl: float  # nats, of the file from the source
    verdict: str


@dataclass(frozen=True, repr=False)
class Types:
    """Prints as a table, a row for each file; `plot()` draws size against agreement."""

    source: str
    rows: tuple[TypeRow, ...]

    def table(self) -> str:
        """A line for each type; KL in nats, RMSE relative to the weights' own size."""
        head = f"{'type':8}{'MiB':>10}{'bits/weight':>13}{'RMSE':>10}{'top-1':>9}{'KL':>11}  verdict"
        lines = [
            f"{row.quant:8}{row.bytes / 2**20:10,.2f}{row.bits_per_weight:13.2f}{row.rmse:10.2e}{row.top1:9.1%}"
            f"{row.kl:11.2e}  {row.verdict}"
            for row in self.rows
        ]
        return "\n".join([head, *lines])

    __str__ = table
    __repr__ = table

    def as_dict(self) -> dict[str, Any]:
        """JSON's types; files by their names."""
        return {"source": self.source, "rows": [{**asdict(row), "path": row.path.name} for row in self.rows]}

    def plot(self, theme: Theme | Literal["auto"] = "auto") -> Figure:
        """Size against KL, which is on a logarithmic axis; the labels have the share of the same likeliest tokens.

        Hollow marks did not hold their threshold. Raises DataError where no file was compared.
        """
        return _drawn(self, figure_theme(theme))


def compare_types(
    model_or_folder: Any,
    folder: str | os.PathLike[str],
    quants: Sequence[str] = TYPES,
    *,
    adapter: str | os.PathLike[str] | None = None,
    imatrix: Any = None,
    prompts: Sequence[Any] | None = None,
    name: str = "model",
) -> Types:
    """Write `folder`/`name`-TYPE.gguf for each of `quants`, compare each with its source and the others.

    Files that are there are replaced. Raises PlanError for no type or one that does not exist, and what `export_gguf`
    raises, but for a file that does not hold: that one is kept and marked. OutputError: `folder` cannot be made.
    """
    from speechkit.export.gguf import export_gguf
    from speechkit.export.mixture import kind_of

    extras.require("gguf", extra="export", purpose="writing GGUF")
    if not quants or isinstance(quants, str):
        raise PlanError(f"quants is {quants!r}; give a list of at least one type, such as ['Q4_K_M']")
    for quant in quants:
        kind_of(quant)
    place = Path(folder).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place} cannot be made: {error}; name another folder") from error
    exact = place / f".{name}-F32.gguf"
    more: dict[str, Any] = {"adapter": adapter, "overwrite": True}
    export_gguf(model_or_folder, exact, "F32", prove=False, **more)
    rows, source = [], name
    try:
        for quant in quants:
            path = place / f"{name}-{quant}.gguf"
            report = export_gguf(model_or_folder, path, quant, imatrix=imatrix, force=True, prompts=prompts, **more)
            proof = report.proof
            source = proof.source if proof is not None else source
            measured = _measured(proof)
            rows.append(
                TypeRow(quant, path, report.bytes, report.bits_per_weight, relative_rmse(path, exact), *measured)
            )
    finally:
        exact.unlink(missing_ok=True)
    return Types(source, tuple(rows))


def _measured(proof: Proof | None) -> tuple[float, float, str]:
    """top-1, KL, verdict."""
    if proof is None:
        return math.nan, math.nan, "unproved"
    top1, kl = (math.nan if value is None else value for value in (proof.top1, proof.kl))
    return top1, kl, proof.verdict


def relative_rmse(path: str | os.PathLike[str], exact: str | os.PathLike[str]) -> float:
    """Root mean square error of all matrices of a GGUF file beside a float32 one's, relative to theirs.

    Both are read by the gguf package's own code, tensor by tensor. Raises DataError where their tensors differ.
    """
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    coarse = {one.name: one for one in GGUFReader(path).tensors}
    fine = {one.name: one for one in GGUFReader(exact).tensors}
    if coarse.keys() != fine.keys():
        raise DataError(f"{path} and {exact} do not hold the same tensors: {sorted(coarse.keys() ^ fine.keys())[:4]}")
    error = size = 0.0
    for name, one in coarse.items():
        truth = dequantize(fine[name].data, fine[name].tensor_type).astype(np.float32).ravel()
        if one.shape.size < 2:
            continue  # norms and biases stay float32
        error += float(np.square(dequantize(one.data, one.tensor_type).ravel() - truth, dtype=np.float64).sum())
        size += float(np.square(truth, dtype=np.float64).sum())
    return math.sqrt(error / size) if size else 0.0


def _drawn(types: Types, theme: Theme) -> Figure:
    import matplotlib.pyplot as plt

    rows = [row for row in types.rows if math.isfinite(row.kl)]
    if not rows:
        raise DataError("no file was compared with its source, so there is nothing to draw; the verdicts say why")
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained", facecolor=PAPER.of(theme))
    plt.close(figure)  # or pyplot would show it a second time
    axes.set_facecolor(PAPER.of(theme))
    x, least = [row.bytes / 2**20 for row in rows], min((row.kl for row in rows if row.kl > SAME), default=SAME)
    y = [max(row.kl, least / 3) for row in rows]  # what is the same has no place on a logarithmic axis
    accent = ACCENT.of(theme)
    axes.plot(x, y, color=accent, lw=1.2, alpha=0.5)
    for row, at, loss in zip(rows, x, y, strict=True):
        axes.plot(at, loss, "o", ms=8, mec=accent, mfc=accent if row.verdict == "passed" else PAPER.of(theme))
        label = f"{row.quant}, top-1 {row.top1:.1%}" + (", KL 0" if row.kl <= SAME else "")
        axes.annotate(label, (at, loss), (8, 5), textcoords="offset points", color=SOFT.of(theme), fontsize=9)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.4 * max(x))
    axes.grid(color=LINE.of(theme), lw=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=SOFT.of(theme))
    axes.set_xlabel("size of the file in MiB (hollow: its threshold does not hold)", color=SOFT.of(theme))
    axes.set_ylabel("KL from the source in nats (logarithmic)", color=SOFT.of(theme))
    return figure
