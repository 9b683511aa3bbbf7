"""Settings by name, as JSON or keyword arguments give them. In: text, names. Out: a mapping whose names exist."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["check_names", "read_settings"]


def read_settings(text: str, known: Sequence[str], where: str = "the configuration") -> dict[str, Any]:
    """JSON object → its settings, by name. `where` opens the messages.

    Raises PlanError for text that is no JSON object, and for a name that is none of `known`.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise PlanError(f"{where} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise PlanError(f"{where} holds a {type(given).__name__}; it should be an object of settings")
    check_names(given, known, where)
    return given


def check_names(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raise PlanError for a name that is no setting, with the nearest that is."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise PlanError(f"{where} has no setting {name!r}; {hint}")
