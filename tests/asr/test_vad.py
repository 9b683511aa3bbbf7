"""The gate on hand-made and random probabilities; the network against its package's own pass over a whole clip."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechkit import audio, demo
from speechkit.asr.vad import BLOCK, Gate, GateOptions, Turn, Vad
from speechkit.errors import PlanError

AT_ONCE = GateOptions(silence_s=0.064, before_s=0.0, after_s=0.0)  # two blocks of silence end an utterance


def turns(probabilities: list[float], options: GateOptions | None = None) -> list[tuple[int, Turn]]:
    """Number of the block after which it was said, and what was said."""
    gate = Gate(options)
    found = [(number + 1, gate.step(probability)) for number, probability in enumerate(probabilities)]
    return [(number, turn) for number, turn in found if turn]


def test_speech_opens_and_silence_closes() -> None:
    found = turns([0.1, 0.9, 0.9, 0.2, 0.2, 0.2], AT_ONCE)
    assert found == [(2, Turn("open", BLOCK)), (5, Turn("close", 3 * BLOCK))]


def test_between_the_two_thresholds_an_open_gate_stays_open_and_a_closed_one_closed() -> None:
    assert turns([0.4] * 10, AT_ONCE) == []
    assert turns([0.9, *[0.4] * 30], AT_ONCE) == [(1, Turn("open", 0))]


def test_a_short_silence_does_not_end_an_utterance() -> None:
    assert [turn.kind for _, turn in turns([0.9, 0.1, 0.9, 0.1, 0.9], AT_ONCE)] == ["open"]


def test_an_utterance_keeps_some_sound_before_and_after_it() -> None:
    (_, opened), (_, closed) = turns([*[0.0] * 20, 0.9, *[0.0] * 30])
    assert opened.sample == 20 * BLOCK - 4800 and closed.sample == 21 * BLOCK + 4800, "0.3 s on both sides"


def test_sound_before_the_first_sample_is_not_asked_for() -> None:
    assert turns([0.0, 0.9])[0][1] == Turn("open", 0)


@given(
    probabilities=st.lists(st.sampled_from([0.0, 0.3, 0.4, 0.6, 1.0]), max_size=200),
    silence=st.floats(0.01, 0.5),
    before=st.floats(0, 0.5),
    share=st.floats(0, 1),
)
def test_utterances_never_overlap_and_hold_all_speech(
    probabilities: list[float], silence: float, before: float, share: float
) -> None:
    options = GateOptions(silence_s=silence, before_s=before, after_s=silence * share)
    found = turns(probabilities, options)
    assert [turn.kind for _, turn in found] == ["open", "close"] * (len(found) // 2) + ["open"] * (len(found) % 2)
    edges = [turn.sample for _, turn in found]
    assert edges == sorted(edges)
    assert all(turn.sample <= number * BLOCK for number, turn in found), "nothing is cut that was not heard yet"
    edges += [len(probabilities) * BLOCK] * (len(edges) % 2)
    inside = np.zeros(len(probabilities) * BLOCK, bool)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        inside[start:end] = True
    loud = np.repeat(np.array(probabilities) >= options.open_at, BLOCK)
    assert inside[loud].all()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"open_at": 1.5}, "0 < close_at <= open_at <= 1"),
        ({"open_at": 0.2}, "0 < close_at <= open_at <= 1"),
        ({"silence_s": 0.0, "after_s": 0.0}, "0 < silence_s"),
        ({"silence_s": float("nan")}, "0 < silence_s"),
        ({"before_s": -1.0}, "0 <= before_s"),
        ({"after_s": 2.0}, "0 <= after_s <= silence_s"),
    ],
    ids=lambda value: str(value),
)
def test_a_gate_that_could_not_work_is_refused(options: dict[str, float], rule: str) -> None:
    with pytest.raises(PlanError, match="it must hold that") as caught:
        GateOptions(**options)
    assert rule in str(caught.value)


def test_probabilities_are_the_packages_own_however_the_clip_is_cut() -> None:
    samples = audio.load(demo.clips("en")[1].path)
    samples = samples[: len(samples) // BLOCK * BLOCK]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from silero_vad import load_silero_vad

        threads = torch.get_num_threads()
        network = load_silero_vad()
        torch.set_num_threads(threads)
        truth = network.audio_forward(torch.from_numpy(samples)[None], sr=16_000)[0].numpy()
    vad = Vad()
    cut = 7 * BLOCK
    assert np.concatenate([vad(samples[:cut]), vad(samples[cut:])]) == pytest.approx(truth, abs=1e-6)
    assert truth.max() > 0.9, "the clip holds speech"


def test_loading_it_leaves_the_process_its_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Vad()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_each_stream_has_a_state_of_its_own() -> None:
    loud = (0.3 * np.random.default_rng(0).standard_normal(20 * BLOCK)).astype(np.float32)
    speech = audio.load(demo.clips("en")[0].path)[: 40 * BLOCK]
    alone = Vad()(speech)
    first, second = Vad(), Vad()
    second(loud)
    assert first(speech) == pytest.approx(alone, abs=1e-6)
