"""Processes of one run find each other, or end with the reason: who did not come, who is gone, in bounded time.

In: the variables that torchrun, accelerate, deepspeed or SLURM set (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Out: a
process group that torch, accelerate and DeepSpeed use from then on, and a sentence instead of a hang. Knows no model.

`join` calls the roll before any weight is loaded: each rank signs in a store, and after `wait_s` all say who is
missing. From then on each signs again every second (`BEAT_S`). A collective whose partner is gone fails at once over
gloo and after `collective_s` otherwise; `lost_rank` then reads off whose signature is old.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Ranks", "join", "leave", "lost_rank", "no_compiler", "ranks_here"]

WAIT_S = 120.0  # for machines that a cluster starts one after the other
COLLECTIVE_S = 1800.0  # of one collective: saving and evaluating are waited for too
BEAT_S = 1.0
STALE_S = 5.0  # a signature older than this is that of a process that ended, or hangs
SIGNS = ("peer", "timed out", "timeout", "connection", "closed", "socket", "nccl", "gloo")  # of errors about partners

_joined: list[Ranks] = []


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run."""

    rank: int
    size: int
    address: str  # where they meet
    backend: str  # "gloo" or "nccl"
    store: Any = None  # torch's; None for a run of one process
    stop: Any = None  # ends the signatures

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}, {self.backend} at {self.address}"


def ranks_here() -> tuple[int, int]:
    """(rank, number of ranks) as the launcher says; (0, 1) without one. Raises PlanError where it says nonsense."""
    given = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, size = int(given["RANK"]), int(given["WORLD_SIZE"])
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise PlanError(
            f"RANK is {given['RANK']!r} and WORLD_SIZE {given['WORLD_SIZE']!r}: ranks count from 0 to one less than "
            "WORLD_SIZE; torchrun sets both"
        )
    return rank, size


def join(backend: str = "gloo", *, wait_s: float = WAIT_S, collective_s: float = COLLECTIVE_S) -> Ranks:
    """Meet the other ranks of this run, once; a second call returns what the first did.

    Raises PlanError, after at most `wait_s` and a little, naming the ranks that did not come.
    """
    import torch.distributed as dist

    if _joined:
        return _joined[0]
    rank, size = ranks_here()
    host, port = os.environ.get("MASTER_ADDR", "localhost"), os.environ.get("MASTER_PORT", "29500")
    address = f"{host}:{port}"
    if size == 1:
        return Ranks(0, 1, address, backend)
    store = _store((host, int(port)), rank, size, wait_s)
    store.set(f"here/{rank}", str(os.getpid()))
    _roll_call(store, rank, size, wait_s)
    if not dist.is_initialized():
        store.set_timeout(timedelta(seconds=collective_s))
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=collective_s)
        )
    stop = threading.Event()
    threading.Thread(target=_sign, args=(store.clone(), rank, stop), daemon=True).start()
    _joined.append(Ranks(rank, size, address, backend, store, stop))
    return _joined[0]


def leave() -> None:
    """End the signatures and the process group; quiet where there is none."""
    import torch.distributed as dist

    for one in _joined:
        one.stop.set()
    _joined.clear()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_rank(ranks: Ranks) -> Iterator[None]:
    """Around a run: an error about a partner becomes a PlanError that names who is gone; others pass."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError and its like are RuntimeErrors
        if ranks.size == 1 or not any(sign in str(error).lower() for sign in SIGNS):
            raise
        gone = _stale(ranks)
        who = f"{_named(gone)} of {ranks.size} ended or hangs" if gone else f"a rank of {ranks.size} does not answer"
        first = str(error).strip().splitlines()[0][:200]
        raise PlanError(
            f"{who} ({first}); its own output says why. Start all ranks again with the same command: the run goes on "
            "from its last checkpoint"
        ) from error


def no_compiler() -> None:
    """Let DeepSpeed do without the extension for shared memory that it would compile when it starts on a CPU.

    It asks its own table of what can be built here; we answer no. gloo does the same work. Call before the first
    `deepspeed.initialize`. On a GPU nothing is compiled either as long as torch's Adam is used.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _store(place: tuple[str, int], rank: int, size: int, wait_s: float) -> Any:
    """torch's store; rank 0 opens it, unless torchrun has one already."""
    import torch.distributed

    dist: Any = torch.distributed
    host, port = place
    torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    wait = timedelta(seconds=wait_s)
    try:
        store = dist.TCPStore(host, port, None, rank == 0 and not torchrun, wait, wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        if rank == 0 and not torchrun:
            raise PlanError(f"rank 0 cannot listen at {host}:{port} ({_short(error)}); give another port") from error
        raise PlanError(
            f"rank {rank} of {size} found nobody at {host}:{port} within {wait_s:g} s: rank 0 is missing, or a "
            f"firewall is between. Start it, and check that every machine has the same MASTER_ADDR and MASTER_PORT"
        ) from error
    return dist.PrefixStore(f"speechkit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _roll_call(store: Any, rank: int, size: int, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    missing = list(range(size))
    while True:
        try:
            missing = [one for one in missing if not store.check([f"here/{one}"])]
        except RuntimeError as error:  # rank 0 gave up, and its store went with it
            raise PlanError(_came_short(missing or [0], size, wait_s)) from error
        if not missing:
            break
        if time.monotonic() > end:
            # the others are at the same count, and should read it before the store is gone
            time.sleep(0.5 if rank == 0 else 0.0)
            raise PlanError(_came_short(missing, size, wait_s))
        time.sleep(0.05)


def _came_short(missing: list[int], size: int, wait_s: float) -> str:
    return (
        f"{_named(missing)} of {size} did not come within {wait_s:g} s; {size - len(missing)} did. Start the same "
        f"command on every machine, with the same number of ranks, or plan for {size - len(missing)}"
    )


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def _sign(store: Any, rank: int, stop: threading.Event) -> None:
    """Write the time again and again, on a connection of its own; the clock is this machine's."""
    count = 0
    while not stop.is_set():
        count += 1
        try:
            store.set(f"beat/{rank}", str(count))
        except RuntimeError:  # the store is gone: the run is over
            return
        stop.wait(BEAT_S)


def _stale(ranks: Ranks) -> list[int]:
    """Whose count does not grow any more; clocks of machines need not agree."""
    others = [one for one in range(ranks.size) if one != ranks.rank]
    try:
        before = [ranks.store.get(f"beat/{one}") for one in others]
        time.sleep(max(STALE_S, 3 * BEAT_S) / 2)
        after = [ranks.store.get(f"beat/{one}") for one in others]
    except RuntimeError:  # the store was rank 0's
        return [0] if ranks.rank else []
    return [one for one, old, new in zip(others, before, after, strict=True) if old == new]
