"""What trl and what it stands on say about settings that are meant. In: a context. Out: silence, within it alone."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet"]

# a filter hears what is said to its own logger, not to those below it
LOGGERS = (
    "trl", "accelerate", "peft", "DeepSpeed", "bitsandbytes", "bitsandbytes.backends.cpu.ops", "kernels",
    "kernels.hf_hub",
)  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """No remarks, no progress bars; errors pass."""
    # filters before anything is imported: DeepSpeed, where it is installed, has its say on the way
    loggers = [logging.getLogger(name) for name in LOGGERS]
    only = partial(_errors)  # one of its own, for contexts within contexts
    for logger in loggers:
        logger.addFilter(only)  # a level would be set anew by packages that are imported meanwhile
    try:
        from speechkit.asr import checkpoint

        with checkpoint.quiet(), warnings.catch_warnings():
            # transformers 5.23 calls it activation_checkpointing; the older name works in all that are allowed
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*|`is_gradient", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*bitsandbytes.*inputs will be cast.*", category=UserWarning)
            warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast.*", category=UserWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(only)


def _errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR and "gemm_4bit" not in record.getMessage()
