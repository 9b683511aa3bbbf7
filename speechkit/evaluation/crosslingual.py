"""Models × languages → who understands whom, zero-shot. In: models and clips with texts. Out: a `CrossLingual`.

Every model hears every set as it is: no training, no adaptation. A model writes in its own alphabet, so beside WER and
CER each cell has a romanised rate: both sides as broad sounds in Latin letters (`evaluation.romanize`), the reference
read by the rules of the set's language, the hypothesis by those of the model's; spaces do not count. That says how much
of the sound got through, whatever the spelling. A cell that cannot be had carries its reason; it never takes the matrix
down. Knows no torch: a model is whatever has `transcribe`, and names are loaded when their turn comes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import audio, demo
from speechkit.errors import DataError, SpeechkitError
from speechkit.evaluation import donors
from speechkit.evaluation.cells import Cell, Clip, check_figure, from_row, scored, sound_columns, to_row
from speechkit.evaluation.confusions import count_matrix, count_pairs
from speechkit.evaluation.romanize import Scheme, check_scheme
from speechkit.evaluation.written import write_text
from speechkit.terminal import width
from speechkit.types import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from speechkit.evaluation.cells import Figure
    from speechkit.evaluation.confusions import Characters, Confusions
    from speechkit.evaluation.donors import Donor, FamilyRate
    from speechkit.evaluation.metrics import Kind

__all__ = ["CrossLingual", "CrossOptions", "cross_evaluate"]

KIND = "cross-lingual evaluation"
# what a model may raise on a clip or a set: our own errors, a full memory, an operation that the device lacks
FAILURES = (SpeechkitError, OSError, RuntimeError, ValueError, MemoryError)


@dataclass(frozen=True)
class CrossOptions:
    """How a cross-lingual evaluation is made. Raises DataError for another scheme and a limit below 1."""

    scheme: Scheme = "sounds"  # of the romanised rate; "letters" compares spelling
    families: Mapping[str, str] = field(default_factory=dict)  # code → family, beside the built-in table
    limit: int | None = None  # clips per language, the first ones; None takes all
    languages: Mapping[str, str] = field(default_factory=dict)  # model → its language, where it does not know itself
    device: str = "auto"
    progress: Callable[[str], None] | None = None  # told one line as each cell is done

    def __post_init__(self) -> None:
        check_scheme(self.scheme)
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit is {self.limit}; give the number of clips per language, 1 or more, or None for all")


@dataclass(frozen=True, repr=False)
class CrossLingual:
    """The matrix of all cells; printing it gives the romanised rates with their intervals.

    `families` adds to the built-in table of `evaluation.families`.
    """

    cells: tuple[Cell, ...]
    scheme: Scheme = "sounds"
    families: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.language for cell in self.cells))

    @property
    def failures(self) -> tuple[Cell, ...]:
        """The cells without a report."""
        return tuple(cell for cell in self.cells if cell.report is None)

    def cell(self, model: str, language: str) -> Cell:
        """Raises DataError, naming what there is, for a model or language that was not evaluated."""
        for cell in self.cells:
            if (cell.model, cell.language) == (model, language):
                return cell
        raise DataError(
            f"no cell for model {model!r} and language {language!r}; models: {', '.join(self.models)}; "
            f"languages: {', '.join(self.languages)}"
        )

    def matrix(self, figure: Figure = "romanized") -> NDArray[np.float64]:
        """(M, L) rates, models down and languages across as in `models` and `languages`; NaN where there is none."""
        rates = [[self.cell(model, language).rate(figure) for language in self.languages] for model in self.models]
        return np.array([[np.nan if rate is None else rate.value for rate in row] for row in rates], np.float64)

    def donors(self, target: str, figure: Figure = "romanized") -> tuple[Donor, ...]:
        """Models of other languages ranked for `target`, the best first; see `evaluation.donors.ranked`.

        Raises DataError for a language on which no other model has a rate.
        """
        return donors.ranked(self.cells, target, figure, self.scheme, self.families)

    def by_family(self, figure: Figure = "romanized") -> tuple[FamilyRate, ...]:
        """Every pair of families → the rate over all its cells, a model's own language left out; the lowest first."""
        return donors.pooled_by_family(self.cells, figure, self.scheme, self.families)

    def confusions(self, model: str, language: str, n: int = 10) -> Confusions:
        """Which sounds of the language the model hears as which: the romanised alignment, most frequent first.

        Raises DataError for a cell without a report or without a romanisation.
        """
        return count_pairs(self._columns(model, language), n)

    def sounds(self, model: str, language: str) -> Characters:
        """The same as a whole matrix, for `rate_plots.character_map`. Raises what :meth:`confusions` raises."""
        return count_matrix([(said, heard) for _, said, heard in self._columns(model, language)])

    def _columns(self, model: str, language: str) -> list[tuple[Kind, str, str]]:
        cell = self.cell(model, language)
        if cell.romanized is None:
            raise DataError(f"{cell!r}; so there are no sounds to compare")
        return [column for row in sound_columns(cell, self.scheme) for column in row]

    def table(self, figure: Figure = "romanized") -> str:
        """The matrix as text with intervals, native cells marked, then the reasons of cells that are missing."""
        check_figure(figure)
        told = {"wer": "WER", "cer": "CER", "romanized": f"error rate of romanised {self.scheme}"}[figure]
        rows = [["", *self.languages]]
        for model in self.models:
            cells = [self.cell(model, language) for language in self.languages]
            rates = [cell.rate(figure) for cell in cells]
            shown = [f"{'*' if c.native else ''}{'–' if r is None else r}" for c, r in zip(cells, rates, strict=True)]
            rows.append([model, *shown])
        wide = [max(map(width, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(" " * (w - width(x)) + x for x, w in zip(row, wide, strict=True)) for row in rows)
        return "\n".join([f"{told}, 95 % intervals, * the model's own language", *lines, *self._remarks()])

    def _remarks(self) -> list[str]:
        """Reasons and notes, each once: `demo/xx on uk, pl: the model cannot be loaded: …`."""
        found: dict[str, dict[str, list[str]]] = {}
        for cell in self.cells:
            if why := cell.reason or cell.remark:
                found.setdefault(why, {}).setdefault(cell.model, []).append(cell.language)
        return [
            "; ".join(f"{model} on {', '.join(heard)}" for model, heard in places.items()) + f": {why}"
            for why, places in found.items()
        ]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """JSON with every hypothesis; the inverse of :meth:`load`. Raises OutputError where that cannot be done."""
        from speechkit import __version__

        head = {"kind": KIND, "speechkit": __version__, "scheme": self.scheme, "families": dict(self.families)}
        text = json.dumps(head | {"cells": [to_row(cell) for cell in self.cells]}, ensure_ascii=False, indent=1)
        return write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CrossLingual:
        """Read what :meth:`save` wrote; rates are computed anew. Raises DataError for another file."""
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
            if held["kind"] != KIND:
                raise ValueError(f"it holds a {held['kind']}")
            cells = tuple(from_row(row, held["scheme"]) for row in held["cells"])
            return cls(cells, held["scheme"], held["families"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no file that CrossLingual.save wrote: {error!r}") from error

    def __repr__(self) -> str:
        return self.table()


def cross_evaluate(
    models: Mapping[str, Any] | Sequence[Any],
    sets: Mapping[str, Any] | Sequence[str],
    options: CrossOptions | None = None,
) -> CrossLingual:
    """M models × L languages, every model on every set.

    models: names, folders or recognizers (anything with `transcribe(list) -> list`), or a dict of such by the name to
    show. sets: language → clips, which are `DemoClip`s, `training.data.Example`s or (audio, text) pairs; or language
    codes alone, for the embedded clips. A model that cannot be loaded, a language without clips and a model that fails
    on a set leave marked cells; a clip that cannot be read is left out of its set, and the cell's `note` says so.

    Raises DataError without a model or a language, and for a name that is given twice.
    """
    chosen = options or CrossOptions()
    named = _named(models)
    wanted = [sets] if isinstance(sets, str) else list(sets)
    if not named or not wanted:
        raise DataError(f"{len(named)} models and {len(wanted)} languages; give at least one of each")
    if len(set(wanted)) < len(wanted):
        raise DataError(f"languages {', '.join(map(str, wanted))}: one is given twice; give each once")
    gathered = {code: _gathered(code, sets[code] if isinstance(sets, Mapping) else None, chosen) for code in wanted}
    cells = []
    for name, source in named.items():
        model, reason = _loaded(source, chosen.device)
        language = chosen.languages.get(name) or getattr(model, "language", None)
        for code, clips in gathered.items():
            empty = Cell(name, language, code, reason or clips.reason, clips.note)
            cell = empty if empty.reason else _filled(empty, model, clips, chosen.scheme)
            cells.append(cell)
            if chosen.progress:
                chosen.progress(repr(cell))
    return CrossLingual(tuple(cells), chosen.scheme, dict(chosen.families))


@dataclass(frozen=True)
class _Set:
    """The clips of one language that can be read with their samples (T,), or the reason why there are none."""

    clips: tuple[Clip, ...] = ()
    sounds: tuple[Any, ...] = ()
    reason: str = ""
    note: str = ""


def _named(models: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Name to show → name, folder or recognizer."""
    if isinstance(models, Mapping):
        return {str(name): source for name, source in models.items()}
    given = [models] if isinstance(models, str | os.PathLike) or hasattr(models, "transcribe") else list(models)
    names = [os.fspath(m) if isinstance(m, str | os.PathLike) else str(getattr(m, "name", m)) for m in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"model {twice[0]!r} is given twice; give each once, or a dict of models by the name to show")
    return dict(zip(names, given, strict=True))


def _loaded(source: Any, device: str) -> tuple[Any, str]:
    """A model ready to transcribe, or None and the reason."""
    if hasattr(source, "transcribe"):
        return source, ""
    from speechkit.asr.model import load_asr  # brings torch, which the rest of this package does without

    try:
        return load_asr(source, device), ""
    except FAILURES as error:
        return None, f"the model cannot be loaded: {error}"


def _gathered(code: str, given: Iterable[Any] | None, options: CrossOptions) -> _Set:
    """A language's clips, decoded once for all models; what cannot be read is left out and noted."""
    try:
        rows = demo.clips(code) if given is None else list(given)
    except DataError as error:
        return _Set(reason=str(error))
    clips, sounds, faults = [], [], []
    for number, row in enumerate(rows[: options.limit], 1):
        try:
            clip, source = _clip(row, number)
            sound = audio.load(source)
        except SpeechkitError as error:
            faults.append(str(error))
            continue
        clips.append(replace(clip, seconds=len(sound) / audio.SAMPLE_RATE))
        sounds.append(sound)
    note = (
        f"{len(faults)} of {len(faults) + len(clips)} clips left out, the first because {faults[0]}" if faults else ""
    )
    if not clips:
        return _Set(reason=note or f"no clips for language {code!r}: the set is empty")
    return _Set(tuple(clips), tuple(sounds), note=note)


def _clip(row: Any, number: int) -> tuple[Clip, Any]:
    """A `DemoClip`, an `Example` or a pair → the clip and what to load."""
    pair = row if isinstance(row, tuple) and len(row) == 2 else None
    source = pair[0] if pair else getattr(row, "audio", getattr(row, "path", None))
    text = pair[1] if pair else getattr(row, "text", None)
    if source is None or not isinstance(text, str):
        raise DataError(f"clip {number} is {type(row).__name__}; give (audio, text) pairs, or rows with audio and text")
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    name = getattr(row, "name", "") or (path.name if path else str(number))
    return Clip(name, text, getattr(row, "speaker", "") or getattr(row, "voice", ""), audio=path), source


def _filled(cell: Cell, model: Any, clips: _Set, scheme: Scheme) -> Cell:
    """The cell with what `model` heard; a clip on which it fails counts as unheard, a set of such has no rate."""
    begun = time.perf_counter()
    heard, fault, failed = _heard(model, clips.sounds)
    wall_s = time.perf_counter() - begun
    if failed == len(heard):
        return replace(cell, reason=f"the model fails on every clip: {fault}")
    note = f"{failed} of {len(heard)} clips failed and count as unheard, the first because {fault}" if failed else ""
    audio_s = sum(clip.seconds for clip in clips.clips)
    told = "; ".join(filter(None, [cell.note, note]))
    return scored(replace(cell, note=told, audio_s=audio_s, wall_s=wall_s), clips.clips, heard, scheme)


def _heard(model: Any, sounds: Sequence[Any]) -> tuple[list[Transcript], str, int]:
    """Transcripts of all clips, the first failure, and how many clips failed; one by one only if all at once fail."""
    try:
        return _transcribed(model, list(sounds)), "", 0
    except FAILURES:
        pass
    rows, faults = [], []
    for sound in sounds:
        try:
            rows += _transcribed(model, [sound])
        except FAILURES as error:
            rows.append(Transcript(""))
            faults.append(str(error))
    return rows, faults[0] if faults else "", len(faults)


def _transcribed(model: Any, sounds: list[Any]) -> list[Transcript]:
    """Raises DataError unless the model gives one transcript, or text, per sound."""
    rows = list(model.transcribe(sounds))
    if len(rows) != len(sounds) or not all(isinstance(row, str | Transcript) for row in rows):
        kinds = ", ".join(sorted({type(row).__name__ for row in rows}))
        raise DataError(f"it gave {len(rows)} rows ({kinds}) for {len(sounds)} clips; a model gives a Transcript each")
    return [Transcript(row) if isinstance(row, str) else row for row in rows]
