"""scratch: what a CUDA graph captures shares no memory with anything else; what is shared is grown and given back."""

from __future__ import annotations

import pytest
import torch
from speechkit_kernels import scratch as module
from speechkit_kernels.scratch import free_scratch, scratch, tickets


@pytest.fixture(autouse=True)
def _nothing_held() -> None:
    free_scratch()


def test_a_larger_need_replaces_the_buffer_and_a_smaller_one_uses_part_of_it(device: str) -> None:
    where = torch.device(device)
    with scratch(where, (4, 8), torch.float32) as lent:
        first = lent.data_ptr()
    with scratch(where, (3, 5), torch.float16) as lent:
        assert lent.data_ptr() == first and lent.shape == (3, 5) and lent.dtype == torch.float16
    with scratch(where, (8, 8), torch.float32) as lent:
        assert lent.numel() == 64
    assert free_scratch() == 8 * 8 * 4


def test_counters_are_zero_and_as_many_as_asked_for(device: str) -> None:
    few = tickets(torch.device(device), 3)
    assert few.numel() >= 3 and few.dtype == torch.int32 and not few.any()
    assert tickets(torch.device(device), 2).data_ptr() == few.data_ptr()
    assert tickets(torch.device(device), 5000).numel() >= 5000


def test_while_a_graph_is_captured_memory_is_its_own(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Graphs can be replayed beside each other, and before what else was captured on their stream."""
    where = torch.device(device)
    outside = tickets(where, 1)
    monkeypatch.setattr(module, "_capturing", lambda device: True)
    counters = [tickets(where, 1), tickets(where, 1), outside]
    assert len({one.data_ptr() for one in counters}) == 3 and not any(one.any() for one in counters)
    with scratch(where, (2, 3), torch.float16) as lent:
        assert lent.shape == (2, 3) and lent.dtype == torch.float16
    assert free_scratch() == 0, "a buffer of a graph's pool was kept for others"


@pytest.mark.gpu
def test_a_graph_with_a_shared_sum_gives_the_same_when_replayed() -> None:
    """Captured without a warm-up on the same stream, so that counters are made inside the capture."""
    from speechkit_kernels.nf4 import nf4_quantise
    from speechkit_kernels.nf4_linear import nf4_linear

    weight = nf4_quantise(torch.randn(64, 4096, device="cuda"))
    for rows in (1, 8, 100):
        x = torch.randn(rows, 4096, device="cuda").half()
        expected = nf4_linear(x, weight)  # compiles
        free_scratch()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = nf4_linear(x, weight)
        for _ in range(2):
            y.fill_(float("nan"))
            graph.replay()
            assert torch.equal(y, expected), rows
