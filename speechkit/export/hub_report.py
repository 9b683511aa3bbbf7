"""What a push did, or would do: the files, the card, the changelog; as text, as plain values, in a notebook.

In: a `PushReport`. Out: text or static HTML, light and dark, without scripts. Knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any

from speechkit.export.card_sections import size_of
from speechkit.widgets.palette import LINE, PANEL, SOFT, card

if TYPE_CHECKING:
    from speechkit.widgets.palette import Shade

__all__ = ["PushReport", "PushedFile", "push_html"]

# a notebook paints tables and code in its own theme, which need not be that of the browser
OWN = "color:inherit;background:none"


@dataclass(frozen=True)
class PushedFile:
    """One file of a version."""

    path: str
    size: int  # bytes
    state: str  # "new", "changed", "same": the last is in the repository already and was not sent


@dataclass(frozen=True, repr=False)
class PushReport:
    """A version that was pushed; with `dry_run` one that would be, by what the folder alone tells."""

    repo_id: str
    version: str
    reason: str  # of that number
    dry_run: bool
    private: bool
    files: tuple[PushedFile, ...]
    left_out: tuple[tuple[str, str], ...]  # path, reason
    removed: tuple[str, ...]  # of the version before, which this one no longer has
    card: str  # README.md
    changelog: str  # the entry of this version
    notes: tuple[str, ...] = ()
    previous: str = ""  # version before
    commit: str = ""
    url: str = ""
    seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.size for file in self.files)

    def text(self) -> str:
        """For people; the card and the changelog at the end where nothing was sent yet."""
        done = "would push" if self.dry_run else "pushed" if self.commit else "nothing to push:"
        where = "private" if self.private else "public"
        after = f", after {self.previous}" if self.previous else ""
        size = max((len(file.path) for file in self.files), default=0)
        rows = [f"{done} {self.version} to {self.repo_id} ({where}{after}): {self.reason}"]
        rows += [f"{len(self.files)} files, {size_of(self.bytes)}:"]
        rows += [f"  {file.path.ljust(size)}  {size_of(file.size):>10}  {file.state}" for file in self.files]
        rows += [f"  {path}  removed" for path in self.removed]
        rows += ["left out:", *(f"  {path}: {reason}" for path, reason in self.left_out)] if self.left_out else []
        rows += [f"note: {note}" for note in self.notes]
        rows += [self.url] if self.url else []
        if self.dry_run:
            rows += ["", "README.md:", "", self.card, "CHANGELOG.md:", "", self.changelog]
        return "\n".join(rows).rstrip("\n")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        row = {one.name: getattr(self, one.name) for one in fields(self)}
        row["files"] = [{"path": file.path, "size": file.size, "state": file.state} for file in self.files]
        row["left_out"] = [{"path": path, "reason": reason} for path, reason in self.left_out]
        return row | {name: list(row[name]) for name in ("removed", "notes")} | {"bytes": self.bytes}

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return push_html(self)


def push_html(report: PushReport) -> str:
    """Static HTML of a push: a table of the files, what was left out, and card and changelog to unfold."""
    done = "Would push" if report.dry_run else "Pushed" if report.commit else "Nothing to push:"
    where = "private" if report.private else "public"
    name = escape(report.repo_id)
    linked = f'<a href="{escape(report.url)}">{name}</a>' if report.url.startswith(("http://", "https://")) else name
    files = "".join(
        _row((_code(file.path), size_of(file.size), escape(file.state))) for file in report.files
    ) + "".join(_row((_code(path), "", "removed")) for path in report.removed)
    left = "".join(f"<li>{_code(path)}: {escape(reason)}</li>" for path, reason in report.left_out)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    soft = f"margin:2px 0 8px;{_paint('color', SOFT)}"
    return (
        f'<section aria-label="Push to the Hub" style="{card()}">'
        f"<strong>{done} {escape(report.version)}</strong> to {linked} ({where})"
        f'<p style="{soft}">{escape(report.reason)}; {len(report.files)} files, {size_of(report.bytes)}</p>'
        f'<table style="border-collapse:collapse;{OWN}"><thead>{_row(("file", "size", "state"), "th")}</thead>'
        f"<tbody>{files}</tbody></table>"
        + (f"<ul>{notes}</ul>" if notes else "")
        + (_folded(f"Left out ({len(report.left_out)})", f"<ul>{left}</ul>") if left else "")
        + _folded("Model card (README.md)", _plain(report.card), report.dry_run)
        + (_folded("CHANGELOG.md", _plain(report.changelog)) if report.changelog else "")
        + "</section>"
    )


def _row(cells: tuple[str, ...], tag: str = "td") -> str:
    style = f"text-align:left;{OWN};padding:2px 12px 2px 0;border-bottom:1px solid {LINE.light};border-color:{LINE.css}"
    scope = ' scope="col"' if tag == "th" else ""
    made = "".join(f'<{tag}{scope} style="{style}">{cell}</{tag}>' for cell in cells)
    return f'<tr style="{OWN}">{made}</tr>'


def _code(text: str) -> str:
    return f'<code style="{OWN}">{escape(text)}</code>'


def _folded(title: str, inside: str, unfolded: bool = False) -> str:
    return f"<details{' open' if unfolded else ''}><summary>{escape(title)}</summary>{inside}</details>"


def _plain(text: str) -> str:
    style = (
        "white-space:pre-wrap;overflow-wrap:anywhere;padding:8px 10px;border-radius:6px;color:inherit;"
        f"{_paint('background', PANEL)}"
    )
    return f'<pre style="{style}">{escape(text)}</pre>'


def _paint(name: str, shade: Shade) -> str:
    """Twice, so that a browser without `light-dark()` keeps the light colour."""
    return f"{name}:{shade.light};{name}:{shade.css};"
