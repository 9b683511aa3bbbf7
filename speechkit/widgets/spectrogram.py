"""Audio and transcript → a matplotlib figure: the spectrogram with each word over its stretch of time.

Words carry the player's marks: solid, dashed or wavy line, in the colour of their confidence.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from speechkit import audio as sound
from speechkit.errors import DataError
from speechkit.widgets.palette import ACCENT, INK, LEVELS, LINE, PAPER, SOFT, Level, Theme, figure_theme, level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from speechkit.types import Transcript, Word

__all__ = ["lanes", "power_db", "spectrogram"]

WINDOW, HOP = 400, 160  # samples at 16 kHz: 25 ms, 10 ms
RANGE_DB = 70.0  # fainter than this below the loudest cell is drawn as silence
WIDE_IN, POINTS = 11.0, 11.0  # figure width in inches, word size in points
LANE_IN = 0.34  # height of one row of words
CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "Malgun Gothic")


def spectrogram(
    audio: Any,
    transcript: Transcript,
    start_s: float = 0.0,
    end_s: float | None = None,
    theme: Theme | Literal["auto"] = "auto",
) -> Figure:
    """Figure of `audio` (anything `audio.load` takes) from `start_s` to `end_s` seconds (None: to the end).

    `theme="auto"` follows matplotlib's own background. The figure is closed for pyplot, so a notebook shows it once.
    Raises DataError when the range holds no audio.
    """
    from matplotlib import rc_context

    samples = sound.load(audio)
    length_s = len(samples) / sound.SAMPLE_RATE
    stop_s = length_s if end_s is None else min(end_s, length_s)
    if not 0 <= start_s < stop_s:
        raise DataError(
            f"start_s={start_s} and end_s={end_s} hold no audio: the recording is {length_s:.2f} s long; "
            "give 0 ≤ start_s < end_s within it"
        )
    cut = samples[int(start_s * sound.SAMPLE_RATE) : int(np.ceil(stop_s * sound.SAMPLE_RATE))]
    words = [word for word in transcript.words if word.start_s < stop_s and word.end_s > start_s]
    rows = lanes(words, (stop_s - start_s) / (WIDE_IN * 0.9))
    shown = figure_theme(theme)
    with rc_context({"font.family": _fonts(words)}):
        figure, over, under = _canvas(1 + max(rows, default=0), shown)
        _picture(under, cut, start_s, shown)
        _words(over, words, rows, (start_s, stop_s), shown)
        _lines(under, words, shown)
    return figure


def power_db(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Short-time power spectrum: samples (T,) at 16 kHz → (201, frames) float32 dB below the loudest cell.

    Hann windows of 25 ms every 10 ms, centred on their time; rows are 40 Hz apart, from 0 to 8 kHz.
    """
    padded = np.pad(samples.astype(np.float32), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1], axis=1)).T ** 2
    loudest = max(float(power.max(initial=0.0)), 1e-12)
    result: NDArray[np.float32] = (10 * np.log10(np.maximum(power / loudest, 1e-12))).astype(np.float32)
    return result


def lanes(words: Sequence[Word], seconds_per_inch: float) -> list[int]:
    """The row of each word, 0 nearest the picture, chosen so that no two labels in a row touch."""
    taken: list[float] = []  # where each lane is free again, in seconds
    rows = []
    for word in words:
        half = _width_in(word.text) * seconds_per_inch / 2
        middle = (word.start_s + word.end_s) / 2
        row = next((i for i, free in enumerate(taken) if free <= middle - half), len(taken))
        taken[row:] = [middle + half, *taken[row + 1 :]]
        rows.append(row)
    return rows


def _width_in(text: str) -> float:
    """About how wide a label is; a wide East Asian character takes two cells. Measuring would need a renderer."""
    cells = sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
    return (cells * 0.58 + 0.6) * POINTS / 72


