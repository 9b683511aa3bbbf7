"""Turns and medians, by a clock that is the CPU's own: 1 ms asleep is 1 ms."""

from __future__ import annotations

import statistics
import time

import pytest
from speechkit_kernels import timing
from speechkit_kernels.timing import copy_bandwidth, interleaved, spread


def test_providers_take_turns_and_the_order_rotates() -> None:
    seen: list[str] = []
    taken = interleaved({name: lambda n=name: seen.append(n) for name in "abc"}, 3, warm=1, device="cpu")
    assert "".join(seen) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in taken.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_sleep_takes_what_it_takes_and_what_comes_before_it_is_not_counted() -> None:
    taken = interleaved({"nap": lambda: time.sleep(0.01)}, 3, lambda: time.sleep(0.05), warm=1, device="cpu")
    assert 10 <= statistics.median(taken["nap"]) < 40


def test_slow_calls_get_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    assert len(interleaved({"nap": lambda: None}, device="cpu")["nap"]) == timing.LEAST_ROUNDS


def test_without_a_device_named_the_calls_are_timed_by_the_gpus_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_on_gpu", lambda call, before: 7.0)
    assert interleaved({"any": lambda: None}, 2, warm=0)["any"] == [7.0, 7.0]


def test_the_median_and_the_fifths_of_eleven_values() -> None:
    assert spread(range(11)) == (5, 2, 8)
    assert spread([3.0]) == (3.0, 3.0, 3.0)


def test_a_copy_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_on_cpu", lambda call, before: (call(), 1.0)[1])
    assert copy_bandwidth(10**6, device="cpu", rounds=1) == pytest.approx(2.0)  # 2 MB in 1 ms
