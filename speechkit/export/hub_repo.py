"""One repository of the Hub as it stands, and the few things done to it. All requests are huggingface_hub's.

In: an id. Out: its tags, files and texts; one atomic commit; a tag. Errors are those of huggingface_hub: `hub_errors`
puts them into words. The endpoint is HF_ENDPOINT as it is now, not as it was when huggingface_hub was imported.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from speechkit.errors import ExportError
from speechkit.export.hub_errors import patient, status_of, waits_bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from huggingface_hub import HfApi

__all__ = ["BRANCH", "Repository", "Standing", "endpoint"]

BRANCH = "main"
REPLY_S = 10.0  # huggingface_hub waits without limit for a server that accepts and says nothing


@dataclass(frozen=True)
class Standing:
    """A repository at one commit."""

    head: str  # the commit that the branch is at
    tags: dict[str, str] = field(default_factory=dict)  # name → commit
    files: dict[str, tuple[str, str]] = field(default_factory=dict)  # path → ("sha256" or "git", digest)
    private: bool = True

    def has(self, path: str, content: Path | bytes, sha256: str) -> bool:
        """Whether the file is there as it is here."""
        kind, digest = self.files.get(path, ("", ""))
        return bool(kind) and digest == (sha256 if kind == "sha256" else _git_digest(content))


@dataclass
class Repository:
    """`repo_id` at an endpoint; asked with the token of huggingface_hub's `get_token`, which is kept nowhere here."""

    repo_id: str
    endpoint: str
    write: bool = False  # then a token is a must

    @cached_property
    def api(self) -> HfApi:
        from huggingface_hub import HfApi

        from speechkit import __version__

        token = True if self.write else None  # huggingface_hub looks it up at each request
        return HfApi(self.endpoint, token=token, library_name="speechkit", library_version=__version__)

    def knock(self) -> None:
        """Raise httpx's exception where nobody answers within seconds; any answer will do."""
        from huggingface_hub import get_session

        get_session().get(f"{self.endpoint}/api/models/{self.repo_id}", timeout=REPLY_S)

    def who(self) -> dict[str, Any]:
        """The account of the token."""
        self.knock()
        return dict(patient(self.api.whoami))

    def create(self, private: bool) -> None:
        """Make it unless it is there."""
        if not patient(lambda: self.api.repo_exists(self.repo_id)):
            patient(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True))

    def standing(self) -> Standing:
        """Tags, the branch's commit, and the files in it."""
        from huggingface_hub.hf_api import RepoFile

        info = patient(lambda: self.api.model_info(self.repo_id))
        head = str(info.sha)
        rows = patient(lambda: list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=head)))
        files = {
            row.path: ("sha256", row.lfs.sha256) if row.lfs is not None else ("git", row.blob_id)
            for row in rows
            if isinstance(row, RepoFile)
        }
        return Standing(head, self.tags(), files, bool(info.private))

    def tags(self) -> dict[str, str]:
        """Name → commit."""
        refs = patient(lambda: self.api.list_repo_refs(self.repo_id))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def answering_tags(self) -> dict[str, str]:
        """The tags, or httpx's exception within seconds."""
        self.knock()
        return self.tags()

    def text(self, path: str, standing: Standing) -> str:
        """A small file at that commit; "" where there is none."""
        if path not in standing.files:
            return ""
        place = patient(lambda: self.api.hf_hub_download(self.repo_id, path, revision=standing.head))
        return Path(place).read_text(encoding="utf-8", errors="replace")

    def files(self, revision: str) -> list[str]:
        """Paths at a tag, branch or commit."""
        return patient(lambda: list(self.api.list_repo_files(self.repo_id, revision=revision)))

    def commit_of(self, version: str) -> str:
        """The newest commit that brought a version, by its title; "" for none."""
        commits = patient(lambda: self.api.list_repo_commits(self.repo_id, revision=BRANCH))
        return next((str(one.commit_id) for one in commits if one.title.partition(":")[0] == version), "")

    def validate(self, card: str) -> None:
        """Raise ExportError where the Hub's own check of a card's metadata, asked before anything is sent, says no."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        body = {"content": card, "repoType": "model"}
        answer = patient(lambda: _passing(get_session().post(f"{self.endpoint}/api/validate-yaml", json=body)))
        if answer.status_code == 400:
            faults = [str(one.get("message")) for one in answer.json().get("errors", ())]
            raise ExportError(f"the Hub refuses the card's metadata: {'; '.join(faults)}")
        hf_raise_for_status(answer)

    def commit(self, operations: Sequence[Any], title: str, message: str, parent: str) -> str:
        """Send what is missing, then change the branch in one request → the commit.

        Large files go first, by huggingface_hub, which asks for each whether the Hub has it, and tries again where the
        connection breaks. Where the answer to the last request is lost, the branch tells whether it arrived.
        """
        from huggingface_hub import CommitOperationAdd, utils
        from huggingface_hub.errors import HfHubHTTPError

        additions = [one for one in operations if isinstance(one, CommitOperationAdd)]
        with waits_bounded():
            self.api.preupload_lfs_files(self.repo_id, additions, free_memory=False, revision=BRANCH)

        def once() -> str:
            try:
                made = self.api.create_commit(
                    self.repo_id, operations, commit_message=title, commit_description=message, parent_commit=parent
                )
            except (HfHubHTTPError, utils.httpx.HTTPError) as error:  # type: ignore[attr-defined]
                lost = status_of(error) in (0, 412) or status_of(error) >= 500
                if (
                    lost
                    and (arrived := self.commit_of(title.partition(":")[0]))
                    and arrived != parent
                    and self._on_top(arrived)
                ):
                    return arrived
                raise
            return str(made.oid)

        return patient(once)

    def tag(self, name: str, message: str, commit: str) -> None:
        """Raises ExportError where another commit has that tag."""
        patient(
            lambda: self.api.create_tag(self.repo_id, tag=name, tag_message=message, revision=commit, exist_ok=True)
        )
        there = self.tags().get(name, "")
        if there != commit:
            raise ExportError(
                f"{name} is a tag of {self.repo_id} already, at commit {there[:8]}, and is not moved: somebody pushed "
                f"that version meanwhile. The files of this push are in {BRANCH}, at {commit[:8]}; push again with "
                "version='auto', and they get the next number"
            )

    def _on_top(self, commit: str) -> bool:
        return str(patient(lambda: self.api.model_info(self.repo_id)).sha) == commit


def endpoint() -> str:
    """Where the Hub is. Raises ExportError where the token would travel in the clear beyond this machine."""
    from huggingface_hub import constants

    found = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    parts = urlsplit(found)
    if parts.username or parts.password:
        raise ExportError("HF_ENDPOINT holds a name or password, and would be shown: take it out; the token logs in")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ExportError(f"HF_ENDPOINT is {found}: over http:// the token could be read on its way; use https://")
    return found


def _passing(answer: Any) -> Any:
    """The answer, or the exception of one that may be asked for again."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if answer.status_code != 400:
        hf_raise_for_status(answer)
    return answer


def _git_digest(content: Path | bytes) -> str:
    """As git names a file's content."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
