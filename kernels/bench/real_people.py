"""People whom the model never heard: English digits by a fourth speaker, forty Arabic words by six of twenty-four.

    python kernels/bench/real_people.py                        every task, start and fold that there is; a rerun goes on
    python kernels/bench/real_people.py --start FOLDER         from that model instead (may be given more than once)
    python kernels/bench/real_people.py --tasks digits --folds fsdd-jackson --steps 200 --takes 10      less of it
    python kernels/bench/real_people.py --speech-data FOLDER   with a manifest.tsv (default: SPEECHKIT_SPEECH_DATA)

Digits: trained on three speakers, scored on the fourth, each in turn; then on the digits of Speech Commands, by other
people, other microphones and at another rate. Arabic: trained on 18 speakers, scored on 6. A start whose recipe says
that it heard the test speaker is refused. No model is chosen by the test speakers: the last one of a run is scored.

--synthetic N lets N clips of the same words by espeak-ng's voices be heard beside the people of a fold (digits only):
three speakers are few to tell what a word has in common with itself.

Two readings: "spelt" is greedy, letter by letter, and may write words that there are not; "listed" is the beam search
with a bigram model of the training texts, what an application with a list of commands would use. --pad: seconds of
silence around each clip in both readings; the digits are cut tightly at the words and get 0.15. Each fold is a JSON
file below --work; the mean and the pooled rate of the folds are both shown, with 95 % intervals from speakers drawn
anew, or from clips where there is one speaker.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechkit.evaluation.metrics import Rate
    from speechkit.training.config import FinetuneConfig
    from speechkit.training.data import Example
    from speechkit.training.folds import Fold

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = "scratch"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# three speakers are few: most of what a fourth will sound like has to be made from them
VOICES = {
    "speed": [0.8, 1.25], "speed_p": 0.8, "formants": [0.85, 1.2], "formants_p": 0.5, "pitch_p": 0.2,
    "pad_s": [0.0, 0.3],
}  # fmt: skip
# wide enough to keep letters that the sound hardly allows: the list of words decides
LISTED: dict[str, Any] = {"beam": 100, "token_threshold": 1e-5, "lm_weight": 3.0}
ANSWERS = "what was heard"  # key of the rows in a fold's file


@dataclass(frozen=True)
class Task:
    """What is learnt, from whom, and who is asked."""

    name: str
    group: str  # first folder of the clips in the manifest
    language: str
    kept_out: tuple[tuple[str, ...], ...] | None  # a fold each; None: every speaker in turn
    outside: str = ""  # group whose clips with the same words are scored too
    pad_s: float = 0.0  # silence around each clip when it is read
    band_p: float = 0.35  # share of the clips that lose what lies above 4 kHz, or so, while training


@dataclass(frozen=True)
class Setting:
    """How long and how fast, by what there is to start from."""

    steps: int
    learning_rate: float
    freeze_features: bool  # a front-end that has learnt sounds keeps them


@dataclass(frozen=True)
class Scored:
    """Clips of one set as a model reads them: speaker, text, and the two readings; rates by reading."""

    rows: list[list[str]] = field(repr=False)

    def rate(self, reading: str) -> Rate:
        from speechkit.evaluation.metrics import error_rate

        at = {"spelt": 2, "listed": 3}[reading]
        speakers = [row[0] for row in self.rows]
        groups = speakers if len(set(speakers)) > 1 else None
        return error_rate([row[1] for row in self.rows], [row[at] for row in self.rows], "word", groups=groups)


def tasks() -> dict[str, Task]:
    from speechkit.demo.recipes.encoder_speech import HELD_OUT_ARABIC

    found = (
        # recorded at 8 kHz: what "four" and "five" begin with is hardly there
        Task("digits", "digits_en_fsdd", "en", None, "words_en_speechcommands", 0.15, band_p=0.8),
        Task("arabic", "words_ar_asc", "ar", (HELD_OUT_ARABIC,)),
    )
    return {task.name: task for task in found}


def setting_of(start: str, task: Task) -> Setting:
    from speechkit.asr import registry

    longer = 2 if task.name == "arabic" else 1  # forty words of 18 speakers, new letters
    if start == SCRATCH:
        return Setting(1500 * longer, 2e-3, False)
    if (Path(registry.resolve(start).location) / "vocab.json").is_file() and task.language == "en":
        return Setting(800, 1e-3, True)  # it knows the words
    return Setting(1000 * longer, 1.5e-3, True)


def scratch(folder: Path, seed: int = 0) -> str:
    """A folder with the embedded models' architecture and random weights; no head, no alphabet."""
    import torch
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    from speechkit.asr.checkpoint import quiet
    from speechkit.demo.recipes.asr import model_config

    if not (folder / "model.safetensors").is_file():
        torch.manual_seed(seed)
        with quiet():
            Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
            Wav2Vec2Model(model_config()).save_pretrained(folder)
    return str(folder)


