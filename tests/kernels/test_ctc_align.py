"""ctc_align beside torchaudio's forced_align and speechkit's own search, one row at a time: every frame equal."""

from __future__ import annotations

import pytest
import speechkit_kernels.ctc_align as module
import torch
from speechkit_kernels.ctc_align import Alignment, ctc_align
from speechkit_kernels.reference.ctc import ctc_align as definition

Case = tuple[torch.Tensor, torch.Tensor, list[int], list[int]]


def case(frames: list[int], tokens: list[int], width: int = 6, blank: int = 0) -> Case:
    """Random probabilities and labels of a ragged batch; a small vocabulary makes equal neighbours common."""
    log_probs = (3 * torch.randn(len(frames), max(frames), width)).log_softmax(dim=-1)
    ids = torch.tensor([i for i in range(width) if i != blank])
    return log_probs, ids[torch.randint(0, width - 1, (len(tokens), max(tokens)))], frames, tokens


def assert_as_torchaudio(found: Alignment, given: Case, blank: int) -> None:
    functional = pytest.importorskip("torchaudio.functional")
    log_probs, targets, frames, tokens = given
    for row, (n, count) in enumerate(zip(frames, tokens, strict=True)):
        if count:
            x = log_probs[row : row + 1, :n].double().cpu()
            path, scores = functional.forced_align(x, targets[row : row + 1, :count].cpu(), blank=blank)
            assert torch.equal(found.labels[row, :n].cpu(), path[0].long()), f"row {row}"
            torch.testing.assert_close(found.scores[row, :n].cpu(), scores[0].float(), rtol=1e-6, atol=0)
        assert (found.labels[row, n:] == blank).all() and not found.scores[row, n:].any()


def assert_as_own_search(found: Alignment, given: Case, blank: int) -> None:
    pytest.importorskip("numpy", reason="speechkit.asr.viterbi, beside which this is tested, computes in NumPy")
    from speechkit.asr.viterbi import search

    log_probs, targets, frames, tokens = given
    for row, (n, count) in enumerate(zip(frames, tokens, strict=True)):
        x = log_probs[row : row + 1, :n].double().cpu().numpy()
        paths = search(x, targets[row : row + 1, :count].cpu().numpy(), blank=blank)
        assert found.owners[row, :n].tolist() == paths.owners[0].tolist()
        assert found.totals[row].item() == pytest.approx(paths.scores[0], rel=1e-12)


@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize(
    ("frames", "tokens"),
    [([1], [1]), ([20, 17, 10], [9, 6, 0]), ([25, 12, 24], [1, 8, 3]), ([44, 30], [23, 2])],
    ids=str,
)
def test_every_frame_is_that_of_torchaudio_and_of_our_own_search(
    frames: list[int], tokens: list[int], blank: int, device: str
) -> None:
    log_probs, targets, frames, tokens = given = case(frames, tokens, blank=blank)
    found = ctc_align(log_probs.to(device), targets.to(device), frames, tokens, blank)
    assert_as_torchaudio(found, given, blank)
    assert_as_own_search(found, given, blank)


