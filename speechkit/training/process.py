"""What a run leaves in the process as it found it: loggers, random generators. Knows nothing of training."""

from __future__ import annotations

import logging
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["import_notes_off", "random_state_kept"]


@contextmanager
def import_notes_off() -> Iterator[None]:
    """The trainer imports bitsandbytes where it is installed, which then logs that it has no 4-bit kernel for CPUs.

    It also asks the package `kernels` for one, which logs that offline it cannot check who published it.
    """
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "kernels")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """The trainer seeds all generators of the process; the caller's go on as if it had not."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
