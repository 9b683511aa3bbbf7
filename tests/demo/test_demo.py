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


@pytest.mark.parametrize("name", demo.models())
def test_every_model_is_safetensors_within_8_mb_with_its_card(name: str) -> None:
    folder = demo.model_path(name)
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert "license: cc-by-sa-4.0" in (folder / "README.md").read_text(encoding="utf-8")
    assert not [path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


def test_all_assets_together_stay_within_64_mb() -> None:
    root = Path(demo.__file__).parent
    assets = [path for kind in ("clips", "models") for path in (root / kind).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in assets) <= 64_000_000


@pytest.mark.parametrize("language", demo.languages())
def test_the_readme_repeats_the_figures_of_the_card(language: str) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- figures: embedded models -->")[1].split("<!-- /figures -->")[0]
    card = (demo.model_path(language) / "README.md").read_text(encoding="utf-8")
    rows = [line for line in card.splitlines() if line.startswith("|") and "%" in line]
    assert len(rows) >= 2 and all(f"| demo/{language} {row}" in block for row in rows)


@pytest.mark.parametrize("language", demo.languages())
def test_the_card_states_the_results_that_were_measured(language: str) -> None:
    card = (demo.model_path(language) / "README.md").read_text(encoding="utf-8")
    for result in demo.results(language).values():
        assert f"| {result.clips} | {result.wer:.1%} | {result.cer:.1%} |" in card


# Mandarin and Korean by characters: where words begin is the spelling's convention, not sound
BOUNDS = {"en": ("wer", 0.08), "pt": ("wer", 0.12), "pl": ("wer", 0.12), "ko": ("cer", 0.10), "zh": ("cer", 0.10)}


@pytest.mark.parametrize("language", BOUNDS)
def test_every_model_keeps_the_bounds_set_for_it(language: str) -> None:
    figure, bound = BOUNDS[language]
    results = demo.results(language)
    assert getattr(results["synthetic"], figure) <= bound and results["synthetic"].clips >= 300
    assert getattr(results["clips"], figure) <= max(bound, 0.10) and results["clips"].clips >= 6
