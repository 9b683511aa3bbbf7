"""What the Hub answers when it does not do what was asked → what to do, in words; and trying again where that helps.

In: a call, or an exception of huggingface_hub's. Out: its result, or an `ExportError` that carries no request: what is
raised here has neither cause nor context, because those hold headers, and headers hold the token.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from speechkit.errors import ExportError, SpeechkitError
from speechkit.export.hub_secrets import Mine, redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LOG_IN", "patient", "status_of", "told", "waits_bounded"]

T = TypeVar("T")

TRIES = 5
PASSING = (408, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed
LONGEST_S = 300.0  # waited for at once: the window in which the Hub counts requests; longer waits are reported instead
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN (https://huggingface.co/settings/tokens)"
pause = time.sleep


def patient(call: Callable[[], T]) -> T:
    """`call()`, again after a wait where the Hub is busy or the connection broke, five times at most.

    For calls that huggingface_hub makes once, and that may be made twice. What the Hub asks to wait (`Retry-After`,
    `RateLimit`) is waited, up to five minutes at once.
    """
    for tried in range(TRIES):
        try:
            return call()
        except _failures() as error:
            wait = _wait(error, tried)
            if wait is None or tried == TRIES - 1:
                raise
        pause(wait)
    raise AssertionError("the last try returns or raises")


@contextmanager
def waits_bounded() -> Iterator[None]:
    """While open, huggingface_hub, which tries again by itself after any wait, does not wait for hours."""
    from huggingface_hub import get_session

    client = get_session()
    before = client.event_hooks
    client.event_hooks = {**before, "response": [*before.get("response", []), _too_long]}
    try:
        yield
    finally:
        client.event_hooks = before


def _too_long(response: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if response.status_code == 429 and (_asked_of(response.headers) or 0.0) > LONGEST_S:
        response.read()
        hf_raise_for_status(response)


def told(doing: str, repo_id: str, call: Callable[[], T]) -> T:
    """`call()`; what goes wrong with the Hub or the network becomes an ExportError that says what to do."""
    try:
        return call()
    except _failures(_keyless(), RuntimeError, ValueError, OSError) as error:
        if isinstance(error, SpeechkitError):
            raise
        message = redacted(_advice(error, doing, repo_id), _mine())
    # raised outside of the handler: an exception that hangs on the Hub's would hold the request
    raise ExportError(message)


def status_of(error: BaseException) -> int:
    """The HTTP status that an exception, or what it came from, was raised for; 0 for none."""
    response = getattr(_root(error), "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def _answered() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError,)


def _transport() -> tuple[type[Exception], ...]:
    from huggingface_hub import utils

    # its own httpx: releases differ in which package that is
    return (utils.httpx.HTTPError,)  # type: ignore[attr-defined]


def _keyless() -> type[Exception]:
    """What releases that log in without a token raise where that fails; older ones have no such exception."""
    from huggingface_hub import errors

    return getattr(errors, "OIDCError", OSError)


def _mine() -> Mine:
    """The token, to hide it; where it cannot be had it was not sent either."""
    try:
        return Mine.here()
    except _failures(_keyless(), RuntimeError, ValueError, OSError):
        return Mine()


def _failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    return (*_answered(), *_transport(), *more)


def _root(error: BaseException) -> BaseException:
    """What an upload's RuntimeError was raised from."""
    one: BaseException | None = error
    while one is not None and not isinstance(one, (*_answered(), *_transport())):
        one = one.__cause__
    return one or error


def _wait(error: Exception, tried: int) -> float | None:
    """Seconds until the next try; None where another would not help."""
    status = status_of(error)
    if status and status not in PASSING:
        return None
    asked = _asked_s(error)
    if asked is not None:
        return asked if asked <= LONGEST_S else None
    return float(min(2**tried, 8))


