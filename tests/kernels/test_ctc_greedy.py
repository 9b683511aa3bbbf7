"""ctc_greedy beside speechkit.asr.decode.runs, one utterance at a time in NumPy: spans exactly, confidences closely."""

from __future__ import annotations

import pytest
import speechkit_kernels.ctc_greedy as module
import torch
from speechkit_kernels.ctc_greedy import Runs, ctc_collapse, ctc_greedy
from speechkit_kernels.reference.ctc import ctc_collapse as definition


def peaky(rows: int, frames: int, width: int) -> torch.Tensor:
    """Log-probabilities whose winners change slowly, as a model's do: runs of one to many frames."""
    slow = torch.randn(rows, frames // 3 + 1, width).repeat_interleave(3, dim=1)[:, :frames]
    return (4 * slow + torch.randn(rows, frames, width)).log_softmax(dim=-1)


def assert_as_numpy(found: Runs, log_probs: torch.Tensor, lengths: list[int], blank: int) -> None:
    pytest.importorskip("numpy", reason="speechkit.asr.decode, beside which this is tested, computes in NumPy")
    from speechkit.asr.decode import best_path, runs

    for row, length in enumerate(lengths):
        expected = runs(best_path(log_probs[row, :length].float().cpu().numpy()), blank)
        got = found.row(row)
        assert [run[:3] for run in got] == [(run.token, run.first, run.last) for run in expected]
        assert [run[3] for run in got] == pytest.approx([run.confidence for run in expected], rel=1e-5)
        rest = slice(len(got), None)
        assert all((part[row, rest] == -1).all() for part in (found.tokens, found.firsts, found.lasts))
        assert not found.confidences[row, rest].any()


@pytest.mark.parametrize(("frames", "width", "blank"), [(1, 1, 0), (40, 5, 0), (57, 3, 2), (23, 40, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_runs_are_those_of_numpy_utterance_by_utterance(
    frames: int, width: int, blank: int, dtype: torch.dtype, device: str
) -> None:
    log_probs = peaky(4, frames, width).to(device, dtype)
    lengths = [frames, frames // 2, max(0, frames - 1), 0]
    assert_as_numpy(ctc_greedy(log_probs, lengths, blank), log_probs, lengths, blank)


def test_a_run_that_crosses_blocks_is_one_run(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(module, "FRAMES", 4)
    ids = torch.tensor([[3] * 9 + [0] * 2 + [1, 1, 1, 2, 2, 0, 2] + [2] * 6], device=device)
    scores = -torch.rand(1, 24, device=device)
    got = ctc_collapse(ids, scores).row(0)
    assert [run[:3] for run in got] == [(3, 0, 8), (1, 11, 13), (2, 14, 15), (2, 17, 23)]
    means = [scores[0, first : last + 1].double().mean().exp().item() for _, first, last, _ in got]
    assert [run[3] for run in got] == pytest.approx(means, rel=3e-6)


def test_the_definition_and_the_kernel_say_the_same_of_all_columns(device: str) -> None:
    ids, scores = torch.randint(0, 3, (5, 33), device=device), -torch.rand(5, 33, device=device)
    lengths = torch.tensor([33, 32, 3, 1, 0])
    found, plain = ctc_collapse(ids, scores, lengths), Runs(*definition(ids, scores, lengths.to(device)))
    for name in ("tokens", "firsts", "lasts", "counts"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name
    torch.testing.assert_close(found.confidences, plain.confidences, rtol=3e-6, atol=0)


def test_frames_behind_a_rows_end_may_hold_anything(device: str) -> None:
    log_probs = peaky(2, 30, 6).to(device)
    clean = ctc_greedy(log_probs, [30, 11])
    log_probs[1, 11:] = float("nan")
    dirty = ctc_greedy(log_probs, [30, 11])
    assert clean.row(0) == dirty.row(0) and clean.row(1) == dirty.row(1)


def test_impossible_and_rounded_up_probabilities_stay_between_nought_and_one(device: str) -> None:
    scores = torch.tensor([[1e-3, 1e-3, float("-inf"), -0.5]], device=device)
    got = ctc_collapse(torch.tensor([[1, 1, 2, 3]], device=device), scores).row(0)
    assert [run[3] for run in got] == pytest.approx([1.0, 0.0, 0.6065306597], rel=3e-6)


def test_transposed_and_strided_inputs_and_many_tokens(device: str) -> None:
    whole = peaky(3, 19, 1500).to(device)
    for x in (whole, whole.transpose(0, 1).contiguous().transpose(0, 1), whole[:, ::2], whole[:, :, ::2]):
        assert_as_numpy(ctc_greedy(x), x, [x.shape[1]] * 3, 0)


def test_no_rows_and_no_frames_give_no_runs(device: str) -> None:
    assert ctc_greedy(torch.zeros(0, 4, 3, device=device)).counts.shape == (0,)
    assert ctc_greedy(torch.zeros(2, 0, 3, device=device)).counts.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.zeros(2, 3),), r"ctc_greedy: log_probs have shape \(2, 3\); wanted \(B, F, V\)"),
        ((torch.zeros(2, 3, 4), [3]), r"ctc_greedy: lengths have shape \(1,\); wanted \(2,\)"),
        ((torch.zeros(2, 3, 4), [3, 4]), r"ctc_greedy: lengths hold 4; give values in 0\.\.3"),
        ((torch.zeros(2, 3, 4), [1.0, 2.0]), "ctc_greedy: lengths are torch.float32; give whole numbers"),
        ((torch.zeros(2, 3, 4), None, 4), r"ctc_greedy: blank is 4; give an id in 0\.\.3"),
        ((torch.zeros(2, 3, 4, dtype=torch.int64),), "ctc_greedy: log_probs is torch.int64; give float32"),
    ],
)
def test_what_does_not_fit_is_named(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ctc_greedy(*arguments)  # type: ignore[arg-type]


def test_collapse_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"ids are torch.float32 \(2, 3\); wanted int32 or int64"):
        ctc_collapse(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"scores has shape \(2, 4\); wanted \(2, 3\)"):
        ctc_collapse(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4))
