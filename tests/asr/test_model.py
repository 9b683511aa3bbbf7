"""Recognizer on real (tiny, random-weight) models in published shapes; plain transformers is the oracle."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch
from asr_shapes import BASE, SHAPES, Shape, build, noise
from transformers import AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

from speechkit import audio, demo
from speechkit.asr.check import windows_agree
from speechkit.asr.model import Recognizer, load_asr
from speechkit.errors import AudioError, ModelError, PlanError
from speechkit.types import Transcript

if TYPE_CHECKING:
    from pathlib import Path

RAGGED_S = (0.3, 20.0, 1.1, 5.0, 0.7, 2.4)


@pytest.fixture(scope="module")
def recognizers(folders: dict[str, Path]) -> dict[str, Recognizer]:
    return {name: load_asr(folder, device="cpu") for name, folder in folders.items()}


def plain_transformers(folder: Path, samples: np.ndarray) -> torch.Tensor:
    """(F, V) log-probabilities by the documented use of transformers, one clip, nothing of ours."""
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    model = AutoModelForCTC.from_pretrained(folder).eval()
    with torch.no_grad():
        return (
            model(extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values).logits[0].log_softmax(-1)
        )


@pytest.mark.parametrize("name", SHAPES)
def test_a_single_clip_equals_plain_transformers(
    folders: dict[str, Path], recognizers: dict[str, Recognizer], name: str
) -> None:
    clip = noise(2.5)
    theirs, ours = plain_transformers(folders[name], clip), recognizers[name].log_probs(clip)
    assert ours.dtype == np.float32 and ours.shape == (124, len(SHAPES[name].tokens))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    text = Wav2Vec2CTCTokenizer.from_pretrained(folders[name]).batch_decode(theirs.argmax(-1)[None])[0]
    for special in ("<s>", "</s>", "<unk>", "[UNK]"):
        text = text.replace(special, "")
    spoken = recognizers[name].transcribe(clip)
    if name == "zh":
        assert spoken.text.replace(" ", "") == text.replace(" ", "")
    else:
        assert spoken.text == " ".join(text.split())


@pytest.mark.parametrize("stable", [False, True], ids=["post-norm", "stable layer norm"])
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_ragged_batches_equal_singles(tmp_path: Path, family: str, norm: str, stable: bool) -> None:
    recognizer = load_asr(build(tmp_path, Shape(BASE.tokens, norm, stable, mask=norm == "layer", family=family)))
    clips = [noise(seconds, seed) for seed, seconds in enumerate(RAGGED_S)]
    for alone, batched in zip([recognizer.forward([c])[0] for c in clips], recognizer.forward(clips), strict=True):
        assert alone.shape == batched.shape
        np.testing.assert_allclose(batched, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["en", "zh"])
def test_a_list_is_transcribed_in_order_as_each_alone(recognizers: dict[str, Recognizer], name: str) -> None:
    recognizer = recognizers[name]
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.4, 3.0, 0.4, 1.2, 3.1))]
    together, alone = recognizer.transcribe(clips), [recognizer.transcribe(clip) for clip in clips]
    assert [t.text for t in together] == [t.text for t in alone]
    assert [t.duration_s for t in together] == [0.4, 3.0, 0.4, 1.2, 3.1]
    for a, b in zip(together, alone, strict=True):
        assert [w.confidence for w in a.words] == pytest.approx([w.confidence for w in b.words], abs=1e-4)
    assert recognizer.transcribe([]) == []
    assert isinstance(recognizer.transcribe(clips[:1]), list)


def test_the_frame_grid_is_public(recognizers: dict[str, Recognizer]) -> None:
    recognizer = recognizers["en"]
    assert (recognizer.hop_samples, recognizer.field_samples) == (320, 400)
    assert recognizer.processor.tokenizer is recognizer.tokenizer
    assert "wav2vec2" in repr(recognizer) and "float32 on cpu" in repr(recognizer)


def test_words_may_be_left_out(recognizers: dict[str, Recognizer]) -> None:
    whole, bare = (recognizers["pl"].transcribe(noise(1), words=words) for words in (True, False))
    assert bare.words == () and whole.words
    assert (bare.text, bare.confidence) == (whole.text, whole.confidence)


def test_a_path_bytes_and_an_array_with_its_rate_give_one_answer(
    recognizers: dict[str, Recognizer], tmp_path: Path
) -> None:
    clip = noise(1.0)
    soundfile.write(tmp_path / "a.wav", clip, 16_000, subtype="FLOAT")
    path = tmp_path / "a.wav"
    texts = {recognizers["en"].transcribe(source).text for source in (path, path.read_bytes(), clip, (clip, 16_000))}
    assert len(texts) == 1 and texts != {""}


@pytest.mark.parametrize("name", ["en", "pl"])
def test_long_audio_is_windowed_onto_the_grid_of_the_whole(recognizers: dict[str, Recognizer], name: str) -> None:
    recognizer, clip = recognizers[name], noise(13.37)
    whole = recognizer.log_probs(clip)
    recognizer.window_s, recognizer.overlap_s = 4.0, 1.0
    try:
        parts, spoken = recognizer.log_probs(clip), recognizer.transcribe([noise(0.5), clip, noise(0.8)])
    finally:
        recognizer.window_s, recognizer.overlap_s = 30.0, 2.0
    assert parts.shape == whole.shape
    # random weights listen far; what must hold exactly is that frame k of the parts is frame k of the whole
    shifted = [float(np.mean(parts[3:-3].argmax(1) == np.roll(whole, k, 0)[3:-3].argmax(1))) for k in range(-3, 4)]
    assert int(np.argmax(shifted)) == 3 and shifted[3] > 0.5
    assert spoken[1].duration_s == pytest.approx(13.37)
    assert spoken[1].words[-1].end_s <= spoken[1].duration_s


def test_silence_is_an_empty_transcript_with_a_warning(recognizers: dict[str, Recognizer]) -> None:
    for level in (0.0, 3e-5):
        spoken = recognizers["en"].transcribe(np.full(16_000, level, np.float32))
        assert (spoken.text, spoken.words, spoken.confidence) == ("", (), 1.0)
        assert spoken.warnings[0].startswith("silent: the loudest sample is")


def test_a_silent_stretch_of_long_audio_writes_nothing(recognizers: dict[str, Recognizer]) -> None:
    recognizer = recognizers["en"]
    clip = np.concatenate([noise(3.0), np.zeros(12 * 16_000, np.float32), noise(3.0)])
    recognizer.window_s, recognizer.overlap_s = 4.0, 1.0
    try:
        words = recognizer.transcribe(clip).words
    finally:
        recognizer.window_s, recognizer.overlap_s = 30.0, 2.0
    assert not [w for w in words for c in w.chars if 7.5 < c.start_s < 11.5]
    assert words[0].start_s < 3 and words[-1].end_s > 15


def test_clipped_and_very_short_audio_is_transcribed_with_a_warning(recognizers: dict[str, Recognizer]) -> None:
    spoken = recognizers["en"].transcribe(np.sign(noise(0.2)).astype(np.float32))
    assert [note.split(":")[0] for note in spoken.warnings] == ["very short", "clipped"]
    assert recognizers["en"].transcribe(noise(1.0)).warnings == ()


def test_less_than_one_frame_is_refused_with_both_lengths(recognizers: dict[str, Recognizer]) -> None:
    with pytest.raises(AudioError, match=r"24\.9 ms \(399 samples at 16000 Hz\).*at least 25 ms \(400 samples\)"):
        recognizers["en"].transcribe(noise(1.0)[:399])
    assert isinstance(recognizers["en"].transcribe(noise(1.0)[:400]), Transcript)


def test_a_bad_item_of_a_list_is_named_by_its_number(recognizers: dict[str, Recognizer], tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"item 2 of 3: .*gone\.wav"):
        recognizers["en"].transcribe([noise(1.0), tmp_path / "gone.wav", noise(1.0)])


def test_out_of_memory_halves_the_batch_and_says_so(
    recognizers: dict[str, Recognizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer, clips = load_asr(recognizers["en"].name), [noise(1.0, seed) for seed in range(6)]
    forward = recognizer.model.forward

    def small(values: torch.Tensor, **options: object) -> object:
        if len(values) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return forward(values, **options)

    monkeypatch.setattr(recognizer.model, "forward", small)
    with pytest.warns(ResourceWarning, match="frame budget halved to 147"):
        spoken = recognizer.transcribe(clips)
    assert [t.text for t in spoken] == [recognizers["en"].transcribe(clip).text for clip in clips]


def test_threads_take_turns_and_get_their_own_answers(recognizers: dict[str, Recognizer]) -> None:
    recognizer = recognizers["en"]
    jobs = [[noise(0.5 + 0.3 * k, k), noise(1.0, k + 9)] for k in range(6)]
    expected = [[t.text for t in recognizer.transcribe(job)] for job in jobs]
    with ThreadPoolExecutor(4) as threads:
        assert [[t.text for t in row] for row in threads.map(recognizer.transcribe, jobs)] == expected


def test_bfloat16_answers_in_normalised_float32(folders: dict[str, Path]) -> None:
    log_probs = load_asr(folders["pl"], dtype="bfloat16").log_probs(noise(1.0))
    assert log_probs.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, atol=1e-5)  # log-softmax itself was not in bfloat16


def test_an_unknown_engine_device_or_dtype_lists_what_exists() -> None:
    with pytest.raises(ModelError, match="engine is 'onnx'; it can be 'auto' or 'torch'"):
        load_asr(engine="onnx")
    with pytest.raises(PlanError, match="device is 'tpu'"):
        load_asr("pl", device="tpu")
    with pytest.raises(PlanError, match="dtype is 'int3'"):
        load_asr("pl", dtype="int3")


@pytest.fixture(scope="module")
def english() -> Recognizer:
    return load_asr("demo/en", device="cpu")


def test_the_embedded_model_reads_the_embedded_clips_in_batches_as_alone(english: Recognizer) -> None:
    clips = [clip.path for clip in demo.clips("en")]
    together = english.transcribe(clips)
    assert [t.text for t in together] == [english.transcribe(clip).text for clip in clips]
    assert all(t.language == "en" and t.model == "demo/en" and t.words and not t.warnings for t in together)
    for spoken in together:
        assert spoken.text == " ".join(w.text for w in spoken.words)
        assert all(a.end_s <= b.start_s for a, b in pairwise(spoken.words))
    assert english.self_check().ok


def test_windows_of_the_embedded_model_agree_with_the_whole_on_nine_frames_in_ten(english: Recognizer) -> None:
    speech = np.concatenate([audio.load(clip.path) for clip in demo.clips("en")])
    assert windows_agree(english, speech, window_s=10.0, overlap_s=2.0).equal > 0.9


def test_three_minutes_cost_the_memory_of_one(english: Recognizer, tmp_path: Path) -> None:
    """Peak of what NumPy and Python allocate; a process's own peak is measured by `make bench`."""
    english.window_s = 5.0
    peaks = []
    try:
        for minutes in (1, 3):
            path = tmp_path / f"{minutes}.wav"
            with soundfile.SoundFile(path, "w", 16_000, 1) as file:
                for k in range(minutes):
                    file.write(noise(60.0, k))
            tracemalloc.start()
            assert english.transcribe(path).duration_s == minutes * 60
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    finally:
        english.window_s = 30.0
    two_minutes_of_samples = 2 * 60 * 16_000 * 4
    assert peaks[1] - peaks[0] < two_minutes_of_samples / 4
