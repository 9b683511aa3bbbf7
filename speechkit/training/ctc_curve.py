"""What a training curve alone tells of CTC going wrong. In: a `Curve`, texts. Out: `Finding`s. Knows no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from speechkit.evaluation.metrics import cer, wer
from speechkit.training.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechkit.training.curve import Curve, Point

__all__ = ["curve_findings", "text_findings"]

DEAF_WER = 0.95  # nearly every word wrong or missing
LEARNT = 0.5  # of the loss at the start: below, the model has learnt something
FLAT = 0.05  # relative change of the loss over the last third
WORSE = (0.02, 0.1)  # rise of WER that is no noise: absolute, and relative to the best
COLD_START = 0.9  # of the highest learning rate
SPIKE = 2.0  # times the lowest loss
SILENT = 1e-7  # gradient norm
BETTER = 0.7  # an error rate below this share of another is another explanation, not chance


def curve_findings(curve: Curve) -> Iterator[Finding]:
    """Everything that losses, learning rates, gradient norms and error rates of a run show."""
    trained = [point for point in curve.points if point.loss is not None]
    broken = _broken(curve.points)
    if broken is not None:
        yield broken
        trained = [point for point in trained if _finite(point)]
    yield from _rates(curve)
    if len(trained) < 3:
        return
    losses = np.array([point.loss for point in trained], dtype=float)
    norms = [point.grad_norm for point in curve.points if point.grad_norm is not None]
    if norms and max(norms) < SILENT:
        yield Finding(
            "no gradient", "stops", f"gradient norm at most {max(norms):.1e} over {len(norms)} points",
            "no weight that learns has a part in the loss, or all losses of the run were set to zero (zero_infinity).",
            'apply_strategy(model, "top-2") and give the optimiser the parameters that learn; diagnose with a batch.',
        )  # fmt: skip
    low = int(losses.argmin())
    if low < len(losses) - 1 and losses[low + 1 :].min() > SPIKE * max(losses[low], 0.05):
        at, after = trained[low], trained[-1]
        yield Finding(
            "loss jumped and stayed up", "stops",
            f"{at.loss:.2f} at step {at.step}, {after.loss:.2f} at step {after.step}{_rate_of(trained[low + 1])}",
            "one step was too long: the learning rate is too high for these weights, or gradients are not clipped.",
            "go back to the best checkpoint with a third of the learning rate, a longer warm-up, max_grad_norm 1.",
        )  # fmt: skip
    yield from _scores(curve, trained, losses)


def text_findings(pairs: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """(reference, hypothesis) as they are, not normalised → ways in which the two spell differently."""
    wanted, heard = [reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs]
    if not any(heard):
        return
    raw, plain = _raw_wer(wanted, heard), wer(wanted, heard) if any(wanted) else 0.0
    folded = _raw_wer([line.casefold() for line in wanted], [line.casefold() for line in heard])
    if folded < BETTER * raw:
        yield Finding(
            "case differs", "costs", f"WER {raw:.1%} as written, {folded:.1%} when case is ignored",
            "the labels were spelt in one case and the references are in another.",
            "make labels and references with the same speechkit.text.normalize, or score with speechkit.evaluation.",
        )  # fmt: skip
    elif plain < BETTER * raw:
        yield Finding(
            "spelling differs", "costs", f"WER {raw:.1%} as written, {plain:.1%} after normalisation",
            "punctuation or forms of letters stand in the references that the labels never had.",
            "make labels and references with the same speechkit.text.normalize, or score with speechkit.evaluation.",
        )  # fmt: skip
    if plain > 0.5:
        joined = cer([line.replace(" ", "") for line in wanted], [line.replace(" ", "") for line in heard])
        if joined < 0.4 * plain:
            yield Finding(
                "words run together or fall apart", "costs",
                f"WER {plain:.1%}, but only {joined:.1%} of the characters are wrong once spaces are left out",
                "spaces do not become the word delimiter (|) in the labels, or the decoder does not turn it back.",
                "encode with the model's own tokenizer; the vocabulary doctor shows whether | is a token.",
            )  # fmt: skip


def _raw_wer(wanted: Sequence[str], heard: Sequence[str]) -> float:
    import jiwer

    return float(jiwer.wer(list(wanted), list(heard))) if any(line.split() for line in wanted) else 0.0


def _finite(point: Point) -> bool:
    return all(value is None or math.isfinite(value) for value in (point.loss, point.grad_norm))


def _broken(points: Sequence[Point]) -> Finding | None:
    first = next((place for place, point in enumerate(points) if not _finite(point)), None)
    if first is None:
        return None
    point = points[first]
    before = next((p for p in reversed(points[:first]) if p.loss is not None), None)
    what = f"loss {point.loss}" if point.loss is not None and not math.isfinite(point.loss) else "gradient norm"
    what = what if what.startswith("loss") else f"gradient norm {point.grad_norm}"
    told = f", after a loss of {before.loss:.2f} at step {before.step}" if before else ", from the start"
    early = before is None
    return Finding(
        "loss is no number" if what.startswith("loss") else "gradient is no number", "stops",
        f"{what} at step {point.step}{_rate_of(point)}{told}",
        "labels that cannot fit their frames give an infinite loss from the first batch that holds one"
        if early
        else "a step that was too long, an overflow of float16, or a batch with labels that cannot fit.",
        "set ctc_zero_infinity, leave such rows out (diagnose(model=…, batch=…) names them), train in float32 or "
        "bfloat16, lower the learning rate; go on from a checkpoint before this step.",
    )  # fmt: skip


def _rate_of(point: Point) -> str:
    return f" (learning rate {point.learning_rate:.1e})" if point.learning_rate is not None else ""


def _rates(curve: Curve) -> Iterator[Finding]:
    known = [point for point in curve.points if point.learning_rate is not None]
    if len(known) < 3:
        return
    rates = np.array([point.learning_rate for point in known], dtype=float)
    first, top, last = known[0], float(rates.max()), known[-1]
    if top == 0:
        yield Finding(
            "learning rate is zero", "stops", f"0 at all {len(known)} points up to step {last.step}",
            "the schedule never leaves zero, or it was set so.", "give a learning rate, 1e-4 to 1e-3 for fine-tuning.",
        )  # fmt: skip
    elif (np.diff(rates) > 0).all():
        yield Finding(
            "never warmed up", "costs", f"the learning rate still rises at the last step, {last.step}: {top:.1e}",
            "the warm-up is longer than the run, so the rate that was asked for was never reached.",
            "shorten the warm-up to about a tenth of the steps, or train longer.",
        )  # fmt: skip
    elif rates[0] >= COLD_START * top and first.step <= max(1, last.step // 10):
        yield Finding(
            "no warm-up", "watch", f"{rates[0]:.1e} at step {first.step} already, {top:.1e} at most",
            "full steps on a head that is still random push the encoder away from what it knew.",
            "let the rate rise over the first tenth of the steps, the more so with strategy 'all'.",
        )  # fmt: skip


def _scores(curve: Curve, trained: Sequence[Point], losses: np.ndarray) -> Iterator[Finding]:
    scored = [point for point in curve.points if point.wer is not None]
    tail = losses[-max(3, len(losses) // 3) :]
    change = float(np.ptp(tail) / max(abs(float(tail.mean())), 1e-9))
    fell = float(losses[-1] / losses[0]) if losses[0] else 1.0
    deaf = bool(scored) and all((point.wer or 0.0) >= DEAF_WER for point in scored)
    if scored and deaf and losses[-1] > 1.0 and change < FLAT:
        yield Finding(
            "plateau", "stops",
            f"loss {losses[-1]:.2f}, within {change:.1%} over the last {len(tail)} points; WER {scored[-1].wer:.0%}",
            "the usual first stage of CTC: the model says blank everywhere, since blank is right most often.",
            "give model and batch to diagnose: it measures the blanks and says how far this is from normal.",
        )  # fmt: skip
    elif len(scored) >= 2 and deaf and fell < LEARNT:
        yield _deaf(scored[-1], float(losses[0]), float(losses[-1]))
    if len(scored) >= 3:
        yield from _overfitted(curve, scored, trained)


def _deaf(last: Point, start: float, end: float) -> Finding:
    letters = f", CER {last.cer:.0%}" if last.cer is not None else ""
    spaces = last.cer is not None and last.cer < 0.4
    return Finding(
        "loss falls, WER does not", "stops", f"loss {start:.2f} → {end:.2f}, WER {last.wer:.0%}{letters}",
        "the letters are right and the words are not: spaces and the word delimiter do not agree." if spaces
        else "what is learnt is not what is scored: another case, alphabet or token order in the labels than in the "
        "references, or every character unknown (<unk>); or training clips learnt by heart.",
        "compare references and hypotheses: diagnose(texts=[(reference, hypothesis), …], tokenizer=…) says which.",
    )  # fmt: skip


def _overfitted(curve: Curve, scored: Sequence[Point], trained: Sequence[Point]) -> Iterator[Finding]:
    best, last = curve.best, scored[-1]
    assert best is not None and best.wer is not None and last.wer is not None
    after = [point for point in scored if point.step > best.step]
    limit = best.wer + max(WORSE[0], WORSE[1] * best.wer)
    then = [point.loss for point in trained if point.step <= best.step and point.loss is not None]
    now = trained[-1].loss or 0.0
    if len(after) < 2 or not then or now >= then[-1] or min(point.wer or 0.0 for point in after[-2:]) <= limit:
        return
    yield Finding(
        "overfitting", "costs",
        f"WER {best.wer:.1%} at step {best.step}, {last.wer:.1%} at step {last.step}, while the training loss fell "
        f"from {then[-1]:.2f} to {now:.2f}",
        "the training clips are learnt by heart: few clips, few speakers, many weights that learn.",
        f"take the checkpoint of step {best.step}; train fewer weights (top-K, lora), augment, stop early.",
    )  # fmt: skip
