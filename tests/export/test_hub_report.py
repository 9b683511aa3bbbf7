"""The report of a push: text, JSON and HTML of the same files, for light and dark, without scripts."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from speechkit.export.hub_report import PushedFile, PushReport, push_html
from speechkit.widgets.palette import INK, PANEL, PAPER

EVIL = "<script>alert('x')</script> & `y`"


def report(**changes: object) -> PushReport:
    row = {
        "repo_id": "anna/m", "version": "v0.2.0", "reason": "files changed since v0.1.0", "dry_run": False,
        "private": True, "removed": ("old.safetensors",), "card": f"# Card {EVIL}",
        "files": (PushedFile("model.safetensors", 6_411_608, "changed"), PushedFile("a.json", 12, "same")),
        "left_out": (("optimizer.pt", "state of a training"),),
        "changelog": "## v0.2.0", "notes": (EVIL,), "previous": "v0.1.0", "commit": "a" * 40,
        "url": "https://huggingface.co/anna/m/tree/v0.2.0",
    }  # fmt: skip
    return PushReport(**(row | changes))  # type: ignore[arg-type]


class Tags(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.words = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_html_holds_what_the_text_holds_and_escapes_it() -> None:
    made = Tags(push_html(report()))
    assert {"table", "th", "details", "summary", "pre", "a"} <= made.seen and "script" not in made.seen
    for told in (
        "v0.2.0",
        "anna/m",
        "model.safetensors",
        "6.41 MB",
        "changed",
        "old.safetensors",
        "optimizer.pt",
        EVIL,
    ):
        assert told in made.words, told


def test_both_themes_are_there() -> None:
    html = report()._repr_html_()
    assert "color-scheme:light dark" in html
    assert all(shade.css in html and shade.light in html for shade in (INK, PAPER, PANEL))


def test_a_dry_run_says_so_and_shows_its_card_unfolded() -> None:
    planned = report(dry_run=True, commit="", url="")
    assert "Would push" in push_html(planned) and "<details open><summary>Model card" in push_html(planned)
    assert "would push v0.2.0" in planned.text() and "# Card" in planned.text()
    assert "<details open>" not in push_html(report()) and "# Card" not in report().text()


def test_a_link_is_only_made_of_http(url: str = "javascript:alert(1)") -> None:
    assert "href" not in push_html(report(url=url))


def test_plain_values_are_json_and_add_up() -> None:
    row = json.loads(json.dumps(report().as_dict()))
    assert row["bytes"] == 6_411_620 == sum(file["size"] for file in row["files"])
    assert row["left_out"] == [{"path": "optimizer.pt", "reason": "state of a training"}]


@pytest.mark.parametrize(("private", "word"), [(True, "private"), (False, "public")])
def test_who_can_see_it_is_said(private: bool, word: str) -> None:
    assert f"({word}" in report(private=private).text() and f"({word})" in push_html(report(private=private))
