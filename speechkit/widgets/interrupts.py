"""How a wish to stop reaches Python while a cell keeps the kernel busy. In: a callback, a comm's id. Out: stop or not.

A busy kernel leaves the messages of its widgets unread until the cell ends. Two ways past that, which
`widgets.metrics` puts together: an interrupt, turned from an exception in the middle of a step into a flag that the
trainer reads between two steps; and a look at the messages that wait, in kernels that read them on the main thread
(ipykernel 6, Colab's). Nothing is taken out of the queue: what waits is handled as ever when the cell has ended. Knows
no widget.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

__all__ = ["gentle_interrupt", "notebook_kernel", "overheard"]

DELIMITER = b"<IDS|MSG>"  # of Jupyter's wire protocol; signature, header, parent, metadata and content follow


def notebook_kernel() -> Any | None:
    """The notebook kernel that this process is, or None; asks IPython only if something has imported it already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)


@contextmanager
def gentle_interrupt(stop: Callable[[], None], requested: Callable[[], bool]) -> Iterator[bool]:
    """While open, the first interrupt (Ctrl-C, the notebook's ■) calls `stop`; one more raises KeyboardInterrupt.

    Yields whether that is so: signals can be caught on the main thread only. The handler found is put back at the end.
    `stop` must do no more than set a flag, since it runs between any two instructions of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if requested():
            signal.default_int_handler(signum, frame)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield True
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def overheard(kernel: Any, comm_id: str, kind: str) -> bool:
    """Whether a custom message `{"kind": kind}` for this comm waits in the kernel's queue; it is left there.

    False wherever there is no such queue to look into, and off the main thread, which alone may read the socket.
    """
    stream, queue = getattr(kernel, "shell_stream", None), getattr(kernel, "msg_queue", None)
    waiting = getattr(queue, "_queue", None)
    if stream is None or waiting is None or threading.current_thread() is not threading.main_thread():
        return False
    stream.flush()  # from the socket into the queue
    return any(_is_ours(args[0], comm_id, kind) for _, _, args in list(waiting) if args)


def _is_ours(frames: Sequence[Any], comm_id: str, kind: str) -> bool:
    """Whether a message, as it came over the wire, is a view's custom message of this kind."""
    try:
        parts = [bytes(getattr(frame, "buffer", frame)) for frame in frames]
        at = parts.index(DELIMITER)
        if json.loads(parts[at + 2])["msg_type"] != "comm_msg":
            return False
        content = json.loads(parts[at + 5])
        data = content["data"]
        return bool(content["comm_id"] == comm_id and data["method"] == "custom" and data["content"]["kind"] == kind)
    except (TypeError, ValueError, LookupError):  # no message of this protocol, or none of a widget's
        return False
