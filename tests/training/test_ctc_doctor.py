"""The doctor names what is really wrong: conditions brought about in a small model. Healthy runs have no finding."""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Model, get_linear_schedule_with_warmup

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import TOKENS, config, labels, sound, tiny, tokenizer

from speechkit import load_asr
from speechkit.asr.batch import normalise
from speechkit.audio import load
from speechkit.errors import DataError, ModelError
from speechkit.training.ctc_doctor import Diagnosis, blind_loss, diagnose, frames_needed
from speechkit.training.curve import Curve, Point

if TYPE_CHECKING:
    from speechkit.demo import DemoClip


def trained(model: Any, batch: dict[str, Any], steps: int, rate: float) -> tuple[Any, Curve]:
    """Adam on one batch; the curve that a trainer would have written."""
    optimizer = torch.optim.Adam(model.train().requires_grad_(True).parameters(), lr=rate)
    points = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        points.append(Point(step, 0.1 * step, float(loss.detach()), rate, float(norm)))
    return model, Curve(tuple(points), steps)


@lru_cache
def on_the_plateau(steps: int = 30) -> Any:
    """Clips and labels that have nothing to do with each other, new ones at each step: there is nothing to hear."""
    model = tiny(initializer_range=0.05).train().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        model(sound(6, seed=step), labels=labels(6, seed=step)).loss.backward()
        optimizer.step()
    return model


def batch_of(clips: int = 2, count: int = 4) -> dict[str, Any]:
    return {"input_values": sound(clips), "labels": labels(clips, count)}


def rated(rates: list[float]) -> Curve:
    return Curve(tuple(Point(step, step, learning_rate=rate) for step, rate in enumerate(rates, 1)))


def test_a_model_that_says_blank_everywhere_is_on_the_plateau_and_one_that_learnt_is_not() -> None:
    batch, model = batch_of(6), on_the_plateau()
    share = float((model.eval()(sound(6)).logits.argmax(-1) == 0).float().mean())
    assert share > 0.97
    found = diagnose(model=model.train(), batch=batch)
    assert found.names == ("all-blank plateau",)
    assert f"{share:.1%} of the frames say blank" in found.findings[0].symptom
    assert model.training and all(not module._forward_hooks for module in model.modules())
    few = batch_of(1, 3)
    model, curve = trained(tiny(), few, 60, 0.01)
    assert curve.points[-1].loss is not None and curve.points[-1].loss < 0.5
    assert diagnose(model=model, batch=few).ok


@pytest.mark.parametrize("frames", [3, 10, 40])
def test_the_blind_loss_of_one_letter_is_the_best_of_all_constant_outputs(frames: int) -> None:
    """One letter: a run of k of it anywhere among blanks. Summed over k and over where it begins, by hand."""
    shares = np.linspace(0.02, 0.98, 2000)
    runs = np.arange(1, frames + 1)[:, None]
    sums = ((frames - runs + 1) * (1 - shares) ** runs * shares ** (frames - runs)).sum(0)
    best = float(-np.log(sums.max()))
    assert best - 1e-4 <= blind_loss([[3]], [frames], 13) <= best + 0.02


