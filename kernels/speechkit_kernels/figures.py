"""What was aimed at and what was measured of the kernels: the files of kernels/bench, read and set beside their floors.

    print(goals(card_named("H200")))       each aim, the best that the card allows, what a run reached or "not run"

The bench scripts write kernels/bench/results/*.json; the package holds the same files, so an installed copy shows them
too. Only what such a file says is shown, with its date. Needs neither torch nor Triton.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit_kernels import roofline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit_kernels.roofline import Card, Work

__all__ = ["GOALS", "Goal", "Stored", "Table", "goals", "k_quant_on_cpu", "points", "stored", "works"]

RESULTS = Path(__file__).parent / "results"
NOT_RUN = "not run"
SHORT = 26  # letters of a cell that is not broken over lines
M, H, INNER, V = 8192, 4096, 14336, 128_256  # tokens, width, inner width and vocabulary of a language model of 8 B


@dataclass(frozen=True, repr=False)
class Table:
    """Cells of text with titles, shown as HTML or as text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        lines = [self.head, *self.rows]
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        shown = ("  ".join(cell.ljust(room) for cell, room in zip(line, wide, strict=True)).rstrip() for line in lines)
        return "\n".join([self.title, *shown])

    def _repr_html_(self) -> str:
        head, body = _row(self.head, "th"), "".join(_row(cells, "td") for cells in self.rows)
        caption = f'<caption style="text-align:left;padding:4px;white-space:nowrap">{escape(self.title)}</caption>'
        return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"


def _row(cells: Sequence[str], tag: str) -> str:
    """One line of a table; short cells stay on one line, long ones break."""
    style = "text-align:left;padding:3px 14px 3px 4px"
    styles = [f"{style};white-space:nowrap" if len(cell) <= SHORT else style for cell in cells]
    made = (f'<{tag} style="{one}">{escape(cell)}</{tag}>' for one, cell in zip(styles, cells, strict=True))
    return f"<tr>{''.join(made)}</tr>"


@dataclass(frozen=True)
class Stored:
    """One file of results."""

    name: str
    date: str  # ISO 8601
    machine: str  # the GPU, or the CPU's architecture
    rows: tuple[dict[str, Any], ...] = field(repr=False)

    @property
    def day(self) -> str:
        return self.date[:10]


@dataclass(frozen=True)
class Goal:
    """One aim, the work that it is about, and which row of which file can tell."""

    what: str
    shape: str
    aim: str
    bench: str
    row: str  # title of the row
    work: Work | None = None  # None where the floor is another's time
    where: dict[str, Any] = field(default_factory=dict)  # what the row's shape must say

    def measured(self, results: Sequence[Stored]) -> tuple[Stored, dict[str, Any]] | None:
        """The file and its row, None where nobody has run it."""
        for found in results:
            for row in found.rows if found.name == self.bench else ():
                if row["title"] == self.row and all(row["shape"].get(k) == v for k, v in self.where.items()):
                    return found, row
        return None


MOVED = "≥ 85 % of a copy's rate"
BACK = "≥ 75 % of a copy's rate"
DENSE = {"S": 4096, "D": 128, "causal": True}

GOALS = (
    Goal("rms_norm", f"M {M}, H {H}", f"{MOVED}, ahead of torch.compile and Liger", "elementwise", "rms_norm forward",
         roofline.rms_norm(M, H)),
    Goal("rms_norm backward", f"M {M}, H {H}", BACK, "elementwise", "rms_norm backward",
         roofline.rms_norm(M, H, backward=True)),
    Goal("add + rms_norm", f"M {M}, H {H}", MOVED, "elementwise", "add + rms_norm forward",
         roofline.add_rms_norm(M, H)),
    Goal("rope", f"M {M}, 40 heads of 128", f"{MOVED}, ahead of torch.compile and Liger", "elementwise",
         "rope in place forward", roofline.rope(M, 40 * 128)),
    Goal("swiglu", f"M {M}, I {INNER}", f"{MOVED}, ahead of torch.compile and Liger", "elementwise", "swiglu forward",
         roofline.swiglu(M, INNER)),
    Goal("swiglu backward", f"M {M}, I {INNER}", BACK, "elementwise", "swiglu backward",
         roofline.swiglu(M, INNER, backward=True)),
    Goal("cross_entropy", f"M {M}, V {V}", "≥ 80 % of a copy's rate", "cross_entropy", "cross_entropy full",
         roofline.cross_entropy(M, V), {"V": V}),
    Goal("linear_cross_entropy", f"M {M}, H {H}, V {V}, frozen head", "≥ 1.15x transformers, ≤ 1/15 of its memory",
         "linear_cross_entropy", "linear_cross_entropy full", roofline.linear_cross_entropy(M, H, V),
         {"head": "frozen"}),
    Goal("flash_attention", "16,384 tokens, S 4096, D 128, causal", "≥ 75 % of cuDNN's rate", "flash_attention",
         "forward", roofline.attention(16_384, 2048, 4096), DENSE),
    Goal("attention dispatch", "24 shapes, this one S 4096, D 128", "within 5 % of the best; ≥ 1.5x the default SDPA",
         "attention", "dense", None, DENSE),
    Goal("nf4_linear, M 1", f"N {INNER}, K {H}", "≥ 4x dequantise + product", "nf4_linear", "forward",
         roofline.nf4_linear(1, INNER, H), {"M": 1, "N": INNER}),
    Goal("nf4_linear, M 16", f"N {INNER}, K {H}", "≥ 4x dequantise + product", "nf4_linear", "forward",
         roofline.nf4_linear(16, INNER, H), {"M": 16, "N": INNER}),
    Goal("nf4_linear, M 2048", f"N {INNER}, K {H}", "≤ 1.2x the bfloat16 product's time", "nf4_linear", "forward",
         roofline.nf4_linear(2048, INNER, H), {"M": 2048, "N": INNER}),
    Goal("nf4_linear, M 8192", f"N {INNER}, K {H}", "≤ 1.06x the bfloat16 product's time", "nf4_linear", "forward",
         roofline.nf4_linear(M, INNER, H), {"M": M, "N": INNER}),
    Goal("lora_linear, NF4 training", f"M {M}, N {H}, K {H}, R 16", "ahead of peft + bitsandbytes at ≤ 0.7x its memory",
         "lora_linear", "forward and backward", roofline.lora_linear(M, H, H, 16), {"M": M, "N": H, "W": "4-bit"}),
    Goal("wav2vec 2.0 base", "64 × 10 s", "≥ 1.5x transformers' SDPA", "wav2vec2", "base", roofline.wav2vec2(640)),
    Goal("wav2vec 2.0 large", "64 × 10 s", "≥ 1.4x transformers' SDPA", "wav2vec2", "large",
         roofline.wav2vec2(640, large=True)),
    Goal("ctc_align", "B 64", "≥ 20x a loop over torchaudio's", "ctc_align", "ctc_align", None, {"B": 64}),
    Goal("k_quant Q4_K", f"{H} × {INNER}", "≥ 1,000 million weights/s", "k_quant", "k_quant Q4_K",
         roofline.k_quant(H, INNER)),
)  # fmt: skip


