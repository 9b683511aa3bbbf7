"""A folder or model → a version in a repository of the Hub, with card, changelog and tag; and a version → a folder.

In: what was trained or exported, an id. Out: a `PushReport`, or the folder of a version. One push is one atomic commit
and one tag; uploading is huggingface_hub's, and so is the token, which no name in here ever holds.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError
from speechkit.export.card import Card, model_card
from speechkit.export.card_facts import About, Facts, read_facts
from speechkit.export.hub_errors import told
from speechkit.export.hub_files import Upload, gather, refuse_secrets
from speechkit.export.hub_repo import BRANCH, Repository, Standing, endpoint, logged_in
from speechkit.export.hub_report import PushedFile, PushReport
from speechkit.export.hub_source import opened
from speechkit.export.versions import (
    CHANGELOG,
    RECORDS,
    SHAPE,
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
    import os
    from collections.abc import Sequence

__all__ = ["About", "PushReport", "pull", "push", "versions"]

CARD = "README.md"
SUPERSEDED = ("*.safetensors", "*.safetensors.index.json")  # left from the version before they would be loaded still
UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack")


def push(
    folder_or_model: Any,
    repo_id: str,
    private: bool = True,
    version: str = "auto",
    dry_run: bool = False,
    *,
    message: str | None = None,
    files: Sequence[str] | None = None,
    about: About | None = None,
    tokenizer: Any = None,
) -> PushReport:
    """Publish a model as the next version of `repo_id`, with a card made from its facts.

    folder_or_model: the folder of a run (its best model goes), of a model, an adapter or GGUF files; one .gguf file;
    the name of an embedded model; a result of `finetune`; a model in memory, with `tokenizer`. repo_id: "owner/name";
    without an owner it is the token's account. private: of a repository that does not exist yet; True refuses to push
    to one that is public. version: "auto" (v0.1.0, then a minor version, a patch where only the card changed), or one
    that is above the last. dry_run: say which files would go, and show the card; asks no network. message: a sentence
    for the changelog. files: glob patterns of what is wanted. about: what the folder does not tell.

    An interrupted push is done again by the same call: what has arrived is not sent twice, and a version that lacks its
    tag gets it. Raises ExportError (nothing to publish, a secret in a file, a card that the Hub would refuse, a version
    that is taken, no token, no permission, Hub busy or out of reach), PlanError for what is no version or no model.
    """
    _check_id(repo_id)
    if version != "auto":
        Version.read(version)
    refuse_secrets("message", (message or "").encode())
    started = time.monotonic()
    with opened(folder_or_model, tokenizer, files) as (folder, wanted):
        facts = read_facts(folder, about, wanted)
        uploads, left = gather(facts, wanted, about.base if about else "")
        job = _Push(repo_id, private, version, message or "", facts, uploads, left)
        report = job.planned() if dry_run else job.go()
    return replace(report, seconds=time.monotonic() - started)


def pull(repo_id: str, version: str = "latest", *, folder: str | os.PathLike[str] | None = None) -> Path:
    """The files of a version → their folder: in the local cache, or in `folder`.

    version: "latest", the highest that is released; "v0.2.0" or "0.2.0"; a branch or a commit. Pickled files stay
    there. Without a network the cache answers, and for "latest" a warning says which version that is. Raises
    ExportError where there is no such version, or the Hub cannot be reached and the cache does not have it.
    """
    _check_id(repo_id)
    repo = Repository(repo_id, endpoint())
    offline = False
    try:
        tags = told("listing the versions", repo_id, repo.answering_tags)
    except ExportError as error:
        tags, offline = _cached_tags(repo_id), True
        if not tags:
            raise
        why = str(error)
    revision = _revision(repo_id, version, tags)
    if offline:
        warnings.warn(f"{revision} of {repo_id} is taken from the local cache: {why}", stacklevel=2)
    place = None if folder is None else Path(folder).expanduser()

    def fetched() -> str:
        return repo.api.snapshot_download(
            repo_id, revision=revision, local_dir=place, ignore_patterns=list(UNSAFE), local_files_only=offline
        )

    return Path(told(f"fetching {revision}", repo_id, fetched))


def versions(repo_id: str) -> list[Release]:
    """The versions of a repository, newest first, with what each reached. Raises ExportError as :func:`pull`."""
    _check_id(repo_id)
    repo = Repository(repo_id, endpoint())

    def listed() -> tuple[Standing, dict[str, Release]]:
        repo.knock()
        standing = repo.standing()
        return standing, {one.version: one for one in releases_from_json(repo.text(RECORDS, standing))}

    standing, records = told("listing the versions", repo_id, listed)
    names = [str(one) for one in reversed(versions_of(standing.tags))]
    return [replace(records.get(name, Release(name, "")), commit=standing.tags[name]) for name in names]


@dataclass
class _Push:
    """One push: what goes, and the steps in their order."""

    repo_id: str
    private: bool
    wanted: str
    message: str
    facts: Facts
    uploads: list[Upload]
    left: list[tuple[str, str]]

    def planned(self) -> PushReport:
        """What would go, by what is here alone."""
        card = model_card(self.facts, self.repo_id)
        version = str(next_version([], self.wanted)[0])
        reason = "asked for" if self.wanted != "auto" else "if the repository is new, else one above its last"
        states, digests = self._compared(Standing(""))
        release = self._release(version, digests, card)
        entry = changelog_entry(release, None, _changes(states, (), "files"))
        texts = {CARD: card.text, CHANGELOG: prepend_entry("", entry), RECORDS: releases_to_json([release])}
        for name, text in texts.items():
            refuse_secrets(name, text.encode())
        sizes = {one.path: one.size for one in self.uploads} | {
            name: len(text.encode()) for name, text in texts.items()
        }
        files = tuple(PushedFile(path, size, "new") for path, size in sorted(sizes.items()))
        notes = card.notes if "/" in self.repo_id else (*card.notes, "the owner will be the account of the token")
        return PushReport(
            self.repo_id, version, reason, True, self.private, files, tuple(self.left), (), card.text, entry, notes
        )  # fmt: skip

    def go(self) -> PushReport:
        """Look at what is there, decide the version, send, tag."""
        logged_in()
        repo = self._repository()
        standing, there = told(f"opening {self.repo_id}", self.repo_id, lambda: self._opened(repo))
        releases = releases_from_json(there[RECORDS])
        removed = self._superseded(releases)
        staying = self._staying(standing, releases, removed)
        card = model_card(
            self.facts, self.repo_id, there[CARD], list(staying), releases[0].sections if releases else ()
        )
        states, digests = self._compared(standing)
        changed = [path for path, state in states.items() if state != "same"]
        found = versions_of(standing.tags)
        if self.wanted == "auto" and not changed and not removed and card.text == there[CARD] and found:
            return self._nothing(standing, card, str(latest_of(found)))
        if staying:
            card = replace(card, notes=(*card.notes, f"stays there from before: {', '.join(sorted(staying))}"))
        kind = "files" if changed or removed or not found else "card"
        version, reason = next_version(found, self.wanted, "files" if kind == "files" else "card")
        release = self._release(str(version), digests | staying, card)
        before = _before(releases, found)
        release = replace(release, metrics=release.metrics | _metrics_of(before, list(staying)))
        entry = changelog_entry(release, before, _changes(states, removed, kind))
        texts = {
            CARD: card.text,
            CHANGELOG: prepend_entry(there[CHANGELOG], entry),
            RECORDS: releases_to_json([release, *releases]),
        }
        commit = self._sent(repo, standing, texts, changed, removed, release)
        states |= {name: "changed" if name in standing.files else "new" for name in texts}
        return self._report(card, standing, release, reason, states, texts, removed, entry, commit, found)

    def _opened(self, repo: Repository) -> tuple[Standing, dict[str, str]]:
        """The repository as it is, made where it is not there yet, with an earlier push brought to its end."""
        repo.create(self.private)
        standing = repo.standing()
        if self.private and not standing.private:
            raise ExportError(
                f"{self.repo_id} is public, and private is True: say private=False to publish there, or name another "
                "repository. Nothing was sent"
            )
        there = {name: repo.text(name, standing) for name in (CARD, CHANGELOG, RECORDS)}
        return self._finished(repo, standing, releases_from_json(there[RECORDS])), there

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

    def _finished(self, repo: Repository, standing: Standing, releases: list[Release]) -> Standing:
        """With the tag of the newest version, where a push ended between its commit and its tag."""
        if not releases or releases[0].version in standing.tags:
            return standing
        newest = releases[0]
        commit = repo.commit_of(newest.version)
        if not commit:
            return standing
        repo.tag(newest.version, newest.message, commit)
        return replace(standing, tags={**standing.tags, newest.version: commit})

    def _compared(self, standing: Standing) -> tuple[dict[str, str], dict[str, str]]:
        """Of each file whether it is there already, and its SHA-256."""
        from huggingface_hub import CommitOperationAdd

        self.operations = {
            one.path: CommitOperationAdd(path_in_repo=one.path, path_or_fileobj=one.source) for one in self.uploads
        }
        digests = {path: one.upload_info.sha256.hex() for path, one in self.operations.items()}
        states = {}
        for one in self.uploads:
            same = standing.has(one.path, one.source, digests[one.path])
            states[one.path] = "same" if same else "changed" if one.path in standing.files else "new"
        return states, digests

    def _superseded(self, releases: list[Release]) -> tuple[str, ...]:
        """Weights that the version before brought and this one has not."""
        mine = {one.path for one in self.uploads}
        before = releases[0].files if releases else {}
        return tuple(
            path for path in before if path not in mine and any(fnmatch(path, pattern) for pattern in SUPERSEDED)
        )

    def _staying(self, standing: Standing, releases: list[Release], removed: tuple[str, ...]) -> dict[str, str]:
        """What the version before brought, and this one neither renews nor removes: path → SHA-256."""
        mine = {*(one.path for one in self.uploads), *removed}
        before = releases[0].files if releases else {}
        return {path: digest for path, digest in before.items() if path not in mine and path in standing.files}

    def _release(self, version: str, digests: dict[str, str], card: Card) -> Release:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return Release(version, date, self.message, self.facts.metrics, digests, list(card.sections))

    def _sent(
        self, repo: Repository, standing: Standing, texts: dict[str, str], changed: list[str],
        removed: tuple[str, ...], release: Release,
    ) -> str:  # fmt: skip
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        for name, text in texts.items():
            refuse_secrets(name, text.encode())
        operations: list[Any] = [self.operations[path] for path in changed]
        operations += [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
        operations += [CommitOperationDelete(path) for path in removed if path in standing.files]
        first = next(iter(self.message.splitlines()), "")[:80]
        title = f"{release.version}: {first}" if first else release.version

        def sent() -> str:
            repo.validate(texts[CARD])
            return repo.commit(operations, title, self.message, standing.head)

        commit = told(f"sending {release.version}", self.repo_id, sent)
        told(
            f"tagging {release.version}",
            self.repo_id,
            lambda: repo.tag(release.version, self.message or title, commit),
        )
        return commit

    def _nothing(self, standing: Standing, card: Card, last: str) -> PushReport:
        files = tuple(PushedFile(one.path, one.size, "same") for one in self.uploads)
        return PushReport(
            self.repo_id, last, "nothing changed since", False, standing.private, files, tuple(self.left), (),
            card.text, "", card.notes, last, "", f"{endpoint()}/{self.repo_id}/tree/{last}",
        )  # fmt: skip

    def _report(
        self, card: Card, standing: Standing, release: Release, reason: str, states: dict[str, str],
        texts: dict[str, str], removed: tuple[str, ...], entry: str, commit: str, found: list[Version],
    ) -> PushReport:  # fmt: skip
        sizes = {one.path: one.size for one in self.uploads} | {
            name: len(text.encode()) for name, text in texts.items()
        }
        files = tuple(PushedFile(path, size, states[path]) for path, size in sorted(sizes.items()))
        notes = list(card.notes)
        notes += [f"kept from the card on the Hub: {', '.join(card.kept)}"] if card.kept else []
        if standing.private and not self.private:
            notes.append("the repository was private before and stays so: its settings on the Hub change that")
        last = latest_of(found)
        return PushReport(
            self.repo_id, release.version, reason, False, standing.private, files, tuple(self.left), removed, card.text,
            entry, tuple(notes), str(last or ""), commit, f"{endpoint()}/{self.repo_id}/tree/{release.version}",
        )  # fmt: skip


def _before(releases: list[Release], found: list[Version]) -> Release | None:
    """The record of the last version; None where there is none, or none that can be read."""
    last = str(latest_of(found) or "")
    return next((one for one in releases if one.version == last), None)


def _metrics_of(before: Release | None, files: Sequence[str]) -> dict[str, float]:
    """What was measured of files that stay."""
    starts = tuple(f"{name}: " for name in files)
    return {
        name: value for name, value in (before.metrics if before else {}).items() if name.startswith(starts or "\n")
    }


def _changes(states: dict[str, str], removed: tuple[str, ...], kind: str) -> list[str]:
    """Lines for the changelog."""
    rows = []
    for state in ("new", "changed"):
        if names := [f"`{path}`" for path, found in states.items() if found == state]:
            rows.append(f"{state}: {', '.join(names)}")
    rows += [f"removed: {', '.join(f'`{path}`' for path in removed)}"] if removed else []
    return rows or (["only the card changed"] if kind == "card" else [])


def _check_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    why = ""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        why = str(error)
    if why:
        raise ExportError(f"{repo_id!r} is no id of the Hub; it is owner/name, as in 'anna/whisper-pl': {why}")


def _revision(repo_id: str, version: str, tags: dict[str, str]) -> str:
    """The tag, branch or commit that is meant."""
    found = versions_of(tags)
    if version == "latest":
        last = latest_of(found)
        if last is None:
            raise ExportError(f"{repo_id} has no versions; pull({repo_id!r}, {BRANCH!r}) takes what is there now")
        return str(last)
    if SHAPE.fullmatch(version):
        name = str(Version.read(version))
        if name not in tags:
            known = ", ".join(map(str, found)) or "none"
            raise ExportError(f"{repo_id} has no version {name}; it has: {known}")
        return name
    return version


def _cached_tags(repo_id: str) -> dict[str, str]:
    """Versions of a repository that were pulled before: name → commit."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    refs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "refs"
    found = [path for path in refs.iterdir() if path.is_file()] if refs.is_dir() else []
    return {path.name: path.read_text(encoding="utf-8").strip() for path in found}
