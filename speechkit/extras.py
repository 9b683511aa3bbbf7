"""Optional packages. In: an import name and the extra that brings it. Out: the module, or the command to install it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from speechkit.errors import MissingExtra

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["available", "install_command", "require"]


def require(module: str, extra: str, purpose: str = "this") -> ModuleType:
    """Import `module`, or raise :class:`MissingExtra` with the command that installs it.

    `purpose` opens the sentence: `"reading talk.m4a"`. A package that is installed but fails to import (a binary
    built for another torch, a missing system library) is reported with its own reason: installing again would not help.
    """
    top = module.partition(".")[0]
    opening = f"{purpose} needs the package {top!r}"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == top:
            raise MissingExtra(f"{opening}, which is not installed: {install_command(extra)}", name=top) from error
        reason: Exception = error
    except (ImportError, OSError, RuntimeError) as error:  # what broken binary packages raise on import
        reason = error
    raise MissingExtra(
        f"{opening}, which is installed but fails to import ({type(reason).__name__}: {reason}); "
        f"`speechkit doctor` names the next step",
        name=top,
    ) from reason


def available(module: str) -> bool:
    """Whether `module` is installed. Looks, does not import: a broken package counts as installed."""
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a parent package is absent; or a stand-in without a spec
        return False


def install_command(extra: str) -> str:
    """The command to type for an extra: `pip install "speechkit[av]"`."""
    return f'pip install "speechkit[{extra}]"'
