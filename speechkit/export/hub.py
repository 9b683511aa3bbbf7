"""A folder or model → a version in a repository of the Hub, with card, changelog and tag; and a version → a folder.

In: what was trained or exported, an id. Out: a `PushReport`, or the folder of a version. One push is one atomic commit
and one tag; uploading is huggingface_hub's, and so is the token, which no name in here ever holds.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError
from speechkit.export.card_facts import About, Measured, read_facts
from speechkit.export.hub_errors import LOG_IN, told
from speechkit.export.hub_files import PICKLED, gather
from speechkit.export.hub_push import SUPERSEDED, Push
from speechkit.export.hub_repo import BRANCH, Repository, Standing, endpoint
from speechkit.export.hub_report import PushReport
from speechkit.export.hub_secrets import Mine, refuse_secrets
from speechkit.export.hub_source import folder_named, opened
from speechkit.export.versions import RECORDS, SHAPE, Release, Version, latest_of, releases_from_json, versions_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["About", "Measured", "PushReport", "Release", "pull", "push", "versions"]

UNSAFE = tuple(f"*{ending}" for ending in sorted(PICKLED))


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
    mine = Mine() if dry_run else _logged_in(repo_id)
    refuse_secrets("message", (message or "").encode(), mine)
    started = time.monotonic()
    with opened(folder_or_model, tokenizer, files) as (folder, wanted):
        source = read_facts(folder_named(fspath(about.source))) if about and about.source else None
        facts = read_facts(folder, about, wanted, source)
        uploads, left = gather(facts, wanted, about.base if about else "", mine)
        job = Push(repo_id, private, version, message or "", facts, uploads, left, mine)
        report = job.planned() if dry_run else job.go()
    return replace(report, seconds=time.monotonic() - started)


def pull(repo_id: str, version: str = "latest", *, folder: str | os.PathLike[str] | None = None) -> Path:
    """The files of a version → their folder: in the local cache, or in `folder`.

    version: "latest", the highest that is released; "v0.2.0" or "0.2.0"; a branch or a commit. Pickled files stay
    there. Weights that `folder` held before and the version lacks are warned of. Without a network the cache answers,
    and a warning says which version that is. Raises ExportError where there is no such version, or the Hub cannot be
    reached and the cache does not have it.
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

    got = Path(told(f"fetching {revision}", repo_id, fetched))
    if place is not None and not offline and (others := _others(repo, revision, got)):
        warnings.warn(
            f"{got.name} holds {', '.join(others)} besides, which {revision} of {repo_id} does not have and which may "
            "be loaded instead of its weights: remove what is of another version, or pull to an empty folder",
            stacklevel=2,
        )
    return got


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


def _others(repo: Repository, revision: str, folder: Path) -> list[str]:
    """Names of weights in a folder that are not of a revision."""
    there = told(f"listing {revision}", repo.repo_id, lambda: repo.files(revision))
    return [one.name for shape in SUPERSEDED for one in sorted(folder.glob(shape)) if one.name not in there]


def _logged_in(repo_id: str) -> Mine:
    """The token, to be looked for in files. Raises ExportError where there is none."""
    mine = told("looking for the token", repo_id, Mine.here)
    if not mine:
        raise ExportError(f"a push needs a token, and none is found: {LOG_IN}. dry_run=True needs none")
    return mine


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
