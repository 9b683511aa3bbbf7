"""Pretrain the embedded multilingual encoder: `python -m speechkit.demo.recipes.encoder --work DIR`.

Steps: speech of eight languages without text (`encoder_speech.py`), with `--speech-data` also of people → the wav2vec
2.0 objective from random weights (`speechkit.training.pretrain`) → weights in fp16 with card and recipe. A second start
goes on where the first one stopped. At last the encoder and a model from scratch are fine-tuned on a few minutes of one
language, for the card: whether the encoder helps. `--probe MODEL` does that alone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

from speechkit.demo.recipes.asr import model_config
from speechkit.demo.recipes.encoder_card import describe
from speechkit.demo.recipes.encoder_probe import Probe, probe
from speechkit.demo.recipes.encoder_speech import LANGUAGES, real_speech, synthetic_speech
from speechkit.demo.recipes.optimizer import MuonWithAdamW
from speechkit.errors import DataError
from speechkit.training.pretrain import PretrainConfig, PretrainResult, Watch, pretrain
from speechkit.training.unlabelled import Windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

__all__ = ["EncoderRecipe", "main", "prepare", "save", "train"]

LIMIT_BYTES = 8_000_000  # what the package has room for
WINDOW_S = (0.3, 15.6)


@dataclass(frozen=True)
class EncoderRecipe:
    """Everything that decides the result; saved beside the weights."""

    languages: tuple[str, ...] = LANGUAGES
    hours: float = 16.0  # of synthetic speech
    real: bool = False  # recordings of people beside it
    real_times: int = 4  # each of them, every time changed otherwise
    digits: bool = False  # the four digit speakers too; they are test speakers otherwise
    steps: int = 10_000
    learning_rate: float = 1e-3
    optimizer: str = "muon"  # for the matrices; "adamw" for everything
    batch_s: float = 24.0
    codes: int = 64  # entries of each of the two codebooks: a fifth of the published ones, for a model as much smaller
    code_width: int = 64
    projection: int = 96
    # Batches of 24 s are a two-hundredth of the published ones. The contrastive loss alone stood at 4.4 nats after
    # 1,350 steps (chance 4.6); beside masked acoustic units it had fallen to 3.6 after 2,500.
    unit_weight: float = 1.0
    units: int = 100
    cnn_gradient: float = 1.0  # the units train the convolutions too: nothing has to be slowed down for them
    seed: int = 1
    workers: int = 0  # composing a batch takes two milliseconds of a third of a second

    def config(self, output: Path) -> PretrainConfig:
        """The settings of the run in `output`."""
        return PretrainConfig(
            output=str(output),
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_s=self.batch_s,
            shortest_s=WINDOW_S[0],
            longest_s=WINDOW_S[1],
            codes=self.codes,
            code_width=self.code_width,
            projection=self.projection,
            unit_weight=self.unit_weight,
            units=self.units,
            cnn_gradient=self.cnn_gradient,
            save_every=250,
            seed=self.seed,
            workers=self.workers,
            name="encoder, people heard too" if self.real else "encoder, synthetic speech",
        )


def prepare(recipe: EncoderRecipe, work: Path, speech_data: Path | None) -> Windows:
    """The speech that the encoder hears, rendered now under `work` or opened there.

    Raises DataError where it was rendered with other settings: it could hold speakers that are now kept out.
    """
    if recipe.real and speech_data is None:
        raise DataError("a recipe with real speech needs --speech-data FOLDER (with its manifest.tsv)")
    synthetic = _store(
        work / "synthetic",
        {"languages": recipe.languages, "hours": recipe.hours, "seed": recipe.seed},
        lambda: synthetic_speech(recipe.hours, recipe.seed, codes=recipe.languages),
    )
    if not recipe.real or speech_data is None:
        return synthetic

    def both() -> Iterator[np.ndarray]:
        yield from (synthetic.samples(index) for index in range(len(synthetic)))
        yield from real_speech(speech_data, recipe.seed, recipe.real_times, recipe.digits)

    made = {"languages": recipe.languages, "hours": recipe.hours, "seed": recipe.seed}
    return _store(work / "with-real", made | {"times": recipe.real_times, "digits": recipe.digits}, both)


def _store(folder: Path, settings: dict[str, object], speech: object) -> Windows:
    """The windows in `folder`, made now from `speech()` or earlier with the same settings."""
    record, wanted = folder / "made_from.json", json.loads(json.dumps(settings))
    made = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else wanted
    if made != wanted:
        raise DataError(f"{folder} was made from {made}, wanted: {wanted}; name another --work or remove that folder")
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    whole = (folder / "windows.npy").is_file()
    return Windows.open_or_write(folder, [] if whole else speech(), *WINDOW_S)  # type: ignore[operator]


def train(recipe: EncoderRecipe, windows: Windows, output: Path) -> PretrainResult:
    """Pretrain from random weights, or on from the last checkpoint in `output`; prints the curve."""
    watch = Watch(
        on_point=lambda point: print(f"{point.elapsed_s / 60:7.1f} min  {point}", flush=True),
        optimizer=MuonWithAdamW if recipe.optimizer == "muon" else None,
    )
    return pretrain(recipe.config(output), windows, architecture=model_config(), watch=watch)


def save(result: PretrainResult, recipe: EncoderRecipe, folder: Path, probes: list[Probe]) -> None:
    """Weights rounded to fp16, quantiser included, with card and recipe.

    Raises ValueError if the weights are over the limit of 8 MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    net = Wav2Vec2ForPreTraining.from_pretrained(result.model, dtype=torch.float32)
    net.half().save_pretrained(folder)
    Wav2Vec2FeatureExtractor.from_pretrained(result.model).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)  # safetensors writes for the owner alone
    if weights.stat().st_size > LIMIT_BYTES:
        size = weights.stat().st_size / 1e6
        raise ValueError(f"the weights take {size:.1f} MB, the limit is {LIMIT_BYTES / 1e6:.0f} MB")
    describe(asdict(recipe), result, probes, folder)


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    if options.probe:
        _probes(options.probe, options)
        return 0
    given = {field.name: getattr(options, field.name, None) for field in fields(EncoderRecipe)}
    given["languages"] = tuple(options.languages) if options.languages else None
    recipe = EncoderRecipe(**{name: value for name, value in given.items() if value is not None})
    windows = prepare(recipe, options.work, options.speech_data)
    print(windows, flush=True)
    if options.prepare_only:
        return 0
    output = options.work / ("run-real" if recipe.real else "run-synthetic")
    result = train(recipe, windows, output)
    print(result)
    folder = options.out or output / "published"
    save(result, recipe, folder, _probes(result.model, options))
    print(f"written to {folder}")
    return 0