def test_states_in_several_blocks_and_bands_give_the_same_path(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Blocks of 64 pairs: at first the later ones, near the end the earlier ones are left alone."""
    monkeypatch.setattr(module, "PAIRS", 64)
    log_probs, targets, frames, tokens = given = case([92, 110], [70, 66], width=9)
    found = ctc_align(log_probs.to(device), targets.to(device), frames, tokens)
    assert_as_torchaudio(found, given, 0)
    assert_as_own_search(found, given, 0)


def test_labels_that_fill_every_frame_have_one_path(device: str) -> None:
    targets = torch.tensor([[1, 2, 2, 1]])
    found = ctc_align(torch.randn(1, 5, 3).to(device), targets.to(device))
    assert found.labels.tolist() == [[1, 2, 0, 2, 1]]


def test_of_equal_paths_the_one_that_stays_wins(device: str) -> None:
    log_probs = torch.full((1, 7, 3), -1.0)
    given = (log_probs, torch.tensor([[1, 2]]), [7], [2])
    found = ctc_align(log_probs.to(device), given[1].to(device))
    assert_as_own_search(found, given, 0)
    owners, _ = definition(log_probs, given[1], torch.tensor([7]), torch.tensor([2]))
    assert torch.equal(found.owners.cpu(), owners)


def test_the_definition_is_the_search_too() -> None:
    log_probs, targets, frames, tokens = given = case([31, 12, 20], [7, 0, 11])
    owners, totals = definition(log_probs, targets, torch.tensor(frames), torch.tensor(tokens))
    nothing = torch.zeros(0)
    assert_as_own_search(Alignment(nothing, nothing, owners, totals), given, 0)


def test_half_precision_and_strided_probabilities_are_read_as_they_are(device: str) -> None:
    log_probs, targets, frames, tokens = case([16, 13], [6, 4])
    half = log_probs.to(device, torch.float16)
    for x in (half, half.transpose(0, 1).contiguous().transpose(0, 1), half.transpose(1, 2).contiguous().mT):
        found = ctc_align(x, targets, frames, tokens)
        assert_as_own_search(found, (half, targets, frames, tokens), 0)


def test_what_lies_behind_a_rows_end_may_be_anything(device: str) -> None:
    log_probs, targets, frames, tokens = case([20, 9], [5, 2])
    clean = ctc_align(log_probs.to(device), targets.to(device), frames, tokens)
    log_probs[1, 9:], targets[1, 2:] = float("nan"), -100
    dirty = ctc_align(log_probs.to(device), targets.to(device), frames, tokens)
    for name in ("labels", "scores", "owners", "totals"):
        assert torch.equal(getattr(clean, name), getattr(dirty, name)), name


def test_a_path_without_probability_says_so(device: str) -> None:
    log_probs = torch.full((1, 4, 3), float("-inf"))
    log_probs[:, :, 0] = 0.0
    assert ctc_align(log_probs.to(device), torch.tensor([[1]], device=device)).totals.tolist() == [float("-inf")]


def test_no_rows_no_frames_and_no_labels(device: str) -> None:
    x = torch.randn(2, 3, 4, device=device)
    assert ctc_align(x[:0], torch.zeros(0, 2, dtype=torch.int64)).totals.shape == (0,)
    assert ctc_align(x[:, :0], torch.zeros(2, 0, dtype=torch.int64)).totals.tolist() == [0.0, 0.0]
    found = ctc_align(x, torch.zeros(2, 0, dtype=torch.int64))
    assert not found.labels.any()
    torch.testing.assert_close(found.totals.float(), x[:, :, 0].sum(dim=1))


@pytest.mark.parametrize("value", [float("-inf"), float("nan")], ids=["no path", "NaN"])
def test_pointers_that_no_path_has_written_are_not_followed(
    value: float, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """With labels in several blocks the trace back stands where no path was yet, and must not leave the row."""
    monkeypatch.setattr(module, "PAIRS", 64)
    targets = torch.randint(1, 9, (1, 90))
    found = ctc_align(torch.full((1, 200, 9), value, device=device), targets.to(device))
    owners, _ = definition(torch.full((1, 200, 9), value), targets, torch.tensor([200]), torch.tensor([90]))
    assert torch.equal(found.owners.cpu(), owners)


@pytest.mark.parametrize(
    ("targets", "lengths", "said"),
    [
        ([[1, 2, 3]], ([2], None), "row 0 has 2 frames; its 3 labels, with a blank between equal neighbours, need 3"),
        ([[1, 1, 1]], ([4], None), "row 0 has 4 frames; its 3 labels, with a blank between equal neighbours, need 5"),
        ([[1, 0, 1]], (None, None), r"label 1 of row 0 is 0; give ids in 0\.\.3 other than the blank, 0"),
        ([[1, 4, 1]], (None, None), r"label 1 of row 0 is 4; give ids in 0\.\.3 other than the blank, 0"),
        ([[1, 2, 1]], (None, [4]), r"tokens hold 4; give values in 0\.\.3"),
        ([[1, 2, 1]], ([9], None), r"frames hold 9; give values in 0\.\.6"),
        ([1, 2, 1], (None, None), r"targets are torch.int64 \(3,\); wanted integers \(1, L\)"),
        ([[1.0]], (None, None), r"targets are torch.float32 \(1, 1\); wanted integers \(1, L\)"),
    ],
)
def test_what_cannot_fit_is_named(targets: list[object], lengths: tuple[object, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"ctc_align: {said}"):
        ctc_align(torch.zeros(1, 6, 4), torch.tensor(targets), *lengths)  # type: ignore[arg-type]
