"""What n minutes of labelled speech buy, by start: `python -m speechkit.demo.recipes.transfer --language cs`.

In: a language with clips and no model of its own, and embedded models to start from. Out: an `Efficiency`, point by
point, in `demo/figures/efficiency_<language>.json`, which notebook 05 shows beside the points that it measures itself.

One protocol for all starts, or the points say nothing about one another: the same sentences and voices (one minute lies
within three, three within ten), the same number of updates, the same settings, scored on the same held-out sentences by
held-out voices. A minute of other speech by training voices, on top of the minutes, picks the best of four evaluations.
Equal updates favour no start by time, but a start from nothing may still be learning when they end: the start "longer
from scratch" gets six times as many and tells what the data hold back from what the clock does.
"""

from __future__ import annotations

import argparse
import math
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import demo
from speechkit.asr import checkpoint, registry
from speechkit.demo.recipes.heldout import spoken
from speechkit.demo.recipes.transfer_speech import speak
from speechkit.errors import DataError
from speechkit.evaluation.efficiency import Efficiency, Trained, efficiency_curve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speechkit.demo.recipes.transfer_speech import Labelled
    from speechkit.evaluation.savings import Saving

__all__ = [
    "ENGLISH",
    "SCRATCH",
    "Start",
    "TransferRecipe",
    "best_donor",
    "judged",
    "main",
    "measure",
    "starts",
    "stored",
    "train",
]

FIGURES = Path(__file__).resolve().parents[1] / "figures"
ENCODER, ENGLISH, DONOR, SCRATCH, LONGER = (
    "multilingual encoder",
    "English model",
    "best donor",
    "from scratch",
    "longer from scratch",
)
NAMES = {"encoder": ENCODER, "english": ENGLISH, "donor": DONOR, "scratch": SCRATCH, "longer": LONGER}
CLAIM = (10.0, 100.0)  # times less labelled data, as published for pretrained models
USELESS = {"WER": 0.5, "CER": 0.3}  # rates from which a transcript is of no use


@dataclass(frozen=True)
class TransferRecipe:
    """How every point is measured."""

    language: str = "cs"
    updates: int = 80  # on one minute; on n minutes n^growth times as many
    growth: float = 0.65  # between as many for all (0) and as many passes for all (1)
    longer: int = 6  # times as many updates for "longer from scratch"
    batch_s: float = 12.0
    learning_rate: float = 1e-3
    spec_augment: float = 0.2  # share of the frames that are hidden: few minutes are soon learnt by heart
    dev_clips: int = 24  # a minute
    test_clips: int = 100
    seed: int = 1

    def steps(self, minutes: float, times: int = 1) -> int:
        """Updates on `minutes` of speech; at least four, one for each evaluation."""
        return max(4, round(self.updates * minutes**self.growth) * times)

    def speech(self, minutes: float, folder: Path) -> Labelled:
        """The clips of all points up to `minutes`; see `transfer_speech.speak`."""
        return speak(self.language, minutes, folder, sizes=(self.dev_clips, self.test_clips), seed=self.seed)

    @property
    def test_name(self) -> str:
        return f"{self.test_clips} held-out sentences by held-out voices, seed {self.seed}"


@dataclass(frozen=True)
class Start:
    """What training begins with."""

    name: str  # in the curve
    model: str = ""  # a name or folder; "" for random weights
    times: int = 1  # updates, as a multiple of the recipe's

    def note(self, recipe: TransferRecipe, minutes: float) -> str:
        """Everything that decides a point, in one line: a stored point with another line is measured anew."""
        source = f"{self.model} {_identity(self.model)}" if self.model else "random weights"
        return (
            f"{source}; {recipe.steps(minutes, self.times)} updates of {recipe.batch_s:g} s, learning rate "
            f"{recipe.learning_rate:g}, {recipe.spec_augment:.0%} of the frames hidden; scored on {recipe.test_name}"
        )


def starts(donor: str | None = None, longer: int = TransferRecipe.longer) -> tuple[Start, ...]:
    """The starts that this installation can make: encoder, English model, best donor, nothing, and nothing for longer.

    donor: the name of an embedded model (`CrossLingual.donors` ranks them). Raises ModelError where there is none such.
    """
    found = [Start(ENCODER, "demo/encoder")] if "encoder" in demo.models() else []
    found += [Start(ENGLISH, "demo/en")] if "en" in demo.models() else []
    if donor and donor not in [start.model for start in found]:
        found.append(Start(f"{DONOR}, {registry.resolve(donor).name}", donor))
    return (*found, Start(SCRATCH), Start(LONGER, times=longer))


