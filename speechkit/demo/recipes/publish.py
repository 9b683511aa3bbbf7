"""A trained model → a genuine `Wav2Vec2ForCTC` folder: config, processor, fp16 safetensors, recipe, scores, card."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

from speechkit.asr.registry import KNOWN
from speechkit.demo.recipes.corpus import DRAWN_VARIANTS, VARIANTS
from speechkit.demo.recipes.grammar import Grammar
from speechkit.demo.recipes.languages import language, tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechkit.demo.recipes.asr import Recipe
    from speechkit.demo.recipes.score import Score

__all__ = ["card", "describe", "processor", "save"]

LIMIT_BYTES = 8_000_000  # what the package has room for

WHAT = {
    "synthetic": "synthetic, held-out voices and held-out sentences",
    "digits": "real digits, speakers never trained on ({speakers})",
    "words": "real command words, speakers never trained on (Speech Commands)",
    "clips": "the embedded clips",
}

OPTIMIZERS = {"muon": "Muon for the matrices and AdamW for the rest", "adamw": "AdamW"}

# the real recordings that `corpus.real_clips` takes, with the attribution that their licences ask for
REAL = """- Free Spoken Digit Dataset, J. Z. Jackson and others, CC BY-SA 4.0.
- Speech Commands v0.01, P. Warden, 2017, CC BY 4.0 (fewer than 200 clips).
- LibriSpeech, V. Panayotov and others, 2015, CC BY 4.0 (229 sentences of two speakers).

Never trained on: {speakers}, and the speakers `sc-3…` and `sc-a…` of Speech Commands.
"""


def processor(code: str = "en") -> Wav2Vec2Processor:
    """Character tokenizer and feature extractor that match :func:`speechkit.demo.recipes.asr.model_config`."""
    with TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.json"
        vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens(code))}))
        tokenizer = Wav2Vec2CTCTokenizer(
            str(vocabulary),
            unk_token="<unk>",
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            word_delimiter_token="|",
        )
    extractor = Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16000, padding_value=0.0, do_normalize=True, return_attention_mask=True
    )
    return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)


def save(model: Wav2Vec2ForCTC, folder: Path, code: str = "en") -> None:
    """Weights rounded to fp16, config and processor. Raises ValueError if the weights are over the limit of 8 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    processor(code).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)  # safetensors writes for the owner alone
    size = weights.stat().st_size
    if size > LIMIT_BYTES:
        raise ValueError(f"the weights take {size / 1e6:.1f} MB, the limit is {LIMIT_BYTES / 1e6:.0f} MB")


def describe(recipe: Recipe, scores: Mapping[str, Score], folder: Path) -> None:
    """Write `recipe.json` (settings, results, versions) and the card into a saved folder."""
    results = {name: {"wer": s.wer, "cer": s.cer, "clips": s.clips} for name, s in scores.items()}
    versions = {name: version(name) for name in ("torch", "transformers", "espeakng-loader")}
    flite = language(recipe.language).flite and which("flite") is not None
    row = {"recipe": asdict(recipe), "flite": flite, "results": results, "versions": versions}
    (folder / "recipe.json").write_text(json.dumps(row, indent=2) + "\n")
    (folder / "README.md").write_text(card(recipe, scores, flite), encoding="utf-8")


def card(recipe: Recipe, scores: Mapping[str, Score], flite: bool) -> str:
    """The model card: what it is, what it was trained on, how well it does, how to repeat that.

    `flite` says whether its voices spoke too. Real recordings are named where `scores` holds any.
    """
    speakers = ", ".join(recipe.exclude_speakers) or "none kept out"
    rows = "\n".join(
        f"| {WHAT[name].format(speakers=speakers)} | {s.clips} | {s.wer:.1%} | {s.cer:.1%} |"
        for name, s in scores.items()
    )
    real = bool({"digits", "words"} & scores.keys())
    spoken = language(recipe.language)
    heard = real or "demo/en" in recipe.started_from  # then its weights have heard the recordings too
    options = [f"--exclude-speaker {name}" for name in recipe.exclude_speakers]
    return CARD.format(
        language=recipe.language,
        rows=rows,
        repeat=" \\\n        " + " ".join(["--speech-data FOLDER", *options]) if real else "",
        variants=len(VARIANTS),
        accents="one accent" if len(set(spoken.accents)) == 1 else f"{len(set(spoken.accents))} accents",
        name=spoken.name,
        words=f"{round(len(Grammar(recipe.language).vocabulary()), -1 if len(spoken.accents) < 5 else -2):,}",
        first=FIRST[spoken.code in CHARACTERS],
        publish=PUBLISHED[recipe.language in KNOWN].format(language=recipe.language),
        kept=", the convolutions of the start kept as they were" if recipe.freeze_features else "",
        drawn=DRAWN_VARIANTS,
        others="the voices of flite" if flite else "no other synthesiser",
        real=(REAL if real else STARTED + REAL).format(speakers=speakers) if heard else "",
        steps=recipe.steps,
        start=f", starting from {recipe.started_from}" if recipe.started_from else "",
        budget_s=recipe.budget_s,
        optimizer=OPTIMIZERS[recipe.optimizer],
        licence=", the licence of the digit recordings; the attributions are above" if heard else "",
    )


CHARACTERS = ("zh",)  # languages whose words are not separated: both rates count characters
FIRST = ("", "\nThis script does not separate words: a character counts as a word, and the two rates are one.")
PUBLISHED = (
    "There is no published model with a short name for this language: give a Hub id.",
    'For real work load a published model: `load_asr("{language}")`.',
)
STARTED = """- demo/en, from whose weights training started, has also heard, with texts in English:
"""

CARD = """---
language: {language}
license: cc-by-sa-4.0
library_name: transformers
pipeline_tag: automatic-speech-recognition
---
# demo/{language}: the embedded demo model of speechkit

A small wav2vec 2.0 CTC model (3.2 M parameters, 20 ms frames) for {name}. It exists so that everything in speechkit
works before any download: **it is a demo model**. It knows the roughly {words} words of a grammar and spells the rest
by ear. {publish}

## How well it does

Greedy decoding, corpus-level rates (all edits over all reference words or characters), weights rounded to fp16.{first}

| held-out set | clips | WER | CER |
|---|---|---|---|
{rows}

None of these voices, sentences or speakers was trained on. Repeat it:

    python -m speechkit.demo.recipes.asr --language {language} --evaluate speechkit/demo/models/{language}{repeat}

## What it was trained on

- Sentences of a grammar (`speechkit/demo/recipes/grammar_{language}.toml`), spoken by espeak-ng (wheel
  `espeakng-loader`, {variants} speaker variants of its own and {drawn} made-up ones in {accents}, rate
  and pitch drawn per sentence) and by {others}.
{real}
Each clip was changed on the fly: rate, vocal-tract length, room, equaliser, 8 kHz band limit, noise, gain, silence.
{steps} steps of {budget_s:g} s of audio{start}{kept}, {optimizer}, transformers `Trainer`.
`speechkit/demo/recipes/LOG.md` tells how it was found; `recipe.json` beside this card holds every setting.

## Licence

The weights are published under CC BY-SA 4.0{licence}.
The embedded clips were spoken by espeak-ng for this project and come under its own licence, Apache-2.0.

## Limits

Clean, close speech in its own vocabulary is what it can do. Free speech, far microphones, strong accents and words
outside the grammar come out misspelt. Confidences are not calibrated.
"""