def _canvas(rows: int, theme: Theme) -> tuple[Figure, Axes, Axes]:
    """Empty figure with its legend drawn; the axes of the words and, under it on the same seconds, of the picture."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    heights = [0.28, 0.25 + LANE_IN * rows, 2.5]
    figure, (key, over, under) = plt.subplots(
        3,
        1,
        figsize=(WIDE_IN, sum(heights) + 0.45),
        height_ratios=heights,
        layout=ConstrainedLayoutEngine(hspace=0.0, h_pad=0.02),
        facecolor=PAPER.of(theme),
    )
    plt.close(figure)  # pyplot would show it a second time
    over.sharex(under)
    _legend(key, theme)
    return figure, over, under


def _picture(axes: Axes, samples: NDArray[np.float32], start_s: float, theme: Theme) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    levels = power_db(samples)
    stops = [PAPER.of(theme), ACCENT.of(theme), INK.of(theme)]
    step_s = HOP / sound.SAMPLE_RATE
    axes.imshow(
        levels,
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
        cmap=LinearSegmentedColormap.from_list("speech", stops),
        vmin=-RANGE_DB,
        vmax=0,
        extent=(start_s - step_s / 2, start_s + (levels.shape[1] - 0.5) * step_s, -0.02, 8.02),
    )
    axes.set_ylim(0, 8)
    axes.set_xlabel("seconds", color=SOFT.of(theme))
    axes.set_ylabel("kHz", color=SOFT.of(theme))
    axes.tick_params(colors=SOFT.of(theme))
    axes.set_facecolor(PAPER.of(theme))
    for side in axes.spines.values():
        side.set_color(LINE.of(theme))


def _words(axes: Axes, words: Sequence[Word], rows: Sequence[int], span: tuple[float, float], theme: Theme) -> None:
    axes.set_xlim(*span)
    axes.set_ylim(-0.6, max(rows, default=0) + 1)
    axes.axis("off")
    for word, row in zip(words, rows, strict=True):
        kind = level(word.confidence)
        middle = (max(word.start_s, span[0]) + min(word.end_s, span[1])) / 2
        axes.text(middle, row + 0.12, word.text, ha="center", va="bottom", size=POINTS, color=INK.of(theme))
        if row:  # a leader from a raised word down to its span
            axes.plot([middle, middle], [-0.2, row + 0.06], lw=0.8, color=LINE.of(theme), zorder=0)
        _mark(axes, (max(word.start_s, span[0]), min(word.end_s, span[1])), -0.25, kind, theme)
    if not words:
        axes.text(sum(span) / 2, 0.1, "(no speech)", ha="center", va="bottom", size=POINTS, color=SOFT.of(theme))


def _mark(axes: Axes, span: tuple[float, float], y: float, kind: Level, theme: Theme) -> None:
    """A level's line over `span` in data units; the wave is as long on every axes of the figure's width."""
    left, right = axes.get_xlim()
    inset = min((right - left) * 0.002, (span[1] - span[0]) / 4)  # neighbours stay apart
    x = np.linspace(span[0] + inset, max(span[1] - inset, span[0] + inset), 200)
    dashes: Any = (0, (2.2, 1.1)) if kind.line == "dashed" else "solid"
    width = 1.8 if kind.line == "wavy" else 2.6
    if kind.line == "wavy":
        low, high = axes.get_ylim()
        tall_in = (high - low) / axes.get_position().height / cast("Figure", axes.figure).get_figheight()
        y = y + 0.035 * tall_in * np.sin((x - x[0]) * 2 * np.pi / ((right - left) * 0.012))
    axes.plot(x, np.broadcast_to(y, x.shape), lw=width, ls=dashes, color=kind.shade.of(theme))


def _lines(axes: Axes, words: Sequence[Word], theme: Theme) -> None:
    """Faint lines where words begin and end."""
    for word in words:
        for edge in (word.start_s, word.end_s):
            axes.axvline(edge, lw=0.7, alpha=0.45, color=level(word.confidence).shade.of(theme))


def _legend(axes: Axes, theme: Theme) -> None:
    """What the lines mean, at the right, in inches across the figure."""
    axes.axis("off")
    axes.set_xlim(0, WIDE_IN)
    axes.set_ylim(0, 1)
    for slot, kind in enumerate(LEVELS):
        left = WIDE_IN - 4.4 + slot * 1.5
        _mark(axes, (left, left + 0.4), 0.5, kind, theme)
        axes.text(left + 0.48, 0.5, kind.meaning, va="center", size=9, color=SOFT.of(theme))


def _fonts(words: Sequence[Word]) -> list[str]:
    """matplotlib's own fonts, and behind them an installed one for East Asian words if there are any."""
    import matplotlib as mpl
    from matplotlib import font_manager

    own = list(mpl.rcParams["font.family"])
    if not any(unicodedata.east_asian_width(char) in "WF" for word in words for char in word.text):
        return own
    installed = set(font_manager.get_font_names())
    return own + [name for name in CJK if name in installed]
