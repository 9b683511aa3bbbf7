"""Tokens and keys in what is to be published, and in what is said: found, refused, hidden; never repeated.

In: bytes, files, messages. Out: an ExportError that names file and line, or the message without them. The token of this
machine comes from huggingface_hub's `get_token` and is held by a `Mine` alone, which shows it to nobody.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechkit.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Mine", "redacted", "refuse_secrets"]

NO_TEXT = frozenset({".safetensors", ".gguf", ".png", ".jpg", ".jpeg"})
TOKENS: dict[str, re.Pattern[bytes]] = {
    "a Hugging Face token": re.compile(rb"(?<![A-Za-z0-9])(hf_(oauth_|jwt_)?|api_org_)[A-Za-z0-9]{20,}[\w.-]*"),
    "a GitHub token": re.compile(rb"(?<![A-Za-z0-9])(ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{30,}"),
    "an API key": re.compile(rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{32,}"),
    "an AWS key": re.compile(rb"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![0-9A-Za-z])"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
BLOCK, OVERLAP = 2**20, 512  # bytes read at once, and looked at twice at the seam
HEAD = 2**23  # bytes of a GGUF file that can hold its metadata
SHORTEST = 8  # of a token; anything shorter would be found in ordinary text


class Mine:
    """The token of this machine, only to be looked for. Empty unless made by :meth:`here`."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token = b""

    @classmethod
    def here(cls) -> Mine:
        """As huggingface_hub finds it, which may ask the Hub where it has to be renewed."""
        from huggingface_hub import get_token

        mine = cls()
        mine._token = (get_token() or "").encode()
        return mine

    def __bool__(self) -> bool:
        return bool(self._token)

    def __repr__(self) -> str:
        return "Mine()"

    def within(self, block: bytes) -> int:
        """Where it begins in `block`; -1 for nowhere."""
        return block.find(self._token) if len(self._token) >= SHORTEST else -1

    def hidden(self, text: str) -> str:
        """`text` without it."""
        return text.replace(self._token.decode(), "hf_…") if len(self._token) >= SHORTEST else text


def refuse_secrets(path: str, content: Path | bytes, mine: Mine | None = None) -> None:
    """Raise ExportError where what is to be published holds what looks like a token; it is not repeated."""
    what, line = _secret(content, mine)  # found elsewhere, so that no frame of the exception holds it
    if what:
        raise ExportError(
            f"{path}, line {line}, holds what looks like {what}, and would be published: take it out of the file, and "
            "revoke it (https://huggingface.co/settings/tokens) if others could have seen it. Nothing was sent"
        )


def redacted(text: str, mine: Mine | None = None) -> str:
    """`text` without anything that looks like a token: servers repeat what they were sent."""
    plain = text if mine is None else mine.hidden(text)
    for pattern in TOKENS.values():
        plain = re.sub(pattern.pattern.decode(), "hf_…", plain)
    return plain


def _secret(content: Path | bytes, mine: Mine | None) -> tuple[str, int]:
    """(what the first secret is, its line); ("", 0) for none."""
    line = 1
    for block, new in _blocks(content):
        for what, pattern in TOKENS.items():
            if found := pattern.search(block):
                return what, line + block.count(b"\n", 0, found.start())
        if mine is not None and (at := mine.within(block)) >= 0:
            return "the token of this machine", line + block.count(b"\n", 0, at)
        line += block.count(b"\n", 0, new)
    return "", 0


def _blocks(content: Path | bytes) -> Iterator[tuple[bytes, int]]:
    """What can hold text (all of a text, the header of weights) in blocks, and where in one the next begins."""
    if isinstance(content, bytes):
        yield content, 0
        return
    limit = content.stat().st_size
    if content.suffix == ".safetensors":
        with content.open("rb") as file:
            limit = 8 + int.from_bytes(file.read(8), "little")
    elif content.suffix in NO_TEXT:
        limit = min(limit, HEAD)
    with content.open("rb") as file:
        before = b""
        while limit > 0 and (read := file.read(min(BLOCK, limit))):
            limit -= len(read)
            block = before + read
            before = block[-OVERLAP:]
            yield block, len(block) - len(before)
