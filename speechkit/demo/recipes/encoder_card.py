"""The encoder's card and recipe file. In: the recipe as plain values, how the run went, probes. Out: two files."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from speechkit.demo.recipes.encoder_speech import HELD_OUT_ARABIC, LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from speechkit.demo.recipes.encoder_probe import Probe
    from speechkit.training.pretrain import PretrainResult

__all__ = ["card", "describe"]


def describe(recipe: Mapping[str, Any], result: PretrainResult, probes: Sequence[Probe], folder: Path) -> None:
    """Write `recipe.json` (settings, last point of the curve, versions) and the card into a saved folder."""
    last = result.curve.last
    names = ("step", "audio_s", "contrastive", "accuracy", "perplexity", "unit_accuracy")
    figures = {name: getattr(last, name) for name in names}
    versions = {name: version(name) for name in ("torch", "transformers", "espeakng-loader")}
    row = {"recipe": dict(recipe), "speech_s": result.audio_s, "results": figures, "versions": versions}
    (folder / "recipe.json").write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(recipe, result, probes), encoding="utf-8")


def card(recipe: Mapping[str, Any], result: PretrainResult, probes: Sequence[Probe]) -> str:
    """The model card: what it is, what it heard, what it never heard, how its pretraining ended, how to repeat it."""
    last = result.curve.last
    assert last is not None
    assert last.accuracy is not None
    people = DIGITS if recipe["digits"] else ""
    return CARD.format(
        languages=", ".join(recipe["languages"]),
        listed="\n".join(f"- {code}" for code in recipe["languages"]),
        codes=recipe["codes"],
        heard=f"{result.audio_s / 3600:.1f}",
        hours=f"{recipe['hours']:g}",
        real=REAL.format(digits=people, times=recipe["real_times"]) if recipe["real"] else NO_REAL,
        arabic=", ".join(HELD_OUT_ARABIC),
        kept="" if recipe["digits"] else "all four speakers of the Free Spoken Digit Dataset, ",
        steps=last.step,
        batch_s=f"{recipe['batch_s']:g}",
        passed=f"{(last.audio_s or 0) / 3600:.0f}",
        accuracy=f"{last.accuracy:.1%}",
        perplexity=f"{last.perplexity:.0f}",
        units=UNITS.format(units=recipe["units"], named=f"{last.unit_accuracy:.1%}") if last.unit_accuracy else "",
        probes="\n".join(f"```\n{found}\n```\n" for found in probes) or "Not probed yet.\n",
        repeat=_command(recipe),
    )


def _command(recipe: Mapping[str, Any]) -> str:
    words = ["python -m speechkit.demo.recipes.encoder", f"--steps {recipe['steps']}", f"--hours {recipe['hours']:g}"]
    if tuple(recipe["languages"]) != LANGUAGES:
        words.append(" ".join(["--languages", *recipe["languages"]]))
    words += [] if recipe["unit_weight"] else ["--unit-weight 0"]
    words += ["--real --speech-data FOLDER"] if recipe["real"] else []
    words += ["--digits"] if recipe["digits"] else []
    return " ".join(words)


NO_REAL = "No recordings of people: everything that it heard is synthetic.\n"
DIGITS = "- Free Spoken Digit Dataset, J. Z. Jackson and others, CC BY-SA 4.0.\n"
REAL = """Recordings of people, each {times} times and changed otherwise every time, joined to others of its speaker:

- Arabic Speech Commands Dataset, A. Ghandoura and others, 2021, CC BY 4.0 (18 of its 24 speakers here).
- LibriSpeech, V. Panayotov and others, 2015, CC BY 4.0 (229 sentences of two speakers).
- Speech Commands v0.01, P. Warden, 2017, CC BY 4.0 (fewer than 200 clips).
- Wake words and spoken orders from Picovoice's wake-word-benchmark and speech-to-intent-benchmark, Apache-2.0.
{digits}"""

UNITS = """Besides wav2vec 2.0's objective it named the acoustic unit of each masked frame, one of {units} clusters of
MFCCs (HuBERT's first iteration; `speechkit/training/masked_units.py`): {named} right at the end.
"""

CARD = """---
license: cc-by-sa-4.0
library_name: transformers
tags: [wav2vec2, pretraining, multilingual]
language:
{listed}
---
# demo/encoder: the embedded multilingual encoder of speechkit

A small wav2vec 2.0 encoder (3.2 M parameters, 20 ms frames, two codebooks of {codes} entries), pretrained from random
weights on speech without text in {languages}. It is a start for fine-tuning with little labelled speech, and it exists
so that everything works before any download. It transcribes nothing by itself; for real work take a published encoder.

## What it heard

- {hours} hours by espeak-ng (wheel `espeakng-loader`) in as many hours of each language: sentences of the grammars
  `speechkit/demo/recipes/grammar_*.toml` and made-up words in the same spelling, by its own variants and 800 made-up
  ones, changed in speed, resonances, room, equaliser, band and noise.

{real}
Never heard: {kept}the Arabic speakers {arabic}, the speakers `sc-3…` and `sc-a…` of Speech Commands, the
espeak-ng variants kept for tests, and the test sentences of the grammars.

## How the pretraining ended

{steps} steps of {batch_s} s ({passed} hours heard in all, of {heard} different ones). The target was told from 100
negatives for {accuracy} of the masked frames (chance is 1 %); {perplexity} of {codes} entries per codebook were in use.
{units}
## Does it help?

{probes}
## Repeat it

    {repeat}

## Licence

CC BY-SA 4.0; the attributions are above.
"""