def stored(folder: Path | None = None) -> tuple[Stored, ...]:
    """Every file of results, by name. Raises ValueError for one that is not of the bench."""
    found = []
    for path in sorted((folder or RESULTS).glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        try:
            machine = data["gpu"] if "gpu" in data else f"CPU, {data['machine']}"
            found.append(Stored(data["name"], data["date"], machine, tuple(data["rows"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path.name}: no result of kernels/bench: {error} is missing") from None
    return tuple(found)


def goals(card: Card, results: Sequence[Stored] | None = None) -> Table:
    """Each aim with the least time that `card` allows and what a run reached, on the GPU that the cell names."""
    results = stored() if results is None else results
    rows = []
    for goal in GOALS:
        floor = "–" if goal.work is None else f"{_time(goal.work.floor_us(card))}, {goal.work.bound(card)}"
        rows.append((goal.what, goal.shape, floor, goal.aim, _reached(goal, results)))
    dates = sorted({f"{one.machine}, {one.day}" for one in results if not one.machine.startswith("CPU")})
    when = f"measured on {'; '.join(dates)}" if dates else "no GPU run is stored"
    title = f"Aims and figures, bfloat16; {when}"
    return Table(title, ("kernel", "shape", f"floor on {card.name}", "aim", "measured"), tuple(rows))


def works() -> dict[str, Work]:
    """The works that have a floor of their own, by name, for a roofline."""
    return {goal.what: goal.work for goal in GOALS if goal.work is not None}


def points(card: Card, results: Sequence[Stored] | None = None) -> dict[str, float]:
    """Of each work that was run on that card, how many 10**12 operations a second it did."""
    results = stored() if results is None else results
    here = [one for one in results if card.name in re.split(r"\W+", one.machine)]  # an L40S is no L4
    found = {}
    for goal in GOALS:
        run = goal.measured(here)
        if run and goal.work is not None:
            found[goal.what] = goal.work.operations / _ours(run[1])["median_ms"] / 1e9
    return found


def k_quant_on_cpu(results: Sequence[Stored] | None = None) -> Table:
    """What was measured without a GPU: K-quants beside llama.cpp's, one thread each."""
    results = stored() if results is None else results
    run = next((one for one in results if one.name == "k_quant_cpu"), None)
    head = ("format", "ours, million weights/s", "llama.cpp", "equal blocks")
    if run is None:
        return Table(f"k_quant on a CPU: {NOT_RUN}", head, ())
    rows = []
    for row in run.rows:
        rates, equal = row["million_weights_per_s"], row["equal_blocks"]
        cells = (f"{rates[name]:.1f}" if name in rates else NOT_RUN for name in ("ours", "llama.cpp"))
        rows.append((row["kind"], *cells, NOT_RUN if equal is None else f"{equal:.1%}"))
    return Table(f"k_quant on a {run.machine}, one thread, {run.day}", head, tuple(rows))


def _ours(row: dict[str, Any]) -> dict[str, Any]:
    return next(iter(row["providers"].values()))


def _reached(goal: Goal, results: Sequence[Stored]) -> str:
    run = goal.measured(results)
    if run is None:
        return NOT_RUN
    result, row = run
    ours, *others = row["providers"].items()
    parts = [f"{_time(1000 * ours[1]['median_ms'])} on {result.machine}"]
    if ours[1].get("share_of_copy"):
        parts.append(f"{ours[1]['share_of_copy']:.0%} of a copy's rate")
    parts += [f"{one['ratio']:.2f}x {name}" for name, one in others]
    return ", ".join([*parts, *(f"{name} {NOT_RUN}" for name in row.get("not_run", {}))])


def _time(us: float) -> str:
    return f"{us / 1000:.3g} ms" if us >= 1000 else f"{us:.3g} µs"
