"""One push, in its order: who asks, what is there, what differs, which version that makes, one commit, one tag.

In: facts, files and wishes. Out: a `PushReport`. Nothing on the Hub changes before the commit, and the commit is one
request: a push that breaks off leaves the version before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError
from speechkit.export.card import Card, model_card
from speechkit.export.hub_errors import told
from speechkit.export.hub_repo import Repository, Standing, endpoint
from speechkit.export.hub_report import PushedFile, PushReport
from speechkit.export.hub_secrets import Mine, refuse_secrets
from speechkit.export.versions import (
    CHANGELOG,
    RECORDS,
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from huggingface_hub import CommitOperationAdd

    from speechkit.export.card_facts import Facts
    from speechkit.export.hub_files import Upload

__all__ = ["SUPERSEDED", "Push"]

CARD = "README.md"
SUPERSEDED = ("*.safetensors", "*.safetensors.index.json")  # left from the version before they would be loaded still


@dataclass(frozen=True)
class _Seen:
    """A repository before the push; an empty one for a dry run."""

    standing: Standing
    card: str = ""
    changelog: str = ""
    releases: tuple[Release, ...] = ()  # newest first

    @property
    def found(self) -> list[Version]:
        return versions_of(self.standing.tags)

    @property
    def last(self) -> Release | None:
        """The record of the last version; None where there is none that can be read."""
        name = str(latest_of(self.found) or "")
        return next((one for one in self.releases if one.version == name), None)


@dataclass(frozen=True)
class _Next:
    """The version that is to come."""

    release: Release
    reason: str
    card: Card
    entry: str  # of the changelog
    texts: dict[str, str]  # card, changelog and records
    states: dict[str, str]  # of each file: "new", "changed", "same"
    removed: tuple[str, ...]
    staying: tuple[str, ...]  # brought by the version before, neither renewed nor removed


@dataclass
class Push:
    """What is to be pushed, and how; `planned` and `go` are the two things to do with it."""

    repo_id: str
    private: bool
    wanted: str  # version, or "auto"
    message: str
    facts: Facts
    uploads: list[Upload]
    left: list[tuple[str, str]]
    mine: Mine

    def planned(self) -> PushReport:
        """What would go, by what is here alone."""
        made = self._next(_Seen(Standing("")))
        assert made is not None, "a repository without versions gets one"
        reason = made.reason if self.wanted != "auto" else "if the repository is new, else one above its last"
        notes = made.card.notes if "/" in self.repo_id else (*made.card.notes, "the owner is the account of the token")
        return PushReport(
            repo_id=self.repo_id, version=made.release.version, reason=reason, dry_run=True, private=self.private,
            files=self._files(made), left_out=tuple(self.left), removed=(), card=made.card.text, changelog=made.entry,
            notes=notes,
        )  # fmt: skip

    def go(self) -> PushReport:
        """Look at what is there, decide the version, send, tag."""
        repo = self._repository()
        seen = told(f"opening {self.repo_id}", self.repo_id, lambda: self._opened(repo))
        made = self._next(seen)
        if made is None:
            return self._nothing(seen)
        commit = self._sent(repo, seen, made)
        notes = list(made.card.notes)
        notes += [f"kept from the card on the Hub: {', '.join(made.card.kept)}"] if made.card.kept else []
        notes += [f"stays there from before: {', '.join(made.staying)}"] if made.staying else []
        if seen.standing.private and not self.private:
            notes.append("the repository was private before and stays so: its settings on the Hub change that")
        return PushReport(
            repo_id=self.repo_id, version=made.release.version, reason=made.reason, dry_run=False,
            private=seen.standing.private, files=self._files(made), left_out=tuple(self.left), removed=made.removed,
            card=made.card.text, changelog=made.entry, notes=tuple(notes), previous=str(latest_of(seen.found) or ""),
            commit=commit, url=self._url(made.release.version),
        )  # fmt: skip

    @cached_property
    def operations(self) -> dict[str, CommitOperationAdd]:
        """Path → huggingface_hub's operation, which reads and hashes its file once."""
        from huggingface_hub import CommitOperationAdd

        return {one.path: CommitOperationAdd(path_in_repo=one.path, path_or_fileobj=one.source) for one in self.uploads}

    @cached_property
    def digests(self) -> dict[str, str]:
        """Path → SHA-256."""
        return {path: one.upload_info.sha256.hex() for path, one in self.operations.items()}

    def _repository(self) -> Repository:
        """The repository, with its owner, once it is known that somebody answers and takes the token."""
        repo = Repository(self.repo_id, endpoint(), write=True)
        who = told("asking the Hub who the token belongs to", self.repo_id, repo.who)
        role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise ExportError(
                "the token may only read: make one with write permission (https://huggingface.co/settings/tokens), "
                "then `hf auth login`"
            )
        if "/" not in self.repo_id:
            self.repo_id = repo.repo_id = f"{who['name']}/{self.repo_id}"
        return repo

    def _opened(self, repo: Repository) -> _Seen:
        """The repository as it is, made where it is not there yet, with an earlier push brought to its end."""
        repo.create(self.private)
        standing = repo.standing()
        if self.private and not standing.private:
            raise ExportError(
                f"{self.repo_id} is public, and private is True: say private=False to publish there, or name another "
                "repository. Nothing was sent"
            )
        card, changelog, records = (repo.text(name, standing) for name in (CARD, CHANGELOG, RECORDS))
        releases = tuple(releases_from_json(records))
        return _Seen(_finished(repo, standing, releases), card, changelog, releases)

    def _next(self, seen: _Seen) -> _Next | None:
        """The version that this push makes of what is there; None where it is all there already."""
        newest = seen.releases[0] if seen.releases else Release("", "")
        removed, staying = self._before(seen, newest)
        card = model_card(self.facts, self.repo_id, seen.card, list(staying), newest.sections)
        states = {one.path: self._state(one, seen.standing) for one in self.uploads}
        others = bool(removed) or set(states.values()) != {"same"}
        there = seen.found and not others and card.text == seen.card
        if there and (self.wanted == "auto" or Version.read(self.wanted) == max(seen.found)):
            return None  # also where this version had only lacked its tag
        version, reason = next_version(seen.found, self.wanted, "files" if others or not seen.found else "card")
        date = datetime.now(UTC).isoformat(timespec="seconds")
        metrics = self.facts.metrics | _metrics_of(newest, list(staying))
        files = self.digests | staying
        release = Release(str(version), date, self.message, metrics, files, list(card.sections))
        entry = changelog_entry(release, seen.last, _changes(states, removed) or ["only the card changed"])
        log, records = prepend_entry(seen.changelog, entry), releases_to_json([release, *seen.releases])
        texts = {CARD: card.text, CHANGELOG: log, RECORDS: records}
        for name, text in texts.items():
            refuse_secrets(name, text.encode(), self.mine)
        states |= {name: "changed" if name in seen.standing.files else "new" for name in texts}
        return _Next(release, reason, card, entry, texts, states, removed, tuple(sorted(staying)))

    def _state(self, one: Upload, standing: Standing) -> str:
        if one.path not in standing.files:
            return "new"
        return "same" if standing.has(one.path, one.source, self.digests[one.path]) else "changed"

    def _before(self, seen: _Seen, newest: Release) -> tuple[tuple[str, ...], dict[str, str]]:
        """(weights of the version before that must go, its files that stay with their SHA-256)."""
        others = {path: one for path, one in newest.files.items() if path not in self.operations}
        there = {path: one for path, one in others.items() if path in seen.standing.files}
        removed = tuple(path for path in there if any(fnmatch(path, pattern) for pattern in SUPERSEDED))
        return removed, {path: one for path, one in there.items() if path not in removed}

    def _sent(self, repo: Repository, seen: _Seen, made: _Next) -> str:
        """The commit, tagged."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [one for path, one in self.operations.items() if made.states[path] != "same"]
        operations += [CommitOperationAdd(name, text.encode()) for name, text in made.texts.items()]
        operations += [CommitOperationDelete(path) for path in made.removed]
        version = made.release.version
        first = next(iter(self.message.splitlines()), "")[:80]
        title = f"{version}: {first}" if first else version

        def sent() -> str:
            repo.validate(made.card.text)
            return repo.commit(operations, title, self.message, seen.standing.head)

        commit = told(f"sending {version}", self.repo_id, sent)
        told(f"tagging {version}", self.repo_id, lambda: repo.tag(version, self.message or title, commit))
        return commit

    def _nothing(self, seen: _Seen) -> PushReport:
        last = str(latest_of(seen.found))
        return PushReport(
            repo_id=self.repo_id, version=last, reason="nothing changed since", dry_run=False,
            private=seen.standing.private, files=tuple(PushedFile(one.path, one.size, "same") for one in self.uploads),
            left_out=tuple(self.left), removed=(), card=seen.card, changelog="", previous=last, url=self._url(last),
        )  # fmt: skip

    def _files(self, made: _Next) -> tuple[PushedFile, ...]:
        sizes = {one.path: one.size for one in self.uploads}
        sizes |= {name: len(text.encode()) for name, text in made.texts.items()}
        return tuple(PushedFile(path, size, made.states[path]) for path, size in sorted(sizes.items()))

    def _url(self, version: str) -> str:
        return f"{endpoint()}/{self.repo_id}/tree/{version}"


def _finished(repo: Repository, standing: Standing, releases: Sequence[Release]) -> Standing:
    """With the tag of the newest version, where a push ended between its commit and its tag."""
    if not releases or releases[0].version in standing.tags:
        return standing
    newest = releases[0]
    commit = repo.commit_of(newest.version)
    if not commit:
        return standing
    repo.tag(newest.version, newest.message or newest.version, commit)
    return replace(standing, tags={**standing.tags, newest.version: commit})


def _metrics_of(before: Release, files: Sequence[str]) -> dict[str, float]:
    """What was measured of files that stay."""
    starts = tuple(f"{name}: " for name in files)
    return {name: value for name, value in before.metrics.items() if starts and name.startswith(starts)}


def _changes(states: dict[str, str], removed: Sequence[str]) -> list[str]:
    """Lines for the changelog."""
    rows = []
    for state in ("new", "changed"):
        if names := [f"`{path}`" for path, found in states.items() if found == state]:
            rows.append(f"{state}: {', '.join(names)}")
    return [*rows, *([f"removed: {', '.join(f'`{path}`' for path in removed)}"] if removed else [])]
