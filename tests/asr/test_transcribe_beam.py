"""`transcribe` with a beam search, a language model and hotwords: whole, long, in files, on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from speechkit import Recognizer, audio, demo
from speechkit.asr.beam import BeamDecoder, BeamOptions, choose
from speechkit.asr.decode import Alphabet
from speechkit.asr.lm import NGram
from speechkit.cli import main
from speechkit.demo.recipes.heldout import with_noise
from speechkit.errors import DataError, PlanError
from speechkit.evaluation.metrics import wer

TEXTS = [clip.text for clip in demo.clips("en")]


@pytest.fixture(scope="module")
def lm() -> NGram:
    return NGram.train(TEXTS * 2, order=3)


def test_a_wide_beam_without_extras_reads_what_greedy_search_reads(recognizer: Recognizer) -> None:
    paths = [clip.path for clip in demo.clips("en")]
    greedy, beam = recognizer.transcribe(paths), recognizer.transcribe(paths, decoder="beam")
    assert sum(a.text == b.text for a, b in zip(greedy, beam, strict=True)) >= 6
    for transcript in beam:
        assert " ".join(word.text for word in transcript.words) == transcript.text
        assert all(word.start_s < word.end_s <= transcript.duration_s + 1e-6 for word in transcript.words)


def test_a_language_model_of_the_texts_reads_the_texts(recognizer: Recognizer, lm: NGram) -> None:
    read = [spoken.text for spoken in recognizer.transcribe([clip.path for clip in demo.clips("en")], lm=lm)]
    assert sum(a == b for a, b in zip(read, TEXTS, strict=True)) >= 8


def test_hotwords_mend_words_that_were_misheard(recognizer: Recognizer) -> None:
    noisy = [with_noise(audio.load(clip.path), 15, i) for i, clip in enumerate(demo.clips("en"))]
    names = sorted({word for text in TEXTS for word in text.split() if len(word) > 4})
    alone, told = (recognizer.transcribe(noisy, decoder="beam", hotwords=words) for words in ((), names))
    errors = [wer(TEXTS, [spoken.text for spoken in heard]) for heard in (alone, told)]
    assert errors[1] < 0.8 * errors[0]


def test_what_comes_in_windows_is_searched_as_one(recognizer: Recognizer) -> None:
    clip = demo.clips("en")[0]
    long = np.concatenate([audio.load(clip.path)] * 12)  # more than one window
    assert len(long) > recognizer.window_s * 16000
    whole = recognizer.decoder(beam=8).decode(recognizer.log_probs([long]))[0][0]
    assert recognizer.transcribe(long, decoder=BeamOptions(beam=8)).text == whole.text


def test_silence_is_an_empty_transcript(recognizer: Recognizer) -> None:
    assert recognizer.transcribe(np.zeros(16000, np.float32), decoder="beam").text == ""


def test_what_is_asked_for_decides_the_search() -> None:
    alphabet = Alphabet(("", "a", "b", ""), blank=0, delimiter=3)
    assert choose(alphabet) is None and choose(alphabet, "greedy") is None
    assert choose(alphabet, hotwords=None) is None and choose(alphabet, "greedy", hotwords=None) is None
    assert choose(alphabet, "beam").options == BeamOptions()  # type: ignore[union-attr]
    made = BeamDecoder(alphabet, hotwords=["ab"])
    assert choose(alphabet, made) is made
    with pytest.raises(PlanError, match="greedy search listens to no"):
        choose(alphabet, "greedy", hotwords=["ab"])
    with pytest.raises(PlanError, match="has its language model and hotwords already"):
        choose(alphabet, made, hotwords=["ab"])
    with pytest.raises(PlanError, match="made for an alphabet of 4 tokens and the model has 3"):
        choose(Alphabet(("", "a", "b"), blank=0, delimiter=None), made)
    with pytest.raises(PlanError, match=r'decoder is 3; it can be "greedy", "beam"'):
        choose(alphabet, 3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="hotwords is one string"):
        choose(alphabet, hotwords="ab")


def test_an_unknown_option_names_the_known_ones(recognizer: Recognizer) -> None:
    with pytest.raises(PlanError, match="a beam search has no option width; it has beam, "):
        recognizer.decoder(width=3)


def test_another_decoder_is_another_model_to_a_resumed_batch(recognizer: Recognizer, tmp_path: Path) -> None:
    clip = demo.clips("en")[0].path

    def run(**options: object) -> str:
        (row,) = recognizer.transcribe_files([clip], tmp_path / "out", **options)  # type: ignore[arg-type]
        return row.status

    assert [run(), run(), run(decoder="beam"), run(decoder="beam"), run(hotwords=["london"])] == [
        "ok",
        "skipped",
        "ok",
        "skipped",
        "ok",
    ]


def test_command_line_takes_language_model_and_hotwords(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lm: NGram
) -> None:
    lm.write(tmp_path / "texts.arpa")
    (tmp_path / "names.txt").write_text("london\nanna\n", encoding="utf-8")
    clip = demo.clips("en")[2]
    options = ["--lm", str(tmp_path / "texts.arpa"), "--hotwords", str(tmp_path / "names.txt"), "--beam", "16"]
    assert main(["transcribe", str(clip.path), "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["transcript"]["text"] == clip.text
    assert main(["transcribe", str(clip.path), "--lm", str(tmp_path / "none.arpa")]) == 2
    assert "no such file; --lm is a language model in ARPA format" in capsys.readouterr().err
    assert main(["transcribe", str(clip.path), "--beam", "0"]) == 2
    assert "beam is 0; it must be a whole number, 1 or more" in capsys.readouterr().err
