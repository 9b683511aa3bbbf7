"""Make an embedded CTC model from nothing: `python -m speechkit.demo.recipes.asr --language en`.

Steps: sentences from the grammar → espeak-ng (and flite, where installed) → real recordings → CTC training with the
transformers `Trainer` → evaluation on held-out voices, sentences and speakers → model folder with its card.
Every step keeps what it made in `--work`, so a second start goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCTC, Wav2Vec2Config, Wav2Vec2ForCTC

from speechkit import audio, demo
from speechkit.asr.model import load_asr
from speechkit.demo.recipes.corpus import Clip, Store, real_clips, render, sentences, single_words, write_store
from speechkit.demo.recipes.fit import fit
from speechkit.demo.recipes.grammar import Grammar
from speechkit.demo.recipes.languages import LANGUAGES, SPECIAL, tokens
from speechkit.demo.recipes.publish import describe, save
from speechkit.demo.recipes.score import Score, score, training_model
from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

    from speechkit.demo.recipes.corpus import Row
    from speechkit.demo.recipes.score import Transcribe

__all__ = ["Recipe", "main", "model_config", "prepare", "train"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result; saved beside the weights."""

    language: str = "en"
    sentences: int = 50000  # synthetic training clips
    single_words: int = 6000  # more of them, of one word each
    test_sentences: int = 300  # held-out voices and sentences
    steps: int = 21500
    decay_share: float = 0.95  # the learning rate falls to zero over the last part
    warmup_steps: int = 300
    focus_at: float = 0.3  # from here on the voices misread most are heard more often; 0: never
    easy_steps: int = 600  # short clips first: CTC leaves the all-blank plateau sooner
    learning_rate: float = 2e-3
    optimizer: str = "muon"  # for the matrices; "adamw" for everything
    budget_s: float = 24.0  # seconds of audio per step
    seed: int = 1
    exclude_speakers: tuple[str, ...] = ("fsdd-jackson",)
    workers: int = 1  # processes that compose and augment batches
    freeze_features: bool = False  # keep the convolutions of `--init` as they are
    started_from: str = ""  # what `--init` named; empty: random weights


