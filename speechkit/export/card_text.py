"""Markdown of a model card in parts: front matter, title and sections; taken apart, joined, put together again.

In: text. Out: text. Which sections are written anew at every push is said here, so that all others survive it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Page", "Section", "carried_over", "joined", "read_page", "with_rows_of"]

FRONT = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
UNFILLED = "[More Information Needed]"  # how peft and transformers mark what nobody wrote
UNSAID = "More information needed for further recommendations."  # and close what says nothing of this model

# titles of what a run or a push writes: on the Hub such a section is the last push's, any other is somebody's own
WRITTEN = frozenset({
    "Use it", "Exported files", "How it was checked", "How well it does", "More results", "What it was trained on",
    "Data report", "Configuration", "Repeat it", "Hardware", "Licence", "Files", "Framework versions",
})  # fmt: skip


FIRST = ("Use it", "Exported files", "How it was checked")  # after the opening, in a card that lacks them


@dataclass(frozen=True)
class Section:
    """From one heading of the second level to the next; `title` is "" for what stands before the first."""

    title: str
    text: str  # the heading included


@dataclass(frozen=True)
class Page:
    """A card in parts."""

    front: dict[str, Any]
    sections: tuple[Section, ...]  # the first has no title: the name of the model and what stands under it

    def text(self) -> str:
        """The body, without the front matter."""
        return "\n\n".join(section.text.strip("\n") for section in self.sections if section.text.strip()) + "\n"


def read_page(text: str, where: str = "README.md") -> Page:
    """Markdown with or without front matter → its parts. Raises ExportError for front matter that is no mapping."""
    import yaml  # type: ignore[import-untyped]

    plain = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = FRONT.match(plain)
    front: Any = {}
    if found:
        try:
            front = yaml.safe_load(found[1]) or {}
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" near line {mark.line + 2}" if mark else ""
            raise ExportError(
                f"the front matter of {where} is no YAML{line}: put it right between the --- lines"
            ) from error
        if not isinstance(front, dict):
            raise ExportError(f"the front matter of {where} is a {type(front).__name__}, not names with values")
        plain = plain[found.end() :]
    return Page(front, tuple(_sections(_filled(plain))))


def joined(page: Page, written: Iterable[Section]) -> Page:
    """`page` with the sections of the push: each in the place of what it renews, else `FIRST` first, others last."""
    fresh = {section.title: section for section in written}
    kept = [fresh.pop(section.title, section) for section in page.sections]
    first = [fresh.pop(title) for title in FIRST if title in fresh]
    return replace(page, sections=(*kept[:1], *first, *kept[1:], *fresh.values()))


def carried_over(page: Page, there: Page, pushed: Sequence[str] = ()) -> tuple[Page, tuple[str, ...]]:
    """`page` with the sections that somebody wrote into the card on the Hub, and their titles; not those `pushed`."""
    have = {section.title for section in page.sections} | WRITTEN | set(pushed)
    more = [section for section in there.sections if section.title not in have]
    front = {name: value for name, value in there.front.items() if name not in page.front}
    return Page(page.front | front, (*page.sections, *more)), tuple(section.title for section in more)


def with_rows_of(page: Page, there: Page, files: Sequence[str]) -> Page:
    """`page` with the rows that the tables of the card on the Hub have for `files`, which stay in the repository."""
    online = {section.title: section.text for section in there.sections}
    starts = tuple(f"| `{name}` |" for name in files)
    made = []
    for section in page.sections:
        rows = [row for row in online.get(section.title, "").split("\n") if starts and row.startswith(starts)]
        lines = section.text.split("\n")
        last = max((number for number, row in enumerate(lines) if row.startswith("|")), default=-1)
        renew = section.title in WRITTEN and last >= 0
        made.append(
            replace(section, text="\n".join([*lines[: last + 1], *rows, *lines[last + 1 :]])) if renew else section
        )
    return replace(page, sections=tuple(made))


def _sections(text: str) -> list[Section]:
    parts: list[Section] = []
    rows: list[str] = []
    title, fenced = "", False
    for row in text.split("\n"):
        fenced ^= row.lstrip().startswith(("```", "~~~"))
        found = None if fenced else HEADING.match(row)
        if found and len(found[1]) == 2:
            parts.append(Section(title, "\n".join(rows)))
            title, rows = found[2], []
        rows.append(row)
    return [*parts, Section(title, "\n".join(rows))]


def _filled(text: str) -> str:
    """Without the parts of a template that nobody filled in; a text that is no template comes back as it is."""
    if UNFILLED not in text:
        return text
    chunks: list[tuple[int, list[str]]] = [(1, [])]
    for row in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).split("\n"):
        found = HEADING.match(row)
        if found:
            chunks.append((len(found[1]), []))
        chunks[-1][1].append(row)
    kept: list[tuple[int, str]] = []
    for level, rows in reversed(chunks):
        body = "\n".join(rows if not HEADING.match(rows[0] if rows else "") else rows[1:])
        empty = not body.strip()
        unsaid = body.strip().endswith(UNSAID) and "\n" not in body.strip()
        if UNFILLED in body or unsaid or (empty and not (kept and kept[-1][0] > level) and level > 1):
            continue
        kept.append((level, "\n".join(rows)))
    return "\n".join(text for _, text in reversed(kept))
