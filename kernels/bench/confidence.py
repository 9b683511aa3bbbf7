"""How true are the confidences of demo/en? Calibration, review queue, threshold, ensemble, on speech it never heard.

    python kernels/bench/confidence.py                           about two minutes
    python kernels/bench/confidence.py --second FOLDER           beside it an ensemble with another checkpoint

Clips: sentences and espeak-ng voices held out from training, each at a random signal-to-noise ratio of 0 to 25 dB,
so that there are errors to find. Voices are parted: a calibration is fitted on the clips of some, and measured on those
of the others.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from speechkit import load_asr
from speechkit.asr.decode import best_path, decode, text_of
from speechkit.demo.recipes.heldout import spoken, with_noise
from speechkit.evaluation.calibration import ConfidenceMap, compare
from speechkit.evaluation.ensemble import combine
from speechkit.evaluation.metrics import wer
from speechkit.evaluation.review import errors_found, rejection_threshold
from speechkit.evaluation.temperature import FrameCalibration, FrameTemperature, judge_frames

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechkit.asr.model import Recognizer
    from speechkit.evaluation.judge import Judged

    Rows = list[NDArray[np.float32]]  # (F, V) each, natural log

SHARES = (0.05, 0.1, 0.2, 0.3)


def calibrations(rows: Rows, texts: list[str], voices: list[str], recognizer: Recognizer) -> tuple[Judged, Judged]:
    """Print the error before and after each calibration; the best one's words of the fit and of the other voices."""
    alphabet = recognizer.alphabet
    raw = judge_frames(rows, texts, alphabet)
    fitting, others = raw.split(0.5, 0, voices)

    def part(numbers: NDArray[np.int64]) -> tuple[Rows, list[str]]:
        return [rows[i] for i in numbers], [texts[i] for i in numbers]

    before = raw.pick(others)
    heat = FrameTemperature.fit(*part(fitting), alphabet)
    curve = ConfidenceMap.fit(raw.pick(fitting))
    both = FrameCalibration.fit(*part(fitting), alphabet)
    warm = judge_frames(*part(others), alphabet, heat.temperature)
    after = both.judge(*part(others), alphabet)
    print(f"temperature {heat.temperature:.2f}\n  {compare(before, warm, heat.fit_on)!r}")
    mapped = before.with_confidence(curve(before.confidence))
    print(f"curve, slope {curve.slope:.2f}, offset {curve.offset:+.2f}\n  {compare(before, mapped, curve.fit_on)!r}")
    print(f"both, temperature {both.temperature:.2f}\n  {compare(before, after, both.fit_on)!r}")
    return both.judge(*part(fitting), alphabet), after


def review(chosen: Judged, measured: Judged) -> None:
    """What a queue and a threshold chosen on some voices are worth on the others."""
    found, wrong = errors_found(measured), float((~measured.correct).mean())
    print("\nreview queue: so many of the wrong words are among the least sure (no queue finds more than the second)")
    for share in SHARES:
        there = found[round(share * len(measured))]
        print(f"  {share:5.0%} of the words: {there:.0%} of at most {min(1, share / wrong):.0%}")
    for rate in (0.02, 0.05):
        threshold = rejection_threshold(chosen, rate)
        print(f"{rate:.0%} errors wanted\n  chosen:   {threshold}\n  measured: {threshold.on(measured)}")


def ensemble(first: Recognizer, second: Recognizer, clips: list[NDArray[np.float32]], texts: list[str]) -> None:
    """Word error rate of two checkpoints alone, and of their frames together."""
    rows = [first.log_probs(clips), second.log_probs(clips)]
    print("\nensemble, word error rate")
    for weight in (1.0, 0.0, 0.5):
        together = [combine(pair, (weight, 1 - weight)) for pair in zip(*rows, strict=True)]
        said = [text_of(decode(best_path(row), first.alphabet, first.grid, float("inf"))) for row in together]
        print(f"  {weight:.1f} {first.name} + {1 - weight:.1f} {second.name}: {wer(texts, said):.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--second", help="folder of a second checkpoint with the same vocabulary")
    arguments = parser.parse_args()
    recognizer = load_asr("demo/en", device="cpu")
    heard = spoken(arguments.clips, seed=23)
    ratios = np.random.default_rng(0).uniform(0, 25, len(heard)).tolist()
    clips = [with_noise(c.samples, ratio, i) for i, (c, ratio) in enumerate(zip(heard, ratios, strict=True))]
    texts, voices = [c.text for c in heard], [c.voice for c in heard]
    rows = recognizer.log_probs(clips)
    print(f"{len(clips)} clips by {len(set(voices))} voices, {judge_frames(rows, texts, recognizer.alphabet)!r}\n")
    review(*calibrations(rows, texts, voices, recognizer))
    if arguments.second:
        ensemble(recognizer, load_asr(arguments.second, device="cpu"), clips, texts)


if __name__ == "__main__":
    main()