def train(recipe: TransferRecipe, start: Start, minutes: float, speech: Labelled, work: Path) -> Trained:
    """Fine-tune one start on the first `minutes`, score what does best on `dev` on `test`. A killed run goes on.

    Raises what `training.finetune` raises, and DataError for minutes that were not spoken.
    """
    from speechkit.asr.model import load_asr
    from speechkit.evaluation.errors import score
    from speechkit.training.config import FinetuneConfig
    from speechkit.training.finetune import finetune

    steps = recipe.steps(minutes, start.times)
    config = FinetuneConfig(
        model=start.model or str(_random_weights(work / f"random-{recipe.seed}", recipe.seed)),
        folder=str(work / _slug(start.name, minutes, recipe.seed)),
        language=recipe.language,
        # a front-end that has learnt is kept (wav2vec 2.0, section 4.3), a random one has to learn
        strategy_options={"freeze_features": bool(start.model)},
        steps=steps,
        learning_rate=recipe.learning_rate,
        batch_s=recipe.batch_s,
        spec_augment=recipe.spec_augment,
        eval_every=-(-steps // 4),
        seed=recipe.seed,
    )
    result = finetune(config, speech.first(minutes), speech.dev)
    if result.best is None:
        raise DataError(f"{start.name}, {minutes:g} min: the run left no model: {result}")
    heard = load_asr(result.best).transcribe([one.audio for one in speech.test], words=False)
    report = score(
        [one.text for one in speech.test],
        heard,
        names=[one.name for one in speech.test],
        speakers=[one.speaker for one in speech.test],
        language=recipe.language,
    )
    return Trained(report, 60 * result.minutes, minutes, result.train_clips, start.note(recipe, minutes))


def measure(
    recipe: TransferRecipe,
    wanted: Sequence[tuple[Start, float]],
    work: Path,
    known: Efficiency | None = None,
    *,
    done: Callable[[Efficiency], None] | None = None,
) -> Efficiency:
    """Every (start, minutes) → its point; those that `known` holds, measured in the same way, are taken from there.

    done: called with the whole curve after each new point, to show or to save it. Speech and unfinished runs are kept
    under `work`, so that a killed measurement goes on. Raises DataError where nothing is wanted, and what `speak` and
    `train` raise.
    """
    if not wanted:
        raise DataError("no start and no minutes to measure; give (start, minutes) pairs")
    curve = replace(known or Efficiency(()), language=recipe.language, name=recipe.test_name)
    speech: Labelled | None = None
    for start, minutes in wanted:
        if _has(curve, start, minutes, recipe):
            continue
        speech = speech or recipe.speech(max(amount for _, amount in wanted), work / "speech")
        found = efficiency_curve(
            lambda name, amount: train(recipe, start, amount, speech, work),  # noqa: B023 (called at once)
            [start.name],
            [minutes],
            command=_command(recipe, start, minutes),
            seed=recipe.seed,
        )
        curve = curve.merge(found.points)
        shutil.rmtree(work / _slug(start.name, minutes, recipe.seed))
        if done:
            done(curve)
    return curve


def stored(language: str = "cs") -> Efficiency:
    """The points that came with this package, each with date and command; none where there is no such file."""
    path = FIGURES / f"efficiency_{language}.json"
    return Efficiency.load(path) if path.is_file() else Efficiency((), language)


def judged(saving: Saving, claim: tuple[float, float] = CLAIM) -> str:
    """A measured saving beside the published claim, in one sentence that follows from the numbers alone."""
    low, high = claim
    told = f"The claim is {low:g} to {high:g} times less labelled data"
    if saving.bound == "unknown" or math.isnan(saving.factor):
        return f"{told}; these points cannot be compared at one {saving.figure}."
    if saving.rate > USELESS[saving.figure]:
        return (
            f"{told}; the lowest {saving.figure} that both reach here is {saving.rate:.0%}, at which neither is of "
            "use, so the factor says nothing yet."
        )
    times = f"{saving.factor:,.0f}" if saving.factor >= 10 else f"{saving.factor:.1f}"
    bound = "" if saving.bound == "exact" else f"{saving.bound} "
    level = f"measured here at a {saving.figure} of {saving.rate:.0%}"
    return f"{told}; {level}: {bound}{times} times, {_place(saving, claim)}."


def _random_weights(folder: Path, seed: int) -> Path:
    """The shape of the embedded models, untrained, without a head: as a pretrained checkpoint comes."""
    import torch
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    from speechkit.demo.recipes.asr import model_config

    if not (folder / "model.safetensors").is_file():
        with checkpoint.quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            Wav2Vec2Model(model_config()).save_pretrained(folder)
            Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


def _identity(model: str) -> str:
    source = registry.resolve(model)
    return "" if source.kind == "hub" else checkpoint.identity_of(Path(source.location))


def _has(curve: Efficiency, start: Start, minutes: float, recipe: TransferRecipe) -> bool:
    """Whether the curve holds this point, measured as it would be now."""
    wanted = (start.name, minutes, recipe.seed, start.note(recipe, minutes))
    return any((point.start, point.minutes, point.seed, point.note) == wanted for point in curve.points)


def _slug(name: str, minutes: float, seed: int) -> str:
    return f"{''.join(char if char.isalnum() else '-' for char in name)}-{minutes:g}min-{seed}"


def _command(recipe: TransferRecipe, start: Start, minutes: float) -> str:
    """What repeats a point."""
    parts = [f"--starts {next(key for key, name in NAMES.items() if start.name.startswith(name))}"]
    parts += [f"--donor {start.model}"] if start.name.startswith(DONOR) else []
    parts += [f"--minutes {minutes:g}"]
    for one in fields(recipe):
        value = getattr(recipe, one.name)
        if value != one.default or one.name == "language":
            parts.append(f"--{one.name.replace('_', '-')} {value}")
    return " ".join(["python -m speechkit.demo.recipes.transfer", *parts])


def _place(saving: Saving, claim: tuple[float, float]) -> str:
    """Where a factor, or what its bound leaves open, lies beside the claim."""
    side = -1 if saving.factor < claim[0] else 1 if saving.factor > claim[1] else 0
    return {
        "exact": ("less than claimed", "within the claim", "more than claimed"),
        "at least": ("a bound that neither confirms nor refutes it", "as claimed or more", "more than claimed"),
        "at most": ("less than claimed", "as claimed or less", "a bound that neither confirms nor refutes it"),
    }[saving.bound][side + 1]


def best_donor(language: str, clips: int = 20) -> str | None:
    """The embedded model of another language that hears most of `language` zero-shot; None where there is no model.

    By the romanised rate on the embedded clips and `clips` held-out sentences.
    """
    from speechkit.evaluation.crosslingual import cross_evaluate

    models = [f"demo/{code}" for code in demo.languages() if code != language]
    if not models:
        return None
    rows: list[tuple[Any, str]] = [(clip.path, clip.text) for clip in demo.clips(language)]
    rows += [(one.samples, one.text) for one in spoken(clips, 1, language)]
    return cross_evaluate(models, {language: rows}).donors(language)[0].model


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    given = {one.name: getattr(options, one.name) for one in fields(TransferRecipe)}
    recipe = TransferRecipe(**{name: value for name, value in given.items() if value is not None})
    keys = options.starts or list(NAMES)
    donor = (options.donor or best_donor(recipe.language)) if "donor" in keys else None
    wanted = [one for one in starts(donor, recipe.longer) if any(one.name.startswith(NAMES[key]) for key in keys)]
    out = options.out or FIGURES / f"efficiency_{recipe.language}.json"
    known = Efficiency.load(out) if out.is_file() else None

    def keep(curve: Efficiency) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        curve.save(out)
        print(curve.points[-1], flush=True)

    pairs = [(start, minutes) for minutes in sorted(options.minutes) for start in wanted]
    print(measure(recipe, pairs, options.work, known, done=keep))
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], prog="python -m speechkit.demo.recipes.transfer"
    )
    add = parser.add_argument
    add("--work", type=Path, default=Path("runs/transfer"), help="speech and unfinished runs; a rerun goes on")
    add("--out", type=Path, help="file of the points; those that it holds are not measured again")
    add("--starts", nargs="+", choices=list(NAMES), help="default: all that this installation can make")
    add("--donor", help="the model of another language to start from (default: the best zero-shot)")
    add("--minutes", nargs="+", type=float, default=[1.0, 3.0, 10.0, 30.0])
    for one in fields(TransferRecipe):
        kind = type(one.default)
        add(f"--{one.name.replace('_', '-')}", type=kind, help=f"default {one.default}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
