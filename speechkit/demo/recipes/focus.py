"""Which voices does the model in training still misread? In: a model, a store. Out: how often to hear each voice.

A voice unlike most (breathy, very high) has a few clips among thousands, and the loss hardly notices it. So once, part
of the way through, some clips of every synthetic voice are transcribed, and from then on a voice is heard in proportion
to its errors. Only training voices are looked at.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import TYPE_CHECKING

from speechkit.demo.recipes.batches import voice_of
from speechkit.demo.recipes.languages import tokens
from speechkit.demo.recipes.score import score, training_model
from speechkit.text import split_words

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import Wav2Vec2ForCTC

    from speechkit.demo.recipes.corpus import Clip, Store

__all__ = ["focus"]

CLIPS = 3  # per voice
DOUBT = 2.0  # so many clips at the common rate are counted in: three clips alone say little
LEAST, MOST = 0.5, 4.0  # of the common share


def focus(model: Wav2Vec2ForCTC, store: Store, record: Path, language: str = "en") -> dict[str, float]:
    """Share of each synthetic voice, the common one being 1; read from `record` where it was measured before."""
    if record.is_file():
        return dict(json.loads(record.read_text(encoding="utf-8")))
    voices: dict[str, list[Clip]] = defaultdict(list)
    for clip in store.clips:
        if clip.pool == "synthetic" and clip.speaker != "flite" and len(split_words(clip.text)) > 2:
            voices[voice_of(clip)].append(clip)
    rng, transcribe = random.Random(0), training_model(model, tokens(language))
    rates = {}
    for voice, clips in sorted(voices.items()):
        chosen = rng.sample(clips, min(CLIPS, len(clips)))
        heard = score(transcribe, [store.samples(clip) for clip in chosen], [clip.text for clip in chosen])
        rates[voice] = (heard.cer, len(chosen))
    common = sum(rate for rate, _ in rates.values()) / max(len(rates), 1)
    shares = {
        voice: min(max((rate * count + common * DOUBT) / ((count + DOUBT) * common), LEAST), MOST) if common else 1.0
        for voice, (rate, count) in rates.items()
    }
    partial = record.with_suffix(".partial")  # a kill must not leave half a record
    partial.write_text(json.dumps(shares, indent=1) + "\n", encoding="utf-8")
    partial.replace(record)
    return shares
