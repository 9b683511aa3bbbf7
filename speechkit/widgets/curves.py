"""A training curve → what every view of it shows: figures, charts, lines, static HTML. Pure functions.

In: `training.curve.Curve`. Out: plain values. A quantity that was never reported has no figure and no chart; values
that are no number (a loss that has become NaN) are left out of the charts and named in the figures. Recognisers are
told by their error rates and seconds of audio, language models by the loss on rows kept out and by tokens. Knows no
widget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from speechkit.widgets.palette import ACCENT, KINDS, LEVELS, LINE, SOFT, Shade, card

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.training.curve import Curve, Point

__all__ = [
    "Chart", "Figure", "Series", "charts", "curve_html", "curve_text", "figures", "head_line", "pace", "point_line",
    "span", "token_pace",
]  # fmt: skip

WIDE, TALL = 300, 130  # of a chart; its plot keeps LEFT for the numbers, FOOT for the steps
LEFT, RIGHT, TOP, FOOT = 58, 8, 8, 18
KEPT = 160  # points of a series that are drawn: more than a chart has pixels to tell apart
LOG_FROM = 30.0  # a loss that falls by more than this is drawn on a logarithmic scale
PACE_S = 30.0  # seconds over which the pace is measured
LINES = 20  # of the plain table
DASHES = ' stroke-dasharray="5 3"'


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its name; `note` says more, `bad` that something is wrong with it."""

    name: str
    value: str
    note: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Series:
    """One line of a chart: `points` are (x, y) in the picture, `steps` and `told` the step and the value of each."""

    name: str
    points: tuple[tuple[float, float], ...]
    steps: tuple[int, ...]
    told: tuple[str, ...]
    dashed: bool = False

    @property
    def path(self) -> str:
        """SVG path; a single point is a short stroke, because a line of no length is not drawn."""
        if len(self.points) == 1:
            x, y = self.points[0]
            return f"M{x - 2:.1f} {y:.1f}H{x + 2:.1f}"
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Chart:
    """Lines over the steps with their scale; `ticks` are (y, number), `best` is where to draw a ring."""

    name: str
    series: tuple[Series, ...]
    ticks: tuple[tuple[float, str], ...]
    steps: tuple[str, str]
    best: tuple[float, float] | None = None


def figures(curve: Curve, going: bool = True) -> tuple[Figure, ...]:
    """The state of the run in a row of numbers; one that is not `going` has no time left to tell."""
    loss, rate, cer = (_latest(curve, name) for name in ("loss", "learning_rate", "cer"))
    found = []
    if loss is not None:
        broken = not math.isfinite(loss)
        ctc = _latest(curve, "tokens") is None
        note = ("see the CTC doctor" if ctc else "a lower learning rate may help") * broken
        found.append(Figure("loss", "not a number" if broken else f"{loss:.3g}", note, broken))
    if (kept_out := _latest(curve, "dev_loss")) is not None:
        best = curve.best
        note = f"best {best.dev_loss:.3g} at step {best.step}" if best and best.dev_loss is not None else ""
        broken = not math.isfinite(kept_out)
        found.append(Figure("kept-out loss", "not a number" if broken else f"{kept_out:.3g}", note, broken))
    if (wer := _latest(curve, "wer")) is not None and (best := curve.best) is not None:
        found.append(Figure("WER", _percent(wer), f"best {_percent(best.wer or 0.0)} at step {best.step}"))
    if cer is not None:
        found.append(Figure("CER", _percent(cer)))
    if (reward := _latest(curve, "reward")) is not None:
        found.append(Figure("reward", f"{reward:.3g}"))
    if rate is not None:
        found.append(Figure("learning rate", _short(rate)))
    if (speed := pace(curve)) is not None:
        found.append(Figure("audio per second", f"{speed:.3g} s"))
    if (speed := token_pace(curve)) is not None:
        found.append(Figure("tokens per second", _large(speed), "padding not counted"))
    if (memory := _latest(curve, "memory_mib")) is not None:
        found.append(Figure("memory", _mib(memory), "peak"))
    if curve.last is not None:
        left = curve.time_left_s if going else None
        found.append(Figure("time", span(curve.last.elapsed_s), "" if left is None else f"{span(left)} left"))
    return tuple(found)


def pace(curve: Curve) -> float | None:
    """Seconds of audio trained on per second, over the last half minute; None before two points tell."""
    return _pace([(point.elapsed_s, point.audio_s) for point in curve.points if point.audio_s is not None])


def token_pace(curve: Curve) -> float | None:
    """Useful tokens per second, over the last half minute; None before two points tell."""
    return _pace([(point.elapsed_s, float(point.tokens)) for point in curve.points if point.tokens is not None])


def _pace(known: list[tuple[float, float]]) -> float | None:
    if not known:
        return None
    end_s, heard = known[-1]
    from_s, before = next((pair for pair in reversed(known[:-1]) if pair[0] <= end_s - PACE_S), known[0])
    if end_s <= from_s:
        from_s, before = 0.0, 0.0
    return (heard - before) / (end_s - from_s) if end_s > from_s else None