def _asked_s(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait; None where it does not say."""
    return _asked_of(getattr(getattr(_root(error), "response", None), "headers", None) or {})


def _asked_of(headers: Any) -> float | None:
    """RateLimit where nothing remains of it, else Retry-After, in seconds or as a date."""
    from huggingface_hub import utils

    limits = utils.parse_ratelimit_headers(headers)  # type: ignore[attr-defined]
    if limits is not None and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    value = str(headers.get("Retry-After") or "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except ValueError:
        return None


def _advice(error: BaseException, doing: str, repo_id: str) -> str:
    """What happened and what to do."""
    from huggingface_hub import errors

    root = _root(error)
    status = status_of(error)
    if isinstance(root, errors.OfflineModeIsEnabled):
        return f"{doing} needs the network, and HF_HUB_OFFLINE is set: unset it. A push with dry_run=True needs none"
    if isinstance(root, errors.LocalTokenNotFoundError):
        return f"{doing} needs a token, and none is found: {LOG_IN}"
    if isinstance(root, errors.HFValidationError):
        return f"{repo_id!r} is no id of the Hub: it is owner/name, letters, digits and . _ - only, 96 at most"
    if isinstance(root, errors.LocalEntryNotFoundError):
        return f"{doing} did not work, and the local cache does not have it: {' '.join(str(root).split())[:300]}"
    if isinstance(root, _answered()):
        return _by_status(root, status, doing, repo_id)
    if isinstance(root, _transport()):
        return _broken(root, doing)
    if isinstance(error, FileNotFoundError):
        return f"a file went away while {doing}: {error.filename}; let nothing write into the folder, and do it again"
    why = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
    return f"{doing} did not work: {' '.join(f'{error}{why}'.split())[:500]}"


def _broken(root: BaseException, doing: str) -> str:
    from huggingface_hub import utils

    what = f"{type(root).__name__}: {' '.join(str(root).split())[:200] or 'no answer'}"
    if isinstance(root, (utils.httpx.ConnectError, utils.httpx.ConnectTimeout)):  # type: ignore[attr-defined]
        return f"the Hub cannot be reached while {doing} ({what}): look at the network, and at HF_ENDPOINT if it is set"
    return (
        f"the connection broke while {doing} ({what}). Nothing is half there: a repository changes with the last "
        "request of a push only. Do the same again; large files that have arrived are not sent twice"
    )


def _by_status(root: Any, status: int, doing: str, repo_id: str) -> str:
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    said = " ".join(str(getattr(root, "server_message", None) or root).split())[:300]
    if isinstance(root, GatedRepoError):
        return f"{repo_id} may only be read after its terms are accepted on its page, while signed in ({said})"
    if isinstance(root, RevisionNotFoundError):
        return f"{repo_id} has no such version ({said}); versions({repo_id!r}) lists those that exist"
    answers = {
        401: f"the Hub does not know who asks (401) while {doing}: the token is missing, mistyped, expired or revoked, "
        f"or {repo_id!r} is misspelt. {LOG_IN[0].upper()}{LOG_IN[1:]}; HF_TOKEN goes before what was logged in",
        403: f"the token may not do this (403) while {doing}: {said}. Take one with write permission for "
        f"{repo_id.partition('/')[0]!r} "
        "(https://huggingface.co/settings/tokens), or push under your own name",
        404: f"the Hub has no {repo_id!r} (404), or this token may not see it: check the spelling of owner and name",
        409: f"{repo_id} has that already (409) while {doing}: {said}",
        412: f"somebody else pushed to {repo_id} meanwhile (412): nothing of this push is in it. Push again; it then "
        "compares itself with what is there now",
        413: f"the Hub takes no request of this size (413) while {doing}: export with smaller shards",
        429: f"the Hub asks to wait (429) while {doing}, after several tries: {_how_long(root)} large files that have "
        "arrived are not sent twice",
    }
    if status in answers:
        return answers[status]
    if status >= 500:
        return (
            f"the Hub has a fault ({status}) while {doing}, after several tries: {said}. See "
            "https://status.huggingface.co and do the same again later; large files that arrived are not sent twice"
        )
    return f"the Hub refused ({status}) while {doing}: {said}"


def _how_long(root: Any) -> str:
    asked = _asked_s(root)
    return f"do the same again in {asked:,.0f} s;" if asked is not None else "do the same again in some minutes;"
