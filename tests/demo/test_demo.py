"""The embedded assets: there, small, and what their manifest says."""

from pathlib import Path

import pytest
import soundfile

from speechkit import demo
from speechkit.demo.recipes.corpus import HELD_OUT_VARIANTS
from speechkit.errors import DataError, ModelError


@pytest.mark.parametrize("language", ["en", "zh", "ko", "pt", "pl", "cs", "sk", "uk"])
def test_there_are_clips_of_at_most_ten_seconds_in_every_language(language: str) -> None:
    clips = demo.clips(language)
    assert len(clips) >= (8 if language == "en" else 6)
    for clip in clips:
        info = soundfile.info(clip.path)
        assert info.samplerate == 16000 and info.duration <= 10
        assert clip.seconds == pytest.approx(info.duration, abs=0.01)
        assert clip.voice.split("+")[1] in HELD_OUT_VARIANTS


def test_a_language_without_clips_lists_those_that_exist() -> None:
    with pytest.raises(DataError, match="no embedded clips for language 'xx'; there are clips for: cs, en, ko, pl"):
        demo.clips("xx")


def test_a_model_that_is_not_embedded_lists_those_that_are() -> None:
    with pytest.raises(ModelError, match="no embedded model 'xx'; embedded models: en"):
        demo.model_path("xx")


def test_the_english_model_is_safetensors_within_8_mb_with_its_card() -> None:
    folder = demo.model_path("en")
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert "license: cc-by-sa-4.0" in (folder / "README.md").read_text(encoding="utf-8")
    assert not [path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


def test_all_assets_together_stay_within_64_mb() -> None:
    root = Path(demo.__file__).parent
    assets = [path for kind in ("clips", "models") for path in (root / kind).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in assets) <= 64_000_000


def test_the_readme_repeats_the_figures_of_the_card() -> None:
    root = Path(__file__).resolve().parents[2]
    rows = [
        line for line in (demo.model_path("en") / "README.md").read_text(encoding="utf-8").splitlines() if "%" in line
    ]
    readme = (root / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- figures: demo/en -->")[1].split("<!-- /figures -->")[0]
    assert len(rows) >= 4 and all(row in block for row in rows)


def test_the_card_states_the_results_that_were_measured() -> None:
    card = (demo.model_path("en") / "README.md").read_text(encoding="utf-8")
    for result in demo.results("en").values():
        assert f"| {result.clips} | {result.wer:.1%} | {result.cer:.1%} |" in card


def test_the_english_model_keeps_the_bounds_set_for_it() -> None:
    results = demo.results("en")
    assert results["synthetic"].wer <= 0.08 and results["synthetic"].clips >= 300
    assert results["clips"].wer <= 0.10 and results["clips"].clips >= 8
