"""What a disk that is full, or cannot be written, does to a run: one typed error that says what survives."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from speechkit.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["writing"]


@contextmanager
def writing(path: Path, survives: Callable[[], str]) -> Iterator[None]:
    """While open, a failure to write `path` becomes an OutputError.

    survives: asked then, in words, which checkpoint the run can go on from; "" for none.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, OutputError) or (type(error) is RuntimeError and not _from_writer(error)):
            raise
        whole = survives()
        kept = f"{whole}, the same command goes on from there" if whole else "nothing yet"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutputError(
            f"{path} cannot be written: {reason}. What survives: {kept}. Free some space (a checkpoint takes about "
            "three times the weights that learn), or name a folder on another disk"
        ) from error


def _from_writer(error: RuntimeError) -> bool:
    """Whether torch's own archive writer failed, which says so in a plain RuntimeError."""
    text = str(error)
    return "PytorchStreamWriter" in text or "unexpected pos" in text or "file write failed" in text.lower()
