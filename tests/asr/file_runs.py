"""Short recordings, and runs of `transcribe_files` over them with what they leave in the manifest."""

import json
from pathlib import Path

import numpy as np
import soundfile

from speechkit.asr import files

RATE = 16000


def tone(path: Path, seconds: float = 0.5, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    soundfile.write(path, noise.astype(np.float32), RATE)
    return path


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def run(recognizer, paths, out=None, **options):
    return list(files.transcribe_files(recognizer, paths, out, **options))
