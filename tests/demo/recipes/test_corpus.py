"""Rendered sentences and stores: who speaks, what is kept, what an interruption leaves."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from speechkit.demo.recipes import corpus
from speechkit.demo.recipes.corpus import Row, Store, real_clips, render, write_store
from speechkit.errors import DataError

TEXTS = ["good morning", "turn left", "one two three", "the train is late"]


def test_a_seed_draws_the_same_sentences_in_the_same_order_in_every_process() -> None:
    code = (
        "import random; from speechkit.demo.recipes.corpus import sentences; "
        "from speechkit.demo.recipes.grammar import Grammar; print(sentences(Grammar('en'), random.Random(1), 9, True))"
    )
    drawn = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(drawn) == 1 and len(ast.literal_eval(drawn.pop())) == 9


def test_the_test_voices_are_held_out_ones_only() -> None:
    rows = list(render(TEXTS, test=True, seed=5, processes=1))
    assert [text for _, text, _, _ in rows] == TEXTS
    assert {speaker.split("+")[1] for _, _, speaker, _ in rows} <= set(corpus.HELD_OUT_VARIANTS)


def test_a_seed_repeats_texts_voices_and_lengths() -> None:
    first, second = (list(render(TEXTS, test=False, seed=5, processes=count)) for count in (1, 2))
    assert [(row[2], len(row[0])) for row in first] == [(row[2], len(row[0])) for row in second]


def test_a_text_that_kills_espeak_is_spoken_by_another_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(render(TEXTS, test=False, seed=5, processes=1))
    monkeypatch.setattr(corpus, "_speak", _die_of_the_third)
    rows = list(render(TEXTS, test=False, seed=5, processes=1))
    assert [text for _, text, _, _ in rows] == TEXTS
    assert [a[2] == b[2] for a, b in zip(whole, rows, strict=True)] == [True, True, False, True]
    assert len(rows[2][0]) > 8_000


def test_a_text_that_kills_with_every_voice_ends_the_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_speak", _die)
    with pytest.raises(BrokenProcessPool):
        next(render(TEXTS, test=True, seed=5, processes=1))


SPEAK = corpus._speak


def _die_of_the_third(job: corpus.Job) -> object:
    return _die(job) if job[2] == 7 else SPEAK(job)


def _die(job: object) -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


def test_silence_around_speech_is_cut_but_for_a_twentieth_of_a_second() -> None:
    quiet = np.zeros(16000, np.float32)
    speech = np.full(8000, 0.5, np.float32)
    assert len(corpus._trim(np.concatenate([quiet, speech, quiet]))) == pytest.approx(8000 + 1600, abs=1)
    assert len(corpus._trim(quiet)) == 16000


def test_an_interrupted_store_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    def clips() -> Iterator[Row]:
        yield np.zeros(160, np.float32), "one", "a", "digits"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, clips())
    assert not (tmp_path / "clips.jsonl").exists()


def test_a_store_keeps_samples_to_16_bits_and_clips_what_is_too_loud(tmp_path: Path) -> None:
    wave = np.linspace(-1.5, 1.5, 999, dtype=np.float32)
    write_store(tmp_path, iter([(wave[:5], "x", "a", "digits"), (wave, "y", "b", "digits")]))
    store = Store(tmp_path)
    np.testing.assert_allclose(store.samples(store.clips[1]), np.clip(wave, -1, 1), atol=1e-4)


def test_a_folder_without_a_manifest_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no manifest\.tsv in .*; name the folder of real speech, or leave --speech-data"
    ):
        list(real_clips(tmp_path))