def starts(asked: Sequence[str] | None) -> list[str]:
    """Those asked for, or every embedded one that can serve, and none at all."""
    from speechkit import demo

    return list(asked or [f"demo/{name}" for name in ("encoder", "en") if name in demo.models()] + [SCRATCH])


def plan(fold: Fold, task: Task, start: str, options: argparse.Namespace) -> FinetuneConfig:
    """The whole configuration of one fold; its only evaluation is at the end, so nothing is chosen by it."""
    from speechkit.training.config import FinetuneConfig

    setting = setting_of(start, task)
    steps = options.steps or setting.steps
    place = options.work / task.name / start.strip("/").replace("/", "_") / fold.name.replace("+", "_")[:40]
    return FinetuneConfig(
        model=scratch(options.work / SCRATCH) if start == SCRATCH else start,
        folder=str(place),
        language=task.language,
        steps=steps,
        learning_rate=options.learning_rate or setting.learning_rate,
        strategy_options={"freeze_features": setting.freeze_features},
        batch_s=options.batch_s,
        augmentation=VOICES | {"band_p": task.band_p},
        eval_every=steps,
        log_every=20,
        keep=1,
    )


def machines(count: int, folder: Path, seed: int = 1) -> tuple[Example, ...]:
    """`count` digits by espeak-ng's voices, made-up ones among them; rendered into `folder`, or opened there."""
    import random

    from speechkit.demo.recipes.corpus import Store, render, write_store
    from speechkit.training.data import Example

    if not count:
        return ()
    whole = folder / f"synthetic-{count}"
    if (whole / "clips.jsonl").is_file():
        store = Store(whole)
    else:
        texts = random.Random(seed).choices(DIGITS, k=count)
        store = write_store(whole, render(texts, test=False, seed=seed * 1_000_000))
    return tuple(
        Example(store.samples(clip), clip.text, f"synthetic/{at}", f"espeak {clip.speaker}", "en", clip.seconds)
        for at, clip in enumerate(store.clips)
    )


def read(rows: Sequence[Example], model: str, texts: Sequence[str], pad_s: float) -> Scored:
    """Clips → what `model`, which has a head, makes of them, spelt and listed."""
    from speechkit import load_asr
    from speechkit.asr.lm import NGram

    recognizer = load_asr(model, device="cpu")
    listed = recognizer.decoder(lm=NGram.train(texts, order=2, language=recognizer.language), **LISTED)
    clips = [row.audio for row in rows]
    spelt = [told.text for told in recognizer.transcribe(clips, words=False, pad_s=pad_s)]
    found = [told.text for told in recognizer.transcribe(clips, words=False, pad_s=pad_s, decoder=listed)]
    return Scored([[row.speaker, row.text, *pair] for row, *pair in zip(rows, spelt, found, strict=True)])


