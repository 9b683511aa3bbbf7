"""Versions of a published model: numbers (Semantic Versioning 2.0.0), what changed between two, and the changelog.

In: tags of a repository, records of its releases. Out: the next version, Markdown, JSON. No network, no disk.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from functools import total_ordering
from typing import TYPE_CHECKING, Any, Literal

from speechkit.errors import ExportError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "CHANGELOG",
    "FIRST",
    "RECORDS",
    "Release",
    "Version",
    "changelog_entry",
    "differences",
    "latest_of",
    "next_version",
    "prepend_entry",
    "releases_from_json",
    "releases_to_json",
    "versions_of",
]

CHANGELOG, RECORDS = "CHANGELOG.md", "versions.json"  # for people, and for the next push
FORMAT = "speechkit versions 1"
SHAPE = re.compile(r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?")
MINUS = "−"


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """Three numbers and, before a release, identifiers such as "rc.1"; ordered as Semantic Versioning 2.0.0 says."""

    major: int
    minor: int
    patch: int
    pre: str = ""

    @classmethod
    def read(cls, text: str) -> Version:
        """ "v1.2.3", "1.2.3" or "v1.2.3-rc.1" → a version. Raises PlanError for anything else."""
        found = SHAPE.fullmatch(text)
        if found is None:
            raise PlanError(f"version is {text!r}; it can be 'auto' or three numbers, as in 'v0.2.0' or 'v1.0.0-rc.1'")
        return cls(int(found[1]), int(found[2]), int(found[3]), found[4] or "")

    def __str__(self) -> str:
        return f"v{self.major}.{self.minor}.{self.patch}" + (f"-{self.pre}" if self.pre else "")

    def __lt__(self, other: Version) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[Any, ...]:
        # a number comes before a word, and a release after all that led to it
        parts = [(0, int(one), "") if one.isdecimal() else (1, 0, one) for one in self.pre.split(".")]
        return (self.major, self.minor, self.patch, not self.pre, parts)


FIRST = Version(0, 1, 0)


@dataclass(frozen=True)
class Release:
    """One pushed version: what it reached and which files it had."""

    version: str
    date: str  # ISO 8601
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)  # name with data and unit → value
    files: dict[str, str] = field(default_factory=dict)  # path in the repository → SHA-256, the records not among them
    sections: list[str] = field(default_factory=list)  # titles in the card that came from the folder or the push
    commit: str = ""  # from the tag; not part of the record, which lies in that commit

    def __str__(self) -> str:
        told = ", ".join(f"{name} {_number(value)}" for name, value in self.metrics.items())
        return f"{self.version} ({self.date[:10]})" + (f": {told}" if told else "")


def versions_of(tags: Iterable[str]) -> list[Version]:
    """The tags that are versions, ascending; others are somebody else's."""
    return sorted(Version.read(tag) for tag in tags if SHAPE.fullmatch(tag) and tag.startswith("v"))


def latest_of(found: Sequence[Version]) -> Version | None:
    """The highest release; where there is none yet, the highest that leads to one; None for no version."""
    released = [version for version in found if not version.pre]
    return max(released or found, default=None)


def next_version(
    found: Sequence[Version], wanted: str = "auto", change: Literal["files", "card"] = "files"
) -> tuple[Version, str]:
    """(the version to push, why) after those `found`.

    "auto" is v0.1.0 first, then one more minor version, or one more patch where nothing but the card changed. An
    explicit version must be new and above the highest. Raises PlanError for what is no version, ExportError for one
    that is taken or too low.
    """
    last = latest_of(found)
    if wanted == "auto":
        if last is None:
            return FIRST, "the first version of this repository"
        if last.pre:
            return Version(last.major, last.minor, last.patch), f"{last} led to it"
        if change == "card":
            return Version(last.major, last.minor, last.patch + 1), f"only the card changed since {last}"
        return Version(last.major, last.minor + 1, 0), f"files changed since {last}"
    asked = Version.read(wanted)
    if asked in found:
        raise ExportError(
            f"{asked} is taken: a tag is not moved, because others may have pulled it. There are "
            f"{', '.join(map(str, found))}; give a higher version, or version='auto'"
        )
    highest = max(found, default=None)
    if highest is not None and asked < highest:
        raise ExportError(f"{asked} is below {highest}, which is published: give a higher version, or version='auto'")
    return asked, "asked for"


def differences(now: Mapping[str, float], before: Mapping[str, float]) -> list[tuple[str, float | None, float | None]]:
    """(metric, value before, value now) for each metric of either; None where it was not measured."""
    names = [*now, *(name for name in before if name not in now)]
    return [(name, before.get(name), now.get(name)) for name in names]


def changelog_entry(release: Release, before: Release | None, changes: Sequence[str] = ()) -> str:
    """Markdown of one release: message, each metric with its difference from the release before, files that changed."""
    rows = [f"## {release.version} ({release.date[:10]})", ""]
    rows += [release.message, ""] if release.message else []
    if before is None and release.metrics:
        rows += [f"| metric | {release.version} |", "|---|---|"]
        rows += [f"| {name} | {_number(value)} |" for name, value in release.metrics.items()] + [""]
    elif before is not None and (told := differences(release.metrics, before.metrics)):
        rows += [f"| metric | {before.version} | {release.version} | difference |", "|---|---|---|---|"]
        rows += [f"| {name} | {_number(old)} | {_number(new)} | {_change(old, new)} |" for name, old, new in told]
        rows += [""]
    rows += [f"- {change}" for change in changes]
    return "\n".join(rows).rstrip("\n") + "\n"


def prepend_entry(changelog: str, entry: str) -> str:
    """The changelog with `entry` before its newest; what was written by hand in it stays."""
    if not changelog.strip():
        return f"# Changelog\n\n{entry}"
    head, mark, rest = ("\n" + changelog.replace("\r\n", "\n")).partition("\n## ")
    return f"{head.strip()}\n\n{entry}" + (f"\n## {rest.rstrip()}\n" if mark else "")


def releases_to_json(releases: Sequence[Release]) -> str:
    """Newest first, as indented JSON; the inverse of :func:`releases_from_json`."""
    rows = [{name: value for name, value in asdict(release).items() if name != "commit"} for release in releases]
    return json.dumps({"format": FORMAT, "releases": rows}, ensure_ascii=False, indent=2) + "\n"


def releases_from_json(text: str) -> list[Release]:
    """Newest first; [] for what is no such record: then there is nothing to compare with, and the push says so."""
    known = {one.name for one in fields(Release)}
    try:
        found = json.loads(text)
        rows = found["releases"] if found["format"] == FORMAT else []
        made = [Release(**{name: value for name, value in row.items() if name in known}) for row in rows]
        return [one for one in made if SHAPE.fullmatch(one.version)]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _change(before: float | None, now: float | None) -> str:
    if before is None:
        return "new"
    if now is None:
        return "not measured"
    shown = f"{now - before:+.3g}"
    return "0" if float(shown) == 0 else shown.replace("-", MINUS)
