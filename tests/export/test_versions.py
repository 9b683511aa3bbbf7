"""Version numbers against the order of Semantic Versioning 2.0.0, and a changelog whose differences are subtraction."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import ExportError, PlanError
from speechkit.export.versions import (
    Release,
    Version,
    changelog_entry,
    latest_of,
    next_version,
    prepend_entry,
    releases_from_json,
    releases_to_json,
    versions_of,
)

# the example of semver.org, section 11, and numbers around it
ORDER = (
    "v0.1.0 v0.1.1 v0.2.0 v0.10.0 v1.0.0-alpha v1.0.0-alpha.1 v1.0.0-alpha.beta v1.0.0-beta v1.0.0-beta.2 "
    "v1.0.0-beta.11 v1.0.0-rc.1 v1.0.0 v2.0.0 v2.1.0 v2.1.1"
).split()


def read(*texts: str) -> list[Version]:
    return [Version.read(text) for text in texts]


def test_versions_are_ordered_as_semantic_versioning_says() -> None:
    for low, high in itertools.combinations(read(*ORDER), 2):
        assert low < high and not high < low


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.sampled_from(["", "rc.1", "alpha"]))
def test_a_version_reads_back_from_its_text_with_and_without_v(major: int, minor: int, patch: int, pre: str) -> None:
    made = Version(major, minor, patch, pre)
    assert Version.read(str(made)) == Version.read(str(made)[1:]) == made


@pytest.mark.parametrize("text", ["1.2", "v1.2.3.4", "latest", "v01.2.3", "1.2.x", "", "v1.2.3-", "v1.2.3+build"])
def test_what_is_no_version_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(PlanError, match=r"version is .*as in 'v0\.2\.0'"):
        Version.read(text)


def test_tags_that_are_no_versions_are_not_counted() -> None:
    assert versions_of(["v0.2.0", "nightly", "0.9.0", "v0.1.0"]) == read("v0.1.0", "v0.2.0")


@pytest.mark.parametrize(
    ("tags", "last"),
    [
        ([], None),
        (["v0.1.0", "v0.2.0-rc.1"], "v0.1.0"),
        (["v1.0.0-rc.1", "v1.0.0-rc.2"], "v1.0.0-rc.2"),
        (["v0.9.0", "v0.10.0"], "v0.10.0"),
    ],
    ids=["none", "a-candidate-is-no-release", "only-candidates", "numbers-not-letters"],
)
def test_latest_is_the_highest_release(tags: list[str], last: str | None) -> None:
    assert latest_of(read(*tags)) == (last and Version.read(last))


@pytest.mark.parametrize(
    ("tags", "wanted", "change", "made"),
    [
        ([], "auto", "files", "v0.1.0"),
        (["v0.1.0"], "auto", "files", "v0.2.0"),
        (["v0.1.0"], "auto", "card", "v0.1.1"),
        (["v0.1.3", "v0.9.9"], "auto", "files", "v0.10.0"),
        (["v1.0.0-rc.1"], "auto", "files", "v1.0.0"),
        (["v0.1.0"], "1.0.0", "files", "v1.0.0"),
        (["v0.1.0"], "v0.2.0-rc.1", "card", "v0.2.0-rc.1"),
    ],
)
def test_the_next_version(tags: list[str], wanted: str, change: str, made: str) -> None:
    assert str(next_version(read(*tags), wanted, change)[0]) == made  # type: ignore[arg-type]


def test_a_version_that_is_taken_or_too_low_is_refused_and_those_there_are_named() -> None:
    with pytest.raises(ExportError, match=r"v0\.1\.0 is taken.*There are v0\.1\.0, v0\.2\.0; give a higher"):
        next_version(read("v0.1.0", "v0.2.0"), "v0.1.0")
    with pytest.raises(ExportError, match=r"v0\.1\.5 is below v0\.2\.0"):
        next_version(read("v0.1.0", "v0.2.0"), "v0.1.5")


BEFORE = Release("v0.1.0", "2026-01-02T03:04:05+00:00", "first", {"WER %, dev": 26.4, "loss": 1.5}, {"a": "1"})
NOW = Release("v0.2.0", "2026-02-03T03:04:05+00:00", "", {"WER %, dev": 24.1, "CER %, dev": 8.0})


def test_an_entry_holds_each_metric_with_its_difference() -> None:
    entry = changelog_entry(NOW, BEFORE, ["changed: `model.safetensors`"])
    assert entry.startswith("## v0.2.0 (2026-02-03)\n\n| metric | v0.1.0 | v0.2.0 | difference |\n")
    assert "| WER %, dev | 26.4 | 24.1 | −2.3 |" in entry
    assert "| CER %, dev | – | 8 | new |" in entry and "| loss | 1.5 | – | not measured |" in entry
    assert entry.endswith("- changed: `model.safetensors`\n")


def test_the_first_entry_has_no_difference() -> None:
    assert changelog_entry(BEFORE, None).splitlines()[2:6] == [
        "first", "", "| metric | v0.1.0 |", "|---|---|",
    ]  # fmt: skip


def test_equal_figures_differ_by_nothing() -> None:
    assert "| loss | 1.5 | 1.5 | 0 |" in changelog_entry(Release("v2.0.0", "", "", {"loss": 1.5}), BEFORE)


def test_the_newest_entry_comes_first_and_what_was_written_by_hand_stays() -> None:
    once = prepend_entry("", "## v0.1.0\n\nfirst\n")
    assert once == "# Changelog\n\n## v0.1.0\n\nfirst\n"
    edited = once.replace("# Changelog\n", "# Changelog\n\nBy Anna.\n") + "\nA remark.\n"
    twice = prepend_entry(edited, "## v0.2.0\n\nsecond\n")
    assert twice == "# Changelog\n\nBy Anna.\n\n## v0.2.0\n\nsecond\n\n## v0.1.0\n\nfirst\n\nA remark.\n"


def test_records_read_back_without_their_commit() -> None:
    assert releases_from_json(releases_to_json([NOW, BEFORE])) == [NOW, BEFORE]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "other", "releases": []}', '{"format": "speechkit versions 1"}']
)
def test_what_is_no_record_is_none(text: str) -> None:
    assert releases_from_json(text) == []