def run(fold: Fold, task: Task, start: str, others: Sequence[Example], options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one fold, or read what an earlier run of the same settings found.

    Raises PlanError for a start that heard the test speakers, and for a file of other settings; DataError for a run
    that diverged before there was a model.
    """
    from speechkit.demo.recipes.heard import Hearing, refuse_heard
    from speechkit.errors import DataError, PlanError
    from speechkit.training.config import FinetuneConfig
    from speechkit.training.finetune import finetune

    heard = Hearing(start, known=True) if start == SCRATCH else refuse_heard(start, fold.speakers)
    config, pad_s = plan(fold, task, start, options), task.pad_s if options.pad is None else options.pad
    file = Path(config.folder) / "fold.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        other = config.differences(FinetuneConfig(**found["config"]))
        if other or found["clips"] != [len(fold.train), len(fold.test)]:
            reason = "; ".join(other) or f"it holds {found['clips']} clips"
            raise PlanError(f"{file} was measured otherwise ({reason}); name another --work, or remove that folder")
        if found.get("pad_s", 0.0) == pad_s:
            return found  # else it is only read anew
    texts = [row.text for row in fold.train]
    foreign = task.language != "en"
    answers = {}
    if start != SCRATCH and not foreign and (Path(_folder(start)) / "vocab.json").is_file():
        answers = {f"{name} before": read(rows, start, texts, pad_s).rows for name, rows in _sets(fold, others)}
    begun = time.perf_counter()
    made = finetune(config, fold.train, fold.dev, on_point=_said(f"{fold.name:.28}", begun))
    if made.best is None:
        raise DataError(f"the run left no model: {made}")
    last = str(made.best)
    answers |= {f"{name} after": read(rows, last, texts, pad_s).rows for name, rows in _sets(fold, others)}
    found = {
        "task": task.name, "start": start, "fold": fold.name, "config": asdict(config),
        "clips": [len(fold.train), len(fold.test)], "minutes": made.minutes, "audio_s": made.audio_s,
        "pad_s": pad_s, "known": heard.known,
        "strangers": [s for s in {r.speaker for r in others} if not heard.heard(s)],
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "command": sys.argv, ANSWERS: answers,
    }  # fmt: skip
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(file)
    return found


def _folder(start: str) -> str:
    from speechkit.asr import registry

    return registry.resolve(start).location


def _sets(fold: Fold, others: Sequence[Example]) -> Iterator[tuple[str, Sequence[Example]]]:
    yield "test", fold.test
    if others:
        yield "outside", others


def _said(name: str, begun: float) -> Any:
    def say(point: Any) -> None:
        if point.step % 100 == 0 or point.wer is not None:
            rate = f", development WER {point.wer:.1%}" if point.wer is not None else ""
            loss = f"{point.loss:.3f}" if point.loss is not None else "–"
            print(f"  {name}: {time.perf_counter() - begun:6.0f} s, step {point.step}, loss {loss}{rate}", flush=True)

    return say


def table(found: Sequence[dict[str, Any]]) -> str:
    """One line a fold, one for the mean of a start's folds; `before` is the start itself, where it can read."""
    lines = [f"{'':34}{'spelt, before':>22}{'spelt, after':>22}{'listed, before':>22}{'listed, after':>22}"]
    for task, start in dict.fromkeys((row["task"], row["start"]) for row in found):
        mine = [row for row in found if (row["task"], row["start"]) == (task, start)]
        lines += ["", f"{task} from {start}{'' if all(row['known'] for row in mine) else ' (heard: not known)'}"]
        lines += [_line(f"  {row['fold']:.28}", [row], "test") for row in mine]
        if len(mine) > 1:
            lines.append(_line(f"  {len(mine)} folds pooled", mine, "test"))
            means = [sum(rates) / len(rates) for rates in zip(*(_after(row) for row in mine), strict=True)]
            lines.append(f"  mean of the folds, after: spelt {means[0]:.1%}, listed {means[1]:.1%}")
        if any(key.startswith("outside") for key in mine[0][ANSWERS]):
            lines.append(_line("  Speech Commands, everybody", mine, "outside"))
            lines.append(_line("  those that the start never heard", mine, "outside", strangers=True))
    return "\n".join(lines)


def _after(row: dict[str, Any]) -> list[float]:
    return [Scored(row[ANSWERS]["test after"]).rate(reading).value for reading in ("spelt", "listed")]


def _line(title: str, found: Sequence[dict[str, Any]], of: str, strangers: bool = False) -> str:
    cells = []
    for reading in ("spelt", "listed"):
        for when in ("before", "after"):
            rows = [
                clip
                for row in found
                for clip in row[ANSWERS].get(f"{of} {when}", [])
                if not strangers or clip[0] in row["strangers"]
            ]
            cells.append(str(Scored(rows).rate(reading)) if rows else "–")
    return f"{title:34}" + "".join(f"{cell:>22}" for cell in cells)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every fold asked for, one after the other. Starts that heard a fold's speakers are left out with the reason."""
    from speechkit.errors import PlanError
    from speechkit.training.data import read_examples
    from speechkit.training.folds import folds_by_speaker, take_per_text

    spoken = machines(options.synthetic, options.work) if "digits" in options.tasks else ()
    rows = read_examples(options.speech_data / "manifest.tsv")
    found: list[dict[str, Any]] = []
    for task in (tasks()[name] for name in options.tasks):
        mine = [row for row in rows if row.name.startswith(f"{task.group}/")]
        others = [row for row in rows if task.outside and row.name.startswith(f"{task.outside}/")]
        others = [row for row in others if row.text in DIGITS]
        wanted = list(dict.fromkeys(row.text for row in mine))[: options.words]
        mine = [row for row in mine if row.text in wanted]
        mine = list(take_per_text(mine, options.takes)) if options.takes else mine
        for start in starts(options.start):
            for people in folds_by_speaker(mine, task.kept_out):
                fold = replace(people, train=(*people.train, *spoken)) if task.language == "en" else people
                if options.folds and not set(options.folds) & set(fold.speakers):
                    continue
                print(f"{task.name} from {start}, {fold}", flush=True)
                try:
                    found.append(run(fold, task, start, others, options))
                except PlanError as error:
                    print(f"  left out: {error}", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    data = os.environ.get("SPEECHKIT_SPEECH_DATA", ROOT.parent / "shared/data/speech")
    add("--speech-data", type=Path, default=Path(data), help="folder of recordings with manifest.tsv")
    add("--work", type=Path, default=ROOT / "runs/real-people", help="models and results; a rerun goes on")
    add("--start", action="append", help="model to start from, or 'scratch'; default: the embedded ones and scratch")
    add("--tasks", nargs="+", default=["digits", "arabic"], choices=["digits", "arabic"])
    add("--folds", nargs="+", help="only the folds that keep one of these speakers out")
    add("--words", type=int, help="only the first so many different words")
    add("--takes", type=int, help="clips of each word by each speaker at most")
    add("--synthetic", type=int, default=3000, help="clips of the digits by espeak-ng beside those of people")
    add("--steps", type=int, help="updates, in place of what the start's kind takes")
    add("--learning-rate", type=float)
    add("--batch-s", type=float, default=16.0)
    add("--pad", type=float, help="seconds of silence around each clip when it is read, in place of the task's own")
    options = parser.parse_args(argv)
    if not (options.speech_data / "manifest.tsv").is_file():
        print(f"no manifest.tsv in {options.speech_data}: nothing to measure; name the folder with --speech-data")
        return 0
    found = measure(options)
    if found:
        print(f"\n{table(found)}\n\nmeasured {found[0]['date'][:10]} to {found[-1]['date'][:10]} by:")
        print("  python " + " ".join([*sys.argv[:1], *(argv if argv is not None else sys.argv[1:])]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