def model_config(language: str = "en") -> Wav2Vec2Config:
    """3.2 M parameters; the front-end's strides multiply to 320 samples (20 ms) as in the published models."""
    return Wav2Vec2Config(
        vocab_size=len(tokens(language)),
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=768,
        conv_dim=(64, 128, 192, 192),
        conv_kernel=(20, 8, 8, 4),
        conv_stride=(10, 4, 4, 2),
        conv_bias=True,
        feat_extract_norm="group",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def prepare(recipe: Recipe, work: Path, speech_data: Path | None, training: bool = True) -> dict[str, Store]:
    """Make the stores "test" and "real_test" under `work`, for training also "train" and "real", or open those there.

    Raises DataError where a store was made with other settings: it could hold the very speakers now kept out.
    """
    language, seed = recipe.language, recipe.seed
    if speech_data and language != "en":
        raise DataError(f"the real recordings of this recipe are English; leave --speech-data out for {language}")

    def spoken(test: bool) -> Iterator[Row]:
        return render(_texts(recipe, speech_data, test), test=test, seed=seed * 1_000_000, code=language)

    def real(folder: Path, test: bool) -> Iterator[Row]:
        return (row for row in real_clips(folder) if _kept_out(row[2], recipe) == test)

    drawn = {"language": language, "seed": seed}
    kept_out = {"exclude_speakers": sorted(recipe.exclude_speakers)}
    stores = {"test": _store(work / "test", drawn | {"test_sentences": recipe.test_sentences}, lambda: spoken(True))}
    if training:
        with_real = {"sentences": recipe.sentences, "single_words": recipe.single_words}
        with_real |= {"real_sentences": speech_data is not None}
        stores["train"] = _store(work / "train", drawn | with_real, lambda: spoken(False))
    if speech_data:
        stores["real_test"] = _store(work / "real_test", kept_out, lambda: real(speech_data, True))
    if speech_data and training:
        stores["real"] = _store(work / "real", kept_out, lambda: real(speech_data, False))
    return stores


def _store(folder: Path, settings: Mapping[str, object], clips: Callable[[], Iterator[Row]]) -> Store:
    """The store in `folder`, made now from `clips` or earlier from the same settings."""
    record = folder / "made_from.json"
    if not (folder / "clips.jsonl").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return write_store(folder, clips())
    made = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else settings
    if made != settings:
        raise DataError(f"{folder} was made from {made}, wanted: {settings}; name another --work or remove that folder")
    return Store(folder)


def _texts(recipe: Recipe, speech_data: Path | None, test: bool) -> list[str]:
    """What is spoken for one store. The same seed gives the same list, whatever other stores are there."""
    rng = random.Random(f"{recipe.seed} {'test' if test else 'train'}")
    grammar = Grammar(recipe.language)
    texts = sentences(grammar, rng, recipe.test_sentences if test else recipe.sentences, test)
    if test:
        return texts
    texts += single_words(grammar, rng, recipe.single_words)
    if speech_data:  # their words, spoken by every voice: the vocabulary of real sentences
        texts += [text for _, text, _, pool in real_clips(speech_data) if pool == "sentences"] * 3
    rng.shuffle(texts)
    return texts


def _kept_out(speaker: str, recipe: Recipe) -> bool:
    """Excluded speakers, and about a fifth of those of the command words, chosen by name."""
    return speaker in recipe.exclude_speakers or speaker.startswith(("sc-3", "sc-a"))


def evaluate(transcribe: Transcribe, stores: dict[str, Store], limit: int | None = None) -> dict[str, Score]:
    """WER on the held-out voices and sentences, and on each kind of real recording that was kept out."""
    groups: dict[str, tuple[Store, list[Clip]]] = {"synthetic": (stores["test"], stores["test"].clips)}
    if "real_test" in stores:
        for pool in ("digits", "words"):
            groups[pool] = (stores["real_test"], [c for c in stores["real_test"].clips if c.pool == pool])
    out = {}
    for name, (store, clips) in groups.items():
        chosen = random.Random(0).sample(clips, min(limit or len(clips), len(clips)))
        if chosen:
            out[name] = score(transcribe, [store.samples(clip) for clip in chosen], [clip.text for clip in chosen])
    return out


def evaluate_folder(folder: Path, stores: dict[str, Store], language: str) -> dict[str, Score]:
    """Every held-out set and the embedded clips, through the recogniser that users get."""
    recognizer = load_asr(folder, device="cpu")

    def transcribe(clips: list[np.ndarray]) -> list[str]:
        return [spoken.text for spoken in recognizer.transcribe(list(clips), words=False)]

    clips = demo.clips(language)
    embedded = score(transcribe, [audio.load(clip.path) for clip in clips], [clip.text for clip in clips])
    return evaluate(transcribe, stores) | {"clips": embedded}


def train(recipe: Recipe, work: Path, stores: dict[str, Store], init: Path | None = None) -> Wav2Vec2ForCTC:
    """Train from nothing, from the folder `init`, or on from the last checkpoint in `work`."""
    _same_recipe(recipe, work)
    torch.manual_seed(recipe.seed)
    eager = "eager"  # attention: on CPU a third faster to train than SDPA at these lengths
    if init:
        model = _started(init, recipe.language, eager)
    else:
        model = AutoModelForCTC.from_config(model_config(recipe.language), attn_implementation=eager)
    if recipe.freeze_features:
        model.freeze_feature_encoder()
    (work / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    used = [stores[name] for name in ("train", "real") if name in stores]
    fit(
        model, recipe, used, work, lambda now: evaluate(training_model(now, tokens(recipe.language)), stores, limit=120)
    )
    return model.cpu()


def _started(init: Path, language: str, attention: str) -> Wav2Vec2ForCTC:
    """The weights in `init` with a head of the right size; of another alphabet only the special tokens are kept."""
    if not (init / "vocab.json").is_file():  # an encoder: it has no head
        settings = model_config(language)
        return Wav2Vec2ForCTC.from_pretrained(init, config=settings, dtype=torch.float32, attn_implementation=attention)
    model = Wav2Vec2ForCTC.from_pretrained(init, dtype=torch.float32, attn_implementation=attention)
    vocabulary = json.loads((init / "vocab.json").read_text(encoding="utf-8"))
    if sorted(vocabulary, key=vocabulary.__getitem__) == list(tokens(language)):
        return model
    head = torch.nn.Linear(model.lm_head.in_features, len(tokens(language)))
    torch.nn.init.normal_(head.weight, std=model.config.initializer_range)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        for number, token in enumerate(SPECIAL):
            head.weight[number] = model.lm_head.weight[vocabulary[token]]
            head.bias[number] = model.lm_head.bias[vocabulary[token]]
    model.lm_head, model.config.vocab_size = head, head.out_features
    return model


def _same_recipe(recipe: Recipe, work: Path) -> None:
    """Raise DataError when the checkpoints in `work` come from other settings; only the schedule may be changed."""
    record = work / "recipe.json"
    if not record.is_file() or not any((work / "checkpoints").glob("checkpoint-*")):
        return
    made, wanted = json.loads(record.read_text()), json.loads(json.dumps(asdict(recipe)))
    free = {"steps", "decay_share", "focus_at", "workers", "started_from"}
    differing = sorted(name for name in wanted if name not in free and made.get(name) != wanted[name])
    if differing:
        raise DataError(
            f"the checkpoints in {work} were made with another {', '.join(differing)} (see recipe.json there): "
            "name another --work, or start over by removing that folder's checkpoints"
        )


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Command-line options → recipe; what was not given keeps its default."""
    given = {field.name: getattr(options, field.name, None) for field in fields(Recipe)}
    given["started_from"] = _origin(options.init, options.language) if options.init else None
    given["exclude_speakers"] = tuple(given["exclude_speakers"]) if given["exclude_speakers"] else None
    return Recipe(**{name: value for name, value in given.items() if value is not None})


def _origin(folder: Path, language: str) -> str:
    """The weights that training starts from, in words for the card."""
    record = folder / "recipe.json"
    if not record.is_file():
        return f"the weights of {folder.name}"
    recipe = json.loads(record.read_text(encoding="utf-8"))["recipe"]
    if "language" not in recipe:  # the encoder's
        return "demo/encoder"
    if recipe["language"] != language:
        return f"demo/{recipe['language']}"
    return f"an earlier model of this recipe ({recipe['steps']} steps of {recipe['budget_s']:g} s)"


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    recipe = recipe_of(options)
    stores = prepare(recipe, options.work, options.speech_data, training=not options.evaluate)
    if LANGUAGES[recipe.language].flite and not which("flite"):
        print("flite is not installed: espeak-ng alone will speak (on Debian: apt-get install flite)", flush=True)
    for name, store in stores.items():
        seconds = sum(clip.seconds for clip in store.clips)
        print(f"{name}: {len(store.clips)} clips, {seconds / 3600:.2f} h", flush=True)
    if options.prepare_only:
        return 0
    folder = options.evaluate or options.out or options.work / "model"
    if not options.evaluate:
        save(train(recipe, options.work, stores, options.init), folder, recipe.language)
    scores = evaluate_folder(folder, stores, recipe.language)
    for name, value in scores.items():
        print(f"{name}: {value}")
    if not options.evaluate:
        describe(recipe, scores, folder)
        print(f"written to {folder}")
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m speechkit.demo.recipes.asr")
    add = parser.add_argument
    add("--language", default="en", choices=list(LANGUAGES))
    add("--work", type=Path, help="stores, checkpoints, curves; a rerun goes on (default: runs/demo-asr-LANGUAGE)")
    add("--out", type=Path, help="model folder to write (default: WORK/model)")
    add("--speech-data", type=Path, help="folder of real speech with manifest.tsv; without it: synthetic speech only")
    add(
        "--exclude-speaker",
        dest="exclude_speakers",
        action="append",
        help="never train on this speaker; may be repeated",
    )
    add("--steps", type=int, default=Recipe.steps)
    add("--decay-share", type=float, default=Recipe.decay_share)
    add("--focus-at", type=float, default=Recipe.focus_at)
    add("--learning-rate", type=float, default=Recipe.learning_rate)
    add("--easy-steps", type=int, default=Recipe.easy_steps)
    add("--optimizer", choices=["muon", "adamw"], default=Recipe.optimizer)
    add("--sentences", type=int, default=Recipe.sentences)
    add("--single-words", type=int, default=Recipe.single_words)
    add("--test-sentences", type=int, default=Recipe.test_sentences)
    add("--workers", type=int, default=Recipe.workers, help="processes that compose and augment batches")
    add("--freeze-features", action="store_true", default=None, help="train all but the convolutions; wants --init")
    add("--init", type=Path, help="start from the weights of this model folder instead of random ones")
    add("--prepare-only", action="store_true", help="render the stores and stop")
    add("--evaluate", type=Path, help="only score this model folder")
    options = parser.parse_args(argv)
    options.work = options.work or Path(f"runs/demo-asr-{options.language}")
    options.work.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
