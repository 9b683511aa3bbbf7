"""Words with times → subtitle cues → SRT or WebVTT text. Pure functions over what has `text`, `start_s`, `end_s`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["UNSPACED", "Cue", "Timed", "cues", "join_words", "srt", "vtt"]

PAUSE_S = 0.8  # a pause this long starts a new cue: the speaker finished a phrase
# scripts written without spaces between words: kana, CJK ideographs (with extensions A–F), Thai, Lao, Khmer
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")
# full-width marks (、。「」《》，！？…) bring their own white space and take none beside them
_WIDE_MARK = re.compile(
    r"[\u3001-\u3003\u3008-\u3011\u3014-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)


class Timed(Protocol):
    """A word, a character or anything else with a text and times in seconds."""

    @property
    def text(self) -> str: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle on screen."""

    start_s: float
    end_s: float
    text: str


def join_words(texts: Iterable[str]) -> str:
    """Words → running text: a space between words, none between two characters of an unspaced script.

    Nor is there one beside a full-width mark: `你好`, `，`, `世界` → `你好，世界`.
    """
    out = ""
    for text in texts:
        out += text if not out or _touch(out[-1], text[:1]) else f" {text}"
    return out


def _touch(before: str, after: str) -> bool:
    """Whether two characters that stand in neighbouring words are written without a space."""
    if _WIDE_MARK.match(before) or _WIDE_MARK.match(after):
        return True
    return bool(UNSPACED.match(before) and UNSPACED.match(after))


def cues(words: Sequence[Timed], max_chars: int = 42, max_s: float = 6.0) -> list[Cue]:
    """Group words into cues that end at a pause, at `max_chars` characters or after `max_s` seconds."""
    groups: list[list[Timed]] = []
    for word in words:
        group = groups[-1] if groups else []
        text = join_words([*(w.text for w in group), word.text])
        fits = group and len(text) <= max_chars and word.end_s - group[0].start_s <= max_s
        if fits and word.start_s - group[-1].end_s < PAUSE_S:
            group.append(word)
        else:
            groups.append([word])
    return [Cue(g[0].start_s, max(g[-1].end_s, g[0].start_s), join_words(w.text for w in g)) for g in groups]


def srt(items: Sequence[Cue]) -> str:
    """SubRip: numbered blocks, comma before the milliseconds."""
    blocks = (
        f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{cue.text}\n"
        for number, cue in enumerate(items, 1)
    )
    return "\n".join(blocks)


def vtt(items: Sequence[Cue]) -> str:
    """WebVTT (W3C): header, full stop before the milliseconds, `&` and `<` escaped."""
    blocks = (f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{_escape(cue.text)}\n" for cue in items)
    return "\n".join(["WEBVTT\n", *blocks])


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