def _probes(model: Path, options: argparse.Namespace) -> list[Probe]:
    """`model` and a start from nothing, side by side for each of the minutes; none for no steps."""
    found = []
    for minutes in options.probe_minutes if options.probe_steps else ():
        for start in (model, None):
            found.append(probe(start, options.probe_language, minutes, options.probe_steps))
            print(found[-1], flush=True)
    return found


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], prog="python -m speechkit.demo.recipes.encoder"
    )
    add = parser.add_argument
    add("--work", type=Path, default=Path("runs/demo-encoder"), help="speech, checkpoints, curve; a rerun goes on")
    add("--out", type=Path, help="model folder to write (default: WORK/run-…/published)")
    add("--speech-data", type=Path, help="folder of real speech with manifest.tsv")
    add("--real", action="store_true", help="hear people too, from --speech-data")
    add("--digits", action="store_true", help="also the digit speakers: never evaluate on them then")
    add("--languages", nargs="+", choices=LANGUAGES)
    add("--hours", type=float, default=EncoderRecipe.hours, help="synthetic speech, all languages together")
    add("--steps", type=int, default=EncoderRecipe.steps)
    add("--learning-rate", type=float, default=EncoderRecipe.learning_rate)
    add("--unit-weight", type=float, default=EncoderRecipe.unit_weight, help="0: the published objective alone")
    add("--optimizer", choices=["muon", "adamw"], default=EncoderRecipe.optimizer)
    add("--workers", type=int, default=EncoderRecipe.workers, help="processes that compose batches")
    add("--prepare-only", action="store_true", help="render the speech and stop")
    add("--probe", type=Path, help="only fine-tune this model, and one from scratch, and compare")
    add("--probe-language", default="pl")
    add("--probe-minutes", type=float, nargs="+", default=[3.0, 10.0])
    add("--probe-steps", type=int, default=400, help="0: do not probe")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
