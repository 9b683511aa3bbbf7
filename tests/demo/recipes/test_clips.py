"""The recipe of the clips makes the clips that are embedded."""

from pathlib import Path

import numpy as np
import soundfile

from speechkit import demo
from speechkit.demo.recipes import clips


def loudness(samples: np.ndarray) -> np.ndarray:
    """RMS of each 20 ms: what was said and when, without the breath, which espeak-ng draws anew in every run."""
    return np.sqrt(np.mean(np.square(samples[: len(samples) // 320 * 320].reshape(-1, 320)), axis=1))


def test_the_recipe_makes_the_embedded_clips_again(tmp_path: Path) -> None:
    assert clips.main(["--out", str(tmp_path)]) == 0
    embedded = Path(demo.__file__).parent / "clips"
    assert (tmp_path / "manifest.tsv").read_text() == (embedded / "manifest.tsv").read_text()
    for clip in demo.clips():
        again, rate = soundfile.read(tmp_path / clip.path.relative_to(embedded))
        kept, _ = soundfile.read(clip.path)
        assert rate == 16000 and len(again) == len(kept)
        assert np.corrcoef(loudness(again), loudness(kept))[0, 1] > 0.97, clip.path.name
