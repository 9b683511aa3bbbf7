"""The embedded clips: `python -m speechkit.demo.recipes.clips`. Sentences and voices that no model was trained on."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile

from speechkit.demo.recipes.espeak import EspeakVoice, synthesize

__all__ = ["main"]

# a text and the voice that says it; the variants are `corpus.HELD_OUT_VARIANTS`
SPOKEN: dict[str, list[tuple[str, EspeakVoice]]] = {
    "en": [
        ("please bring the patient in room fourteen before nine thirty", EspeakVoice("en-us", "Alicia", 150, 55, 50)),
        ("good morning how are you today", EspeakVoice("en-us", "Michael", 145, 45, 50)),
        ("the train to london leaves at quarter past seven", EspeakVoice("en", "edward", 150, 50, 50)),
        ("i would like a cup of coffee and a piece of cake", EspeakVoice("en-us", "linda", 150, 50, 50)),
        ("the meeting with anna was moved from monday to wednesday", EspeakVoice("en-us", "steph", 145, 50, 50)),
        ("my phone number is five five two nine zero one four", EspeakVoice("en-us", "Michael", 140, 50, 40)),
        ("where is the post office and is it open today", EspeakVoice("en-gb-x-rp", "Alicia", 145, 50, 50)),
        ("the doctor ordered a blood test and an x ray", EspeakVoice("en-us", "edward", 145, 45, 50)),
        ("turn left at the bridge and then turn right", EspeakVoice("en-us", "steph", 150, 60, 60)),
        ("the library closes at half past six on saturday", EspeakVoice("en-us", "linda", 140, 45, 40)),
    ],
}
HERE = Path(__file__).resolve().parents[1] / "clips"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m speechkit.demo.recipes.clips")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for manifest.tsv and one folder per language")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "manifest.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n")
        writer.writerow(["path", "language", "text", "voice", "seconds"])
        for language, spoken in SPOKEN.items():
            for number, (text, voice) in enumerate(spoken, 1):
                samples = synthesize(text, voice)
                samples *= 0.7 / (np.abs(samples).max() + 1e-9)
                name = f"{language}/{language}-{number:02d}.flac"
                (options.out / language).mkdir(exist_ok=True)
                soundfile.write(options.out / name, samples, 16000, subtype="PCM_16")
                writer.writerow([name, language, text, voice.name, f"{len(samples) / 16000:.2f}"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