def span(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def charts(curve: Curve) -> tuple[Chart, ...]:
    """Loss, error rates, learning rate and memory over the steps; a loss that falls far, on a logarithmic scale."""
    drawn = (
        _chart(curve, "loss", {"loss": "loss", "kept-out loss": "dev_loss"}, _short, log=True),
        _chart(curve, "errors", {"WER": "wer", "CER": "cer"}, _percent),
        _chart(curve, "reward", {"reward": "reward"}, _short),
        _chart(curve, "learning rate", {"learning rate": "learning_rate"}, _short),
        _chart(curve, "memory", {"memory": "memory_mib"}, _mib),
    )
    return tuple(chart for chart in drawn if chart is not None)


def point_line(point: Point, steps: int = 0) -> str:
    """One row of the plain table."""
    start = [f"{f'{point.step} of {steps}' if steps else point.step:>14}", f"{span(point.elapsed_s):>12}"]
    start += [f"{'' if point.loss is None else f'{point.loss:.4g}':>8}"]
    if _of_llm(point):
        more = [
            f"{'' if point.dev_loss is None else f'{point.dev_loss:.4g}':>8}",
            f"{'' if point.tokens is None else f'{point.tokens:,}':>12}",
            f"{'' if point.memory_mib is None else _mib(point.memory_mib):>10}",
        ]
    else:
        more = [f"{'' if rate is None else _percent(rate):>8}" for rate in (point.wer, point.cer)]
    end = f"{'' if point.learning_rate is None else _short(point.learning_rate):>9}"
    return "  ".join([*start, *more, end]).rstrip()


def head_line(point: Point | None = None) -> str:
    """What stands over the rows of the plain table; a language model has other columns, which `point` tells."""
    start = f"{'step':>14}  {'time':>12}  {'loss':>8}  "
    if point is not None and _of_llm(point):
        return f"{start}{'kept out':>8}  {'tokens':>12}  {'memory':>10}  {'rate':>9}"
    return f"{start}{'WER':>8}  {'CER':>8}  {'rate':>9}"


def _of_llm(point: Point) -> bool:
    return point.tokens is not None or point.dev_loss is not None


def curve_text(curve: Curve, title: str = "", state: str = "", going: bool = False) -> str:
    """Title, where the run is, and its table: the evaluations, or where there is none the latest points."""
    scored = [p for p in curve.points if p.wer is not None or p.dev_loss is not None] or list(curve.points)
    rows = (
        scored if len(scored) <= LINES else [scored[round(i * (len(scored) - 1) / (LINES - 1))] for i in range(LINES)]
    )
    if curve.last is not None and (not rows or rows[-1] is not curve.last):
        rows = [*rows, curve.last]
    told = ", ".join(
        f"{each.name} {each.value}{f' ({each.note})' if each.note else ''}" for each in figures(curve, going)
    )
    top = " · ".join(part for part in (title, state, told) if part) or "no point yet"
    table = [head_line(rows[-1]), *(point_line(point, curve.steps) for point in rows)] if rows else []
    return "\n".join([top, *table])


def curve_html(curve: Curve, title: str = "", state: str = "", going: bool = False) -> str:
    """The run as static HTML: figures in a row, and the charts as SVG. Every text is escaped."""
    soft = f"color:{SOFT.light};color:{SOFT.css}"
    numbers = "".join(
        f'<div style="margin-right:26px"><div style="font-size:12.5px;{soft}">{escape(each.name)}</div>'
        f'<div style="font-size:19px">{"⚠ " * each.bad}{escape(each.value)}</div>'
        f'<div style="font-size:12.5px;{soft}">{escape(each.note)}</div></div>'
        for each in figures(curve, going)
    )
    pictures = "".join(f'<div style="flex:1 1 240px;max-width:300px">{_svg(chart)}</div>' for chart in charts(curve))
    head = " &nbsp; ".join(
        part for part in (f"<strong>{escape(title)}</strong>" * bool(title), f'<span style="font-size:13px;{soft}">'
        f"{escape(state)}</span>" * bool(state)) if part
    )  # fmt: skip
    return (
        f'<section aria-label="Training" style="{card()}">{head}'
        f'<div style="display:flex;flex-wrap:wrap;margin:8px 0">{numbers or "no point yet"}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px 22px">{pictures}</div></section>'
    )


def _svg(chart: Chart) -> str:
    soft, line = f"fill:{SOFT.light};fill:{SOFT.css}", f"stroke:{LINE.light};stroke:{LINE.css}"
    grid = "".join(
        f'<path d="M{LEFT} {y:.1f}H{WIDE - RIGHT}" style="{line}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" font-size="11" style="{soft}">{escape(number)}</text>'
        for y, number in chart.ticks
    )
    feet = "".join(
        f'<text x="{x}" y="{TALL - 3}" text-anchor="{anchor}" font-size="11" style="{soft}">{text}</text>'
        for x, anchor, text in ((LEFT, "start", chart.steps[0]), (WIDE - RIGHT, "end", chart.steps[1]))
    )
    shades = (ACCENT, KINDS[1].shade)
    lines = "".join(
        f'<path d="{each.path}" fill="none" stroke-width="2"{DASHES * each.dashed} style="{_stroke(shade)}"/>'
        for each, shade in zip(chart.series, shades, strict=False)
    )
    ring = ""
    if chart.best:
        x, y = chart.best
        green = _stroke(LEVELS[0].shade)
        ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke-width="2" style="{green}"/>'
    names = " · ".join(f"{each.name}{' (dashed)' * each.dashed}" for each in chart.series)
    told = ", ".join(
        f"{s.name} {s.told[0]} at step {s.steps[0]}, {s.told[-1]} at step {s.steps[-1]}" for s in chart.series
    )
    return (
        f'<div style="font-size:12.5px;font-weight:600">{escape(names)}{"; ○ best" * bool(ring)}</div>'
        f'<svg viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="{escape(told)}" style="display:block;width:100%">'
        f"{grid}{feet}{lines}{ring}</svg>"
    )


def _stroke(shade: Shade) -> str:
    return f"stroke:{shade.light};stroke:{shade.css}"


def _latest(curve: Curve, name: str) -> float | None:
    return next((value for point in reversed(curve.points) if (value := getattr(point, name)) is not None), None)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _large(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mib(value: float) -> str:
    """`812 MiB`, `1.5 GiB`."""
    return f"{value:.0f} MiB" if value < 1000 else f"{value / 1024:.3g} GiB"


def _short(value: float) -> str:
    """Three digits that matter, `3e-05` as `3e-5`."""
    mantissa, exponent, power = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(power)}" if exponent else mantissa


def _chart(curve: Curve, name: str, wanted: dict[str, str], told: Any, log: bool = False) -> Chart | None:
    rows = {label: _thin(_values(curve, key)) for label, key in wanted.items()}
    rows = {label: pairs for label, pairs in rows.items() if pairs}
    if not rows:
        return None
    values = [value for pairs in rows.values() for _, value in pairs]
    scale = _scale(values, log)
    end = max(curve.steps, curve.last.step if curve.last else 0, 1)

    def place(step: int, value: float) -> tuple[float, float]:
        return round(LEFT + step / end * (WIDE - LEFT - RIGHT), 1), round(_y(scale.share(value)), 1)

    series = tuple(
        Series(
            label,
            tuple(place(step, value) for step, value in pairs),
            tuple(step for step, _ in pairs),
            tuple(told(value) for _, value in pairs),
            dashed=number > 0,
        )
        for number, (label, pairs) in enumerate(rows.items())
    )
    best = curve.best if {"WER", "kept-out loss"} & rows.keys() else None
    score = (best.wer if "WER" in rows else best.dev_loss) if best else None
    ring = place(best.step, score) if best and score is not None and math.isfinite(score) else None
    kind = f"{name}, logarithmic" if scale.kind == "log" else name
    return Chart(
        kind,
        series,
        tuple((round(_y(scale.share(tick)), 1), told(tick).replace(".0 ", " ")) for tick in scale.ticks),
        ("0", str(end)),
        ring,
    )


@dataclass(frozen=True)
class _Scale:
    kind: Literal["linear", "log"]
    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """0 at the foot of the plot, 1 at its top."""
        if self.kind == "log":
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def _scale(values: Sequence[float], log: bool) -> _Scale:
    low, high = min(values), max(values)
    if log and low > 0 and high / low > LOG_FROM:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        stride = max(1, math.ceil((last - first) / 4))
        last = first + stride * math.ceil((last - first) / stride)
        return _Scale("log", 10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, stride)))
    base = min(low, 0.0)
    step = _nice((high - base) / 2 or 0.5)
    bottom = math.floor(base / step) * step
    count = max(1, math.ceil((high - bottom) / step - 1e-9))
    return _Scale("linear", bottom, bottom + count * step, tuple(bottom + step * i for i in range(count + 1)))


def _nice(value: float) -> float:
    """The next larger of 1, 2, 2.5 and 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= value * (1 - 1e-9))


def _y(share: float) -> float:
    return TOP + (1 - share) * (TALL - TOP - FOOT)


def _values(curve: Curve, name: str) -> list[tuple[int, float]]:
    pairs = ((point.step, getattr(point, name)) for point in curve.points)
    return [(step, value) for step, value in pairs if value is not None and math.isfinite(value)]


def _thin(pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most KEPT of them and the last: of each stretch its lowest and its highest, so that no spike is lost."""
    if len(pairs) <= KEPT:
        return pairs
    size = math.ceil(2 * len(pairs) / KEPT)
    kept = []
    for start in range(0, len(pairs), size):
        part = range(start, min(start + size, len(pairs)))
        kept += sorted({min(part, key=lambda i: pairs[i][1]), max(part, key=lambda i: pairs[i][1])})
    return [pairs[i] for i in sorted({*kept, 0, len(pairs) - 1})]