def test_no_training_of_a_constant_output_beats_the_blind_loss() -> None:
    ids, frames = [[3, 4, 3], [5, 5]], [20, 12]
    bias = torch.zeros(13, requires_grad=True)
    optimizer = torch.optim.Adam([bias], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        rows = bias.log_softmax(0).expand(20, 2, 13)
        sizes = torch.tensor([3, 2])
        flat = torch.tensor([3, 4, 3, 5, 5])
        loss = (torch.nn.functional.ctc_loss(rows, flat, torch.tensor(frames), sizes, reduction="none") / sizes).mean()
        loss.backward()
        optimizer.step()
    assert blind_loss(ids, frames, 13) == pytest.approx(float(loss.detach()), rel=0.03)
    assert math.isnan(blind_loss([[3, 3]], [2], 13))


@pytest.mark.parametrize("ids", [[3], [3, 3], [3, 4], [3, 3, 3, 4], [4, 4, 5, 5]])
def test_the_frames_needed_are_where_torchs_loss_becomes_finite(ids: list[int]) -> None:
    need = frames_needed(ids)
    for frames, finite in ((need, True), (need - 1, False)):
        rows = torch.zeros(max(frames, 1), 1, 13).log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(rows, torch.tensor([ids]), torch.tensor([frames]), torch.tensor([len(ids)]))
        assert bool(torch.isfinite(loss)) == finite


def test_labels_that_cannot_fit_are_named_by_row_and_do_make_the_loss_infinite() -> None:
    batch = {"input_values": sound(3, 2000), "labels": torch.tensor([[3, 4, -100, -100], [5, 5, 5, 5], [6, 7, 8, 9]])}
    model = tiny(ctc_zero_infinity=False).requires_grad_(True)  # 2000 samples are 6 frames; row 1 needs 7
    assert not bool(torch.isfinite(model(**batch).loss))
    found = diagnose(model=model, batch=batch)
    assert found.names[0] == "labels longer than their frames" and found.findings[0].severity == "stops"
    assert "1 of 3 clips (rows 1); row 1: 4 labels need 7 frames, it has 6" in found.findings[0].symptom
    model.config.ctc_zero_infinity = True
    milder = diagnose(model=model, batch=batch).findings[0]
    assert milder.severity == "costs" and "set to 0 here" in milder.cause


def test_a_loss_that_is_no_number_is_found_in_the_curve_and_afterwards_in_the_weights() -> None:
    batch = {"input_values": sound(1, 2000), "labels": torch.tensor([[5, 5, 5, 5]])}
    model, curve = trained(tiny(ctc_zero_infinity=False), batch, 2, 0.01)
    found = diagnose(curve, model)
    assert found.names[:2] == ("loss is no number", "weights are no numbers")
    assert "loss inf at step 1 (learning rate 1.0e-02), from the start" in found.findings[0].symptom
    assert "labels that cannot fit" in found.findings[0].cause


def test_an_overflow_of_float16_is_traced_to_the_layer_that_gave_it() -> None:
    model = tiny(ctc_loss_reduction="mean").requires_grad_(True)
    with torch.no_grad():
        model.wav2vec2.encoder.layers[1].feed_forward.intermediate_dense.weight.mul_(1e5)
    assert "activations are no numbers" not in diagnose(model=model, batch=batch_of()).names
    found = diagnose(model=model.half(), batch=batch_of())
    finding = next(f for f in found.findings if f.name == "activations are no numbers")
    assert "first in wav2vec2.encoder.layers.1.feed_forward.intermediate_dense, in float16" in finding.symptom


def test_samples_that_are_no_numbers_are_told_from_an_overflow() -> None:
    batch = batch_of()
    batch["input_values"][0, 100] = float("nan")
    finding = diagnose(model=tiny().requires_grad_(True), batch=batch).findings[0]
    assert (
        finding.name == "activations are no numbers" and "look at this layer's weights and at input" in finding.remedy
    )
    assert "first in wav2vec2.feature_extractor.conv_layers.0.conv, in float32" in finding.symptom


def test_frozen_weights_are_named_and_so_is_a_gradient_of_zero() -> None:
    recognizer = load_asr("demo/en", device="cpu")
    found = diagnose(model=recognizer.model, tokenizer=recognizer.tokenizer)
    assert found.names == ("everything is frozen",)
    assert f"0 of {sum(w.numel() for w in recognizer.model.parameters()):,} numbers learn" in found.findings[0].symptom
    still = Curve(tuple(Point(step, step, 3.0, 1e-3, 0.0) for step in range(1, 5)))
    assert "no gradient" in diagnose(still).names


def test_a_tokenizer_of_another_size_or_blank_is_named(tmp_path: Path) -> None:
    model = tiny().requires_grad_(True)
    assert diagnose(model=model, tokenizer=tokenizer(tmp_path / "same")).ok
    longer = tokenizer(tmp_path / "longer", (*TOKENS, "k", "l"))
    found = diagnose(model=model, tokenizer=longer)
    assert found.names == ("tokens are not the head's rows",) and "13 rows, 15 tokens" in found.findings[0].symptom
    moved = tokenizer(tmp_path / "moved", ("|", "<unk>", "<pad>", *TOKENS[3:]))
    found = diagnose(model=model, tokenizer=moved)
    assert found.names == ("blank differs",) and "the tokenizer's is 2, the model's 0" in found.findings[0].symptom
    model.lm_head = torch.nn.Linear(16, 15)
    assert diagnose(model=model).names == ("head and config differ",)


def test_text_in_the_wrong_case_is_found_before_training(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    ids = torch.tensor([words("BAD CAB").input_ids, words("BAD|HAD").input_ids])
    found = diagnose(batch={"input_values": sound(), "labels": ids}, tokenizer=words)
    assert found.names == ("unknown characters",) and "<unk>" in found.findings[0].symptom
    good = torch.tensor([words("bad cab").input_ids, words("bad had").input_ids])
    assert diagnose(batch={"input_values": sound(), "labels": good}, tokenizer=words).ok


def test_labels_outside_the_head_and_blanks_among_them_are_named() -> None:
    model = tiny().requires_grad_(True)
    found = diagnose(model=model, batch={"input_values": sound(), "labels": torch.tensor([[3, 13], [4, 5]])})
    assert found.names[0] == "labels outside the head" and "the largest label is 13" in found.findings[0].symptom
    padded = diagnose(model=model, batch={"input_values": sound(), "labels": torch.tensor([[3, 0], [4, 5]])})
    assert padded.names[0] == "blank among the labels" and "(rows 0)" in padded.findings[0].symptom
    empty = diagnose(batch={"input_values": sound(), "labels": torch.tensor([[-100, -100], [4, 5]])})
    assert empty.names == ("clips without labels",)


def test_a_schedule_that_never_arrives_or_never_warms_up_is_named() -> None:
    def rates(warmup: int, steps: int) -> Curve:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
        seen = []
        for _ in range(steps):
            optimizer.step()
            seen.append(schedule.get_last_lr()[0])
            schedule.step()
        return rated(seen)

    assert diagnose(rates(1000, 100)).names == ("never warmed up",)
    assert diagnose(rates(0, 100)).names == ("no warm-up",)
    assert diagnose(rates(10, 100)).ok
    assert diagnose(rated([0.0] * 5)).names == ("learning rate is zero",)


def test_a_step_too_long_is_seen_in_the_curve_of_a_run_that_diverged() -> None:
    batch = batch_of(1, 3)
    model, first = trained(tiny(), batch, 60, 0.01)
    _, second = trained(model, batch, 6, 3.0)
    later = tuple(Point(60 + p.step, 60 + p.step, p.loss, 3.0, p.grad_norm) for p in second.points[1:])
    assert "loss jumped and stayed up" in diagnose(Curve((*first.points, *later))).names
    assert "loss jumped and stayed up" not in diagnose(first).names


def scored(rows: list[tuple[float, float, float]]) -> Curve:
    return Curve(tuple(Point(10 * n, n, loss, wer=w, cer=c) for n, (loss, w, c) in enumerate(rows, 1)))


def test_overfitting_is_a_wer_that_rises_while_the_loss_falls() -> None:
    rows = [(3.0, 0.9, 0.5), (1.0, 0.4, 0.2), (0.4, 0.3, 0.1), (0.1, 0.38, 0.15), (0.02, 0.45, 0.2)]
    found = diagnose(scored(rows))
    assert found.names == ("overfitting",)
    assert "WER 30.0% at step 30, 45.0% at step 50, while the training loss fell from 0.40 to 0.02" in str(found)
    assert diagnose(scored(rows[:3])).ok


def test_a_loss_that_falls_without_wer_points_at_the_text_and_at_spaces_where_letters_are_right() -> None:
    found = diagnose(scored([(4.0, 1.0, 0.9), (2.0, 1.0, 0.9), (0.3, 1.0, 0.9)]))
    assert found.names == ("loss falls, WER does not",) and "case, alphabet or token order" in found.findings[0].cause
    found = diagnose(scored([(4.0, 1.0, 0.9), (2.0, 1.0, 0.5), (0.3, 1.0, 0.12)]))
    assert "spaces and the word delimiter do not agree" in found.findings[0].cause


def test_a_flat_loss_with_every_word_wrong_is_a_plateau_until_the_batch_says_more() -> None:
    model = on_the_plateau()
    flat = scored([(3.0, 1.0, 1.0), (2.98, 1.0, 1.0), (2.97, 1.0, 1.0)])
    assert diagnose(flat).names == ("plateau",)
    assert diagnose(flat, model, batch_of(6)).names == ("all-blank plateau",)


@pytest.mark.parametrize(
    ("pairs", "want"),
    [
        ([("THE BAD CAB", "the bad cab"), ("A HAT", "a hat")], ("case differs",)),
        ([("the bad, cab.", "the bad cab"), ("a hat!", "a hat")], ("spelling differs",)),
        ([("the bad cab", "thebadcab"), ("a hat", "ahat")], ("words run together or fall apart",)),
        ([("the bad cab", "the bad cab"), ("a hat", "a cat")], ()),
        ([("the bad cab", ""), ("a hat", "")], ()),
        ([("", "noise")], ()),
    ],
)
def test_texts_that_differ_in_spelling_only_are_told_apart(pairs: list[tuple[str, str]], want: tuple[str, ...]) -> None:
    assert diagnose(texts=pairs).names == want


def test_a_trained_model_on_its_own_speech_has_nothing_wrong(demo_clips: list[DemoClip]) -> None:
    recognizer = load_asr("demo/en", device="cpu")
    clips = [normalise(load(clip.path)) for clip in demo_clips[:3]]
    longest = max(map(len, clips))
    ids = [recognizer.tokenizer(clip.text).input_ids for clip in demo_clips[:3]]
    batch = {
        "input_values": torch.tensor(np.stack([np.pad(clip, (0, longest - len(clip))) for clip in clips])),
        "attention_mask": torch.tensor([[1] * len(clip) + [0] * (longest - len(clip)) for clip in clips]),
        "labels": torch.tensor([row + [-100] * (max(map(len, ids)) - len(row)) for row in ids]),
    }
    texts = [(clip.text, recognizer.transcribe(str(clip.path)).text) for clip in demo_clips[:3]]
    found = diagnose(None, recognizer.model.requires_grad_(True), batch, recognizer.tokenizer, texts)
    assert found.ok, str(found)
    assert str(found) == "nothing found; examined: model, batch, tokenizer, texts"


def test_a_finding_reads_as_symptom_cause_and_remedy() -> None:
    lines = str(diagnose(rated([0.0] * 5))).splitlines()
    assert lines[0] == "learning rate is zero (stops)" and lines[-1] == "examined: curve"
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["seen", "cause", "do"]
    assert str(Diagnosis((), ())) == "nothing found; examined: nothing"


def test_a_batch_without_labels_and_a_model_without_head_are_refused() -> None:
    with pytest.raises(DataError, match="the batch holds input_values; wanted input_values and labels"):
        diagnose(batch={"input_values": sound()})
    with pytest.raises(ModelError, match="Wav2Vec2Model has no CTC head"):
        diagnose(model=Wav2Vec2Model(config()))
