"""Distillation: the divergence, the pair, the table. Oracles: torch's kl_div, plain CTC, jiwer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jiwer
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import Trainer, TrainingArguments, Wav2Vec2ForCTC

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import labels, sound, tiny, written

from speechkit import Recognizer, load_asr
from speechkit.asr.checkpoint import Checkpoint
from speechkit.errors import DataError, ModelError, PlanError
from speechkit.text import normalize
from speechkit.training.data import Example
from speechkit.training.distil import DistilForCTC, DistilOptions, frame_kl, size_table, student_of

if TYPE_CHECKING:
    from speechkit.demo import DemoClip


def pair(weight: float = 0.5, temperature: float = 2.0, **changes: Any) -> DistilForCTC:
    teacher = tiny(**changes)
    return DistilForCTC(student_of(teacher, 1), teacher, DistilOptions(temperature, weight)).train()


def test_the_divergence_is_that_of_torch_on_the_frames_of_speech() -> None:
    torch.manual_seed(0)
    own, other = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    want = sum(
        kl_div(log_softmax(own[b, :n] / 3, -1), log_softmax(other[b, :n] / 3, -1), reduction="sum", log_target=True)
        for b, n in enumerate((7, 4))
    )
    frames = torch.tensor([7, 4])
    torch.testing.assert_close(frame_kl(own, other, frames, 3.0, total=True), 9 * want)
    torch.testing.assert_close(frame_kl(own, other, frames, 3.0), 9 * want / 11)
    assert frame_kl(own, own, frames) == 0
    own[1, 4:] = float("nan")  # padding may hold anything
    torch.testing.assert_close(frame_kl(own, other, frames, 3.0), 9 * want / 11)


def test_weight_zero_is_plain_ctc_and_weight_one_the_divergence_alone() -> None:
    model = pair(0.0)
    want = model.student(sound(), labels=labels()).loss
    torch.testing.assert_close(model(sound(), labels=labels()).loss, want)
    model = pair(1.0)
    with torch.no_grad():
        alone = frame_kl(model.student(sound()).logits, model.teacher(sound()).logits, torch.tensor([24, 24]), 2.0)
    torch.testing.assert_close(model(sound(), labels=labels()).loss, alone)
    torch.testing.assert_close(model(sound()).loss, alone)
    torch.testing.assert_close(pair(0.25)(sound(), labels=labels()).loss, 0.25 * alone + 0.75 * want)


def test_in_evaluation_the_loss_is_ctc_of_the_student() -> None:
    model = pair().eval()
    torch.testing.assert_close(model(sound(), labels=labels()).loss, model.student(sound(), labels=labels()).loss)
    assert model(sound()).loss is None


def test_the_teacher_stays_as_it_is_and_out_of_the_checkpoint(tmp_path: Path) -> None:
    model = pair()
    before = {name: weight.clone() for name, weight in model.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(sound(), labels=labels()).loss.backward()
    optimizer.step()
    assert all(torch.equal(before[name], weight) for name, weight in model.teacher.state_dict().items())
    assert not model.teacher.training and all(name.startswith("student.") for name in model.state_dict())
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = Wav2Vec2ForCTC.from_pretrained(tmp_path).eval()(sound()).logits
        torch.testing.assert_close(again, model.student.eval()(sound()).logits)


def test_a_ragged_batch_gives_the_loss_of_its_clips_one_by_one() -> None:
    """With the group norm too, which padding would move in both models."""
    model = pair(feat_extract_norm="group", conv_bias=True, ctc_loss_reduction="sum")
    clips, ids = sound(), labels()
    mask = torch.ones(2, 8000, dtype=torch.long)
    mask[1, 5000:] = 0
    batched = model(clips * mask, attention_mask=mask, labels=ids).loss
    singles = model(clips[:1], labels=ids[:1]).loss + model(clips[1:, :5000], labels=ids[1:]).loss
    torch.testing.assert_close(batched, singles, rtol=1e-4, atol=1e-4)


def test_a_plain_trainer_brings_the_student_closer_to_its_teacher(tmp_path: Path) -> None:
    rows = [{"input_values": clip, "labels": ids} for clip, ids in zip(sound(4), labels(4), strict=True)]
    model = pair(1.0)
    first = float(model(sound(4)).loss.detach())
    args = TrainingArguments(
        str(tmp_path), max_steps=20, save_steps=20, per_device_train_batch_size=4, learning_rate=3e-3, report_to=[],
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False, gradient_checkpointing=True,
    )  # fmt: skip
    Trainer(model, args, train_dataset=rows).train()  # type: ignore[arg-type]
    assert float(model.train()(sound(4)).loss.detach()) < 0.7 * first
    assert (tmp_path / "checkpoint-20" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 9},
            "the student has 9 outputs with blank 0, the teacher 13 with blank 0: they must mean the same",
        ),
        ({"pad_token_id": 3}, "the student has 13 outputs with blank 3, the teacher 13 with blank 0"),
        ({"conv_stride": (5, 2, 2, 2, 2, 2, 4)}, r"a frame every 640 samples over 400, the teacher every 320 over 400"),
    ],
)
def test_a_pair_that_does_not_speak_of_the_same_things_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        DistilForCTC(tiny(**changes), tiny())


def test_a_model_is_not_its_own_teacher_and_options_have_ranges() -> None:
    model = tiny()
    with pytest.raises(PlanError, match="student and teacher are one model"):
        DistilForCTC(model, model)
    for options in (DistilOptions(temperature=0), DistilOptions(weight=1.5)):
        with pytest.raises(PlanError, match=r"the temperature is above 0 .*, the weight in \[0, 1\]"):
            DistilForCTC(tiny(), tiny(), options)


def test_the_table_has_the_error_rates_sizes_and_turns_of_each_model(
    recognizer: Recognizer, demo_clips: list[DemoClip]
) -> None:
    clips = demo_clips[:3]
    parts = Checkpoint(student_of(recognizer.model, 3), recognizer.tokenizer, recognizer.extractor)
    small = Recognizer(parts, "half", "en", "cpu")
    examples = [Example(str(clip.path), clip.text, clip.path.name) for clip in clips]
    table = size_table({"demo/en": recognizer, "half": small}, examples, rounds=1)
    whole, half = table.rows
    heard = [normalize(recognizer.transcribe(str(clip.path)).text) for clip in clips]
    assert whole.wer == pytest.approx(jiwer.wer([normalize(clip.text) for clip in clips], heard))
    assert whole.cer == pytest.approx(jiwer.cer([normalize(clip.text) for clip in clips], heard))
    assert half.wer > whole.wer  # three layers cut out and not yet distilled
    assert half.parameters == sum(weight.numel() for weight in small.model.parameters()) < whole.parameters
    assert half.bytes == 4 * half.parameters
    assert whole.speed == 1.0 and half.speed > 0
    assert str(table).splitlines()[0].startswith("model") and "half" in str(table).splitlines()[2]
    assert f"3 clips, {table.audio_s:.1f} s of audio, 1 interleaved rounds" in str(table)


def test_a_table_of_nothing_is_an_error(recognizer: Recognizer) -> None:
    with pytest.raises(DataError, match="1 models, 0 examples and 3 rounds: give at least one of each"):
        size_table({"demo/en": recognizer}, [])


def test_a_distilled_student_opens_as_a_recognizer(tmp_path: Path) -> None:
    assert load_asr(written(pair().student, tmp_path), device="cpu").config.num_hidden_layers == 1
