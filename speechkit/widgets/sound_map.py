"""Points with a sound each → a map in the notebook: hover for the text, click to hear. Its twins: static SVG and text.

In: (N, 2) points, N sounds, texts and labels. Shows projections of embeddings. The sounds stay in Python: the view asks
for one when it is clicked (`{"kind": "audio", "row": 3}`), and it comes as one binary message, never in a saved file.
Uses only what ipywidgets 7.7 and 8 share. Knows no torch.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets as t

from speechkit import audio as sound
from speechkit.errors import DataError, SpeechkitError
from speechkit.widgets.palette import KINDS, SOFT, card, legend_of
from speechkit.widgets.player import MIME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.widgets.player import Format

__all__ = ["SoundMap", "map_html", "map_text", "placed", "sound_map"]

STATIC = Path(__file__).parent / "static"
WIDE, TALL, EDGE = 640, 360, 24  # of the picture, live and static
SIZE, LEAST = 5.0, 3.0  # of a point: among few, and among thousands
NAMED = 400  # beyond so many points the static twin draws them without their texts: it is saved with the notebook
COMPARED = 2000  # up to so many points the twin says how often neighbours share their label


def sound_map(
    points: Any, sounds: Sequence[Any] | None, texts: Sequence[Any], labels: Sequence[Any], title: str = ""
) -> SoundMap:
    """A map of `points` (N, 2); `sounds` (anything `audio.load` takes) are read when they are clicked.

    A sound may be None, or all of them: such points are read and not heard. Each label has its own shape and colour;
    beyond eight, the rarer ones share "other". Raises DataError for lists of different lengths, points of another shape
    or without a place (NaN).
    """
    spots = _points(points)
    heard = [None] * len(spots) if sounds is None else list(sounds)
    if len({len(spots), len(heard), len(texts), len(labels)}) > 1:
        raise DataError(
            f"{len(spots)} points, {len(heard)} sounds, {len(texts)} texts and {len(labels)} labels; give one of each"
        )
    return SoundMap(spots, heard, list(map(str, texts)), list(map(str, labels)), title)


class SoundMap(anywidget.AnyWidget):
    """The live widget; make it with :func:`sound_map`. `selected` is the row last clicked, -1 for none."""

    _esm = STATIC / "sound_map.js"
    _css = STATIC / "sound_map.css"
    _ipython_display_ = None  # as in Player: ipywidgets 7 would hide the twins

    title = t.Unicode("").tag(sync=True)
    points = t.List(t.List(t.Float())).tag(sync=True)  # (N, 2), where in the picture
    texts = t.List(t.Unicode()).tag(sync=True)
    labels = t.List(t.Unicode()).tag(sync=True)
    kinds = t.List(t.Int()).tag(sync=True)  # of each point, into legend
    legend = t.List(t.Dict()).tag(sync=True)  # name, count, and how it is drawn
    size = t.Float(SIZE).tag(sync=True)  # of a point
    mute = t.Bool(False).tag(sync=True)  # no point has a sound
    selected = t.Int(-1).tag(sync=True)

    def __init__(
        self, points: NDArray[np.floating], sounds: list[Any], texts: list[str], labels: list[str], title: str
    ) -> None:
        names, kinds = legend_of(labels)
        counts = Counter(kinds)
        self._sounds = sounds
        self._html = map_html(points, texts, labels, title)
        self._text = map_text(points, labels, title)
        super().__init__(
            title=title,
            points=[[round(float(x), 1), round(float(y), 1)] for x, y in placed(points)],
            texts=texts,
            labels=labels,
            kinds=kinds,
            legend=[_key(kind, name, counts[kind]) for kind, name in enumerate(names)],
            size=_size(len(points)),
            mute=all(each is None for each in sounds),
        )
        self.on_msg(self._answer)

    def audio_bytes(self, row: int, form: Format = "opus") -> bytes:
        """The sound of one point as the view gets it.

        Raises DataError where there is no such point or it has no sound, AudioError where its sound cannot be read.
        """
        if not 0 <= row < len(self._sounds):
            raise DataError(f"there is no point {row}; the map has {len(self._sounds)}, counted from 0")
        if self._sounds[row] is None:
            raise DataError("this point has no sound")
        return sound.encode(sound.load(self._sounds[row]), format=form)

    def _answer(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if content.get("kind") != "audio" or not isinstance(row := content.get("row"), int):
            return
        form: Format = "opus" if content.get("opus") else "wav"
        try:
            data = self.audio_bytes(row, form)
        except SpeechkitError as error:  # told where the click was, not in the kernel's log
            self.send({"kind": "failed", "row": row, "reason": str(error)})
            return
        self.send({"kind": "audio", "row": row, "mime": MIME[form]}, buffers=[data])

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**data, "text/html": self._html, "text/plain": self._text}, metadata

    def __repr__(self) -> str:
        return self._text


def placed(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 2) → places in a picture of WIDE x TALL: centred, as large as fits, y upwards.

    One scale for both directions, so that distances can be compared across the picture.
    """
    if not len(points):
        return np.zeros((0, 2))
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([WIDE - 2 * EDGE, TALL - 2 * EDGE])
    spread = high - low
    scale = min((r / s for r, s in zip(room, spread, strict=True) if s > 0), default=0.0)
    return (points - (low + high) / 2) * [scale, -scale] + [WIDE / 2, TALL / 2]


