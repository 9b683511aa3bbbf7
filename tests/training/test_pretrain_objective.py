"""The loss against that of transformers' own forward, which compares all frames with all negatives."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2ForPreTraining

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_models import tiny, tones

from speechkit.training.masking import draw_negatives, span_mask
from speechkit.training.objective import Pretraining, perplexity, quantize


def network(seed: int = 0, **changes: object) -> Wav2Vec2ForPreTraining:
    torch.manual_seed(seed)
    return Wav2Vec2ForPreTraining(tiny(**changes))


def drawn(net: Wav2Vec2ForPreTraining, rows: int, seconds: float, everything: bool = False) -> dict[str, torch.Tensor]:
    """Sound, mask and negatives for our forward."""
    rng = np.random.default_rng(3)
    values = torch.from_numpy(np.stack(tones(rows, seconds)))
    frames = int(net._get_feat_extract_output_lengths(values.shape[1]))
    mask = np.ones((rows, frames), bool) if everything else span_mask([frames] * rows, 0.065, 10, rng)
    negatives = torch.from_numpy(draw_negatives(mask, 20, rng))
    return {"input_values": values, "mask": torch.from_numpy(mask), "negatives": negatives}


def theirs(
    net: Wav2Vec2ForPreTraining, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, contrastive loss, diversity loss of `Wav2Vec2ForPreTraining.forward`, per masked frame."""
    mask, rows = batch["mask"], len(batch["mask"])
    frames = mask.shape[1]
    everywhere = torch.zeros(rows, frames, batch["negatives"].shape[-1], dtype=torch.long)
    for row in range(rows):
        places = mask[row].nonzero()[:, 0]
        everywhere[row, places] = places[batch["negatives"][row, : len(places)]] + row * frames
    found = net(batch["input_values"], mask_time_indices=mask, sampled_negative_indices=everywhere)
    count = mask.sum()
    return found.loss / count, found.contrastive_loss / count, found.diversity_loss / count


def test_loss_equals_that_of_transformers() -> None:
    net = network().eval()
    batch = drawn(net, 3, 1.3)
    ours = Pretraining(net, cnn_gradient=1.0, feature_penalty=0.0).eval()(**batch)
    loss, contrastive, diversity = theirs(net, batch)
    assert ours.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert ours.contrastive.item() == pytest.approx(contrastive.item(), rel=1e-5)
    assert ours.diversity.item() == pytest.approx(diversity.item(), rel=1e-5)


def test_gradients_equal_those_of_transformers_with_the_gumbel_softmax() -> None:
    """With every frame masked both draw the same noise in the same order."""
    net = network().train()
    batch = drawn(net, 2, 0.8, everything=True)
    module = Pretraining(net, cnn_gradient=1.0, feature_penalty=0.0).train()
    gradients = []
    for run in (lambda: module(**batch).loss, lambda: theirs(net, batch)[0]):
        net.zero_grad()
        net.set_gumbel_temperature(module.temperature)
        torch.manual_seed(5)
        run().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    ours, expected = gradients
    assert expected.keys() <= ours.keys()
    for name, gradient in expected.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-6), name


def test_only_the_convolutions_get_a_tenth_of_their_gradient() -> None:
    net = network().train()
    batch = drawn(net, 2, 0.8)
    found = []
    for factor in (1.0, 0.1):
        net.zero_grad()
        torch.manual_seed(5)
        Pretraining(net, cnn_gradient=factor).train()(**batch).loss.backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    for name in found[0]:
        share = 0.1 if "feature_extractor" in name else 1.0
        wanted = share * found[0][name]  # single entries are small differences of large sums
        assert (found[1][name] - wanted).norm() <= 1e-4 * wanted.norm(), name


def test_a_padded_row_counts_as_it_does_alone() -> None:
    net = network().eval()
    long, short = tones(1, 1.5)[0], tones(1, 0.9, seed=1)[0]
    frames = [int(net._get_feat_extract_output_lengths(len(clip))) for clip in (long, short)]
    rng = np.random.default_rng(2)
    mask = span_mask(frames, 0.065, 10, rng)
    negatives = draw_negatives(mask, 15, rng)
    values = np.stack([long, np.pad(short, (0, len(long) - len(short)))])
    module = Pretraining(net, feature_penalty=0.0).eval()

    def run(rows: np.ndarray, masked: np.ndarray, wrong: np.ndarray, counted: list[int]) -> torch.Tensor:
        tensors = (torch.from_numpy(rows), torch.from_numpy(masked), torch.from_numpy(wrong))
        return module(*tensors, frames=torch.tensor(counted)).contrastive

    together = run(values, mask, negatives, frames)
    counts = mask.sum(axis=1)
    alone = [
        run(long[None], mask[:1], negatives[:1, : counts[0]], frames[:1]),
        run(short[None], mask[1:, : frames[1]], negatives[1:, : counts[1]], frames[1:]),
    ]
    expected = sum(loss * int(count) for loss, count in zip(alone, counts, strict=True)) / counts.sum()
    assert together.item() == pytest.approx(float(expected), rel=1e-5)


def test_a_collapsed_codebook_has_no_wrong_answers_left() -> None:
    """Every negative equals the target: loss 0 and accuracy 1, which is what the doctor calls no success."""
    net = network().eval()
    with torch.no_grad():
        net.quantizer.weight_proj.weight.zero_()
        net.quantizer.weight_proj.bias[::5] = 9.0  # the first of five entries in each group
    found = Pretraining(net).eval()(**drawn(net, 2, 1.0))
    assert found.contrastive.item() == 0.0
    assert found.correct == found.masked
    assert (found.counts[:, 0] == found.masked).all()


def test_the_best_entries_are_taken_without_a_temperature_and_drawn_by_their_probability_with_one() -> None:
    net = network()
    with torch.no_grad():
        net.quantizer.weight_proj.weight.mul_(0.3)
    features = torch.randn(1, 8)
    best = quantize(net.quantizer, features, None)
    scores = net.quantizer.weight_proj(features).view(2, 5)
    groups = net.quantizer.codevectors.view(2, 5, 4)
    assert torch.equal(best.codes[0], scores.argmax(dim=-1))
    assert torch.allclose(best.vectors[0], torch.cat([groups[g, best.codes[0, g]] for g in range(2)]))
    drawn_often = quantize(net.quantizer, features.expand(20_000, -1), 1.0)
    shares = torch.stack([drawn_often.codes[:, g].bincount(minlength=5) / 20_000 for g in range(2)])
    assert torch.allclose(shares, scores.softmax(dim=-1), atol=0.02)  # five standard deviations


def test_perplexity_counts_the_entries_in_use() -> None:
    shares = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4])
    assert torch.allclose(perplexity(shares), torch.tensor([1.0, 2.0, 4.0]))


def test_loss_of_guessing_is_that_of_the_number_of_negatives() -> None:
    net = network().eval()
    with torch.no_grad():
        net.project_hid.weight.zero_()  # every prediction is the same: nothing is known
        net.project_hid.bias.zero_()
    batch = drawn(net, 2, 1.0)
    batch["input_values"] = torch.randn(batch["input_values"].shape)  # tones have so few codes that no negative is left
    found = Pretraining(net).eval()(**batch)
    assert found.contrastive.item() <= math.log(21) + 1e-5  # negatives equal to the target are left out
    assert found.correct == 0, "a tie is counted as a success"
