"""How a wish to stop gets past a busy kernel: interrupts that become a flag, and messages seen while they wait."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session
from zmq.eventloop.zmqstream import ZMQStream

from speechkit.widgets.interrupts import gentle_interrupt, notebook_kernel, overheard

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_interrupt_is_a_wish_and_the_second_an_exception():
    wishes: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), gentle_interrupt(lambda: wishes.append(1), lambda: bool(wishes)) as caught:
        assert caught
        signal.raise_signal(signal.SIGINT)
        assert wishes == [1]
        signal.raise_signal(signal.SIGINT)
    assert wishes == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_off_the_main_thread_interrupts_stay_what_they_are():
    found: list[object] = []
    before = signal.getsignal(signal.SIGINT)

    def enter():
        with gentle_interrupt(lambda: None, lambda: False) as caught:
            found.extend([caught, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False, before]


@pytest.fixture
def waiting():
    """What ipykernel 6 reads messages with: a ROUTER socket, its stream and a queue; and a front-end's socket to it."""
    context = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    dealer.connect(f"tcp://127.0.0.1:{port}")
    loop = asyncio.new_event_loop()

    async def made():
        queue: asyncio.Queue = asyncio.Queue()
        stream = ZMQStream(router)
        stream.on_recv(lambda frames: queue.put_nowait((0, print, (frames,))), copy=False)
        return SimpleNamespace(shell_stream=stream, msg_queue=queue)

    kernel = loop.run_until_complete(made())
    session = Session(key=b"secret")

    def send(kind: str, content: dict) -> None:
        session.send(dealer, kind, content)
        assert router.poll(5000), "it has arrived"

    yield kernel, send
    kernel.shell_stream.close()
    dealer.close()
    loop.close()
    context.term()


def _custom(comm_id: str, kind: str) -> dict:
    return {"comm_id": comm_id, "data": {"method": "custom", "content": {"kind": kind}}}


def test_a_message_that_waits_is_seen_and_stays_where_it_is(waiting):
    kernel, send = waiting
    assert not overheard(kernel, "ours", "stop")
    for kind, content in [
        ("execute_request", {"code": "stop"}),
        ("comm_msg", _custom("another", "stop")),
        ("comm_msg", _custom("ours", "rows")),
        ("comm_msg", {"comm_id": "ours", "data": {"method": "update", "state": {}}}),
    ]:
        send(kind, content)
        assert not overheard(kernel, "ours", "stop"), (kind, content)
    send("comm_msg", _custom("ours", "stop"))
    assert overheard(kernel, "ours", "stop") and overheard(kernel, "ours", "stop")
    assert kernel.msg_queue.qsize() == 5, "all of them are still to be handled"


def test_frames_that_are_no_message_are_passed_over(waiting):
    kernel, _ = waiting
    comm = b'{"msg_type": "comm_msg"}'
    short = [b"<IDS|MSG>", b"", comm]
    for frames in (
        [],
        [b"x"],
        [b"<IDS|MSG>", b"", b"no json"],
        [b"<IDS|MSG>", b"", b"[]"],
        short,
        [*short, b"", b"", b"[]"],
    ):
        kernel.msg_queue.put_nowait((0, print, (frames,)))
    assert not overheard(kernel, "ours", "stop")


def test_the_queue_is_looked_into_from_the_main_thread_alone(waiting):
    kernel, send = waiting
    send("comm_msg", _custom("ours", "stop"))
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(overheard(kernel, "ours", "stop")))
    thread.start()
    thread.join()
    assert found == [False]


def test_a_kernel_of_another_make_has_no_such_queue():
    assert not overheard(SimpleNamespace(), "ours", "stop")
    assert not overheard(None, "ours", "stop")
    assert notebook_kernel() is None, "this is a test run"


CELL = """
import time
from speechkit.training.curve import Point
from speechkit.widgets.metrics import LiveMetrics
with LiveMetrics(100_000) as live:
    print("BEGUN", flush=True)
    for step in range(1, 100_000):
        time.sleep(0.01)
        live.add(Point(step, 0.01 * step, loss=1.0))
        if live.requested:
            print("CHECKPOINT", flush=True)
            break
try:
    print("PHASE", live.phase, live.can_interrupt, flush=True)
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    print("AS EVER", flush=True)
"""


@pytest.mark.slow
def test_interrupting_a_real_kernel_stops_the_run_at_a_step_and_afterwards_interrupts_are_as_ever():
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    )
    client = manager.client()
    client.start_channels()
    said = ""
    try:
        client.wait_for_ready(timeout=120)
        client.execute(CELL)
        while "AS EVER" not in said:
            message = client.get_iopub_msg(timeout=120)
            assert message["msg_type"] != "error", message["content"]
            new = message["content"].get("text", "") if message["msg_type"] == "stream" else ""
            said += new
            if "BEGUN" in new or "PHASE" in new:
                manager.interrupt_kernel()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert said.split() == ["BEGUN", "CHECKPOINT", "PHASE", "stopped", "False", "AS", "EVER"]