def map_html(points: NDArray[np.floating], texts: Sequence[str], labels: Sequence[str], title: str = "") -> str:
    """The map as static HTML: an SVG with a tooltip per point (up to 400), and its legend. Every text is escaped."""
    names, kinds = legend_of(labels)
    size = _size(len(points))
    shapes = [KINDS[kind].path(x, y, size) for (x, y), kind in zip(placed(points), kinds, strict=True)]
    if len(points) > NAMED:
        joined = ("".join(d for d, of in zip(shapes, kinds, strict=True) if of == kind) for kind in range(len(names)))
        marks = "".join(f'<path d="{d}" style="{_fill(kind)}"/>' for kind, d in enumerate(joined))
    else:
        marks = "".join(
            f'<path d="{d}" style="{_fill(kind)}"><title>{escape(f"{text} ({label})")}</title></path>'
            for d, kind, text, label in zip(shapes, kinds, texts, labels, strict=True)
        )
    keys = " &nbsp; ".join(
        f'<svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true">'
        f'<path d="{KINDS[kind].path(0, 0, SIZE)}" style="{_fill(kind)}"/></svg> {escape(name)}'
        for kind, name in enumerate(names)
    )
    head = f"<strong>{escape(title)}</strong>" if title else ""
    told = escape(map_text(points, labels, title))
    soft = f"font-size:12.5px;color:{SOFT.light};color:{SOFT.css}"
    return (
        f'<section aria-label="Map of sounds" style="{card()}">{head}'
        f'<svg viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="{told}" style="display:block;width:100%">{marks}'
        "</svg>"
        f'<div style="font-size:13px">{keys}</div><div style="{soft}">Sounds play in a live notebook.</div></section>'
    )


def map_text(points: NDArray[np.floating], labels: Sequence[str], title: str = "") -> str:
    """What the map shows, in words: how many points of each label, and how often a point's neighbour has its label."""
    counts = Counter(labels).most_common()
    shown = ", ".join(f"{name} {count}" for name, count in counts[: len(KINDS)])
    rest = f", {len(counts) - len(KINDS)} more" if len(counts) > len(KINDS) else ""
    told = f"{title}: " if title else ""
    told += f"{len(points)} points" + (f"; {shown}{rest}" if shown else "")
    if not 2 <= len(points) <= COMPARED:
        return told
    names = np.array(labels)
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)  # (N, N)
    np.fill_diagonal(squares, np.inf)
    same = float((names[squares.argmin(axis=1)] == names).mean())
    return f"{told}; the nearest point has the same label in {same:.0%}"


def _points(points: Any) -> NDArray[np.float64]:
    try:
        spots = np.asarray(points, float)
    except (TypeError, ValueError) as error:
        raise DataError(f"points cannot be read as numbers ({error}); give them as (N, 2)") from error
    if not spots.size:
        return np.zeros((0, 2))
    if spots.ndim != 2 or spots.shape[1] != 2:
        raise DataError(
            f"points have shape {spots.shape}; give them as (N, 2): `evaluation.projection.project` makes such points"
        )
    lost = np.flatnonzero(~np.isfinite(spots).all(axis=1))
    if len(lost):
        raise DataError(f"point {lost[0]} is {spots[lost[0]].tolist()}: NaN and infinity have no place on a map")
    return spots


def _size(count: int) -> float:
    """Points shrink as they get many, so that a crowd still shows where it is thickest."""
    return round(float(np.clip(SIZE * (NAMED / max(count, 1)) ** 0.5, LEAST, SIZE)), 2)


def _key(kind: int, name: str, count: int) -> dict[str, Any]:
    drawn = KINDS[kind]
    return {"name": name, "count": count, "path": drawn.path(0, 0, SIZE), "paint": [drawn.shade.light, drawn.shade.css]}


def _fill(kind: int) -> str:
    shade = KINDS[kind].shade
    return f"fill:{shade.light};fill:{shade.css}"
