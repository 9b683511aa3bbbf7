"""Distillation: WER of smaller models beside their size and speed, with a teacher and without.

    python kernels/bench/distil.py                                    demo/en into students of 4 and 2 layers
    python kernels/bench/distil.py --layers 3 --width 96 --minutes 10 --updates 300

Every student is cut out of the teacher and trained twice on the same clips in the same order, as many updates each: on
the teacher's frames and the text ("distil"), and on the text alone ("CTC alone": the same run with the teacher's share
at 0). Scored on held-out sentences by held-out voices, the set that picks nothing. Speed is a ratio to the teacher from
rounds in which the models take turns. Needs espeak-ng. A rerun with the same --work goes on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from speechkit import load_asr
from speechkit.demo.recipes.transfer_speech import speak
from speechkit.training.config import FinetuneConfig
from speechkit.training.finetune import finetune
from speechkit.training.sizes import size_table

if TYPE_CHECKING:
    from speechkit.asr.model import Recognizer
    from speechkit.demo.recipes.transfer_speech import Labelled
    from speechkit.training.report import FinetuneResult

WAYS = {"distil": 0.5, "CTC alone": 0.0}  # share of the teacher in the loss


def trained(options: argparse.Namespace, layers: int, way: str, speech: Labelled) -> FinetuneResult:
    config = FinetuneConfig(
        model=options.teacher,
        folder=str(options.work / f"{layers}-{options.width}-{way.replace(' ', '-')}"),
        strategy="distil",
        strategy_options={
            "student_layers": layers,
            "student_width": options.width,
            "distil_weight": WAYS[way],
            "freeze_features": True,
        },
        steps=options.updates,
        learning_rate=options.learning_rate,
        augmentation={},
        eval_every=-(-options.updates // 4),
        seed=options.seed,
    )
    return finetune(config, speech.first(options.minutes), speech.dev)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="demo/en")
    parser.add_argument("--language", default="en")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--width", type=int, default=0, help="hidden size of the students; 0: the teacher's")
    parser.add_argument("--minutes", type=float, default=60, help="of training speech, spoken by espeak-ng")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--clips", type=int, default=150, help="to be scored on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="folder for speech and runs; default: a temporary one")
    options = parser.parse_args()
    options.work = options.work or Path(tempfile.mkdtemp())
    speech = speak(options.language, options.minutes, options.work / "speech", (24, options.clips), options.seed)
    teacher = load_asr(options.teacher, device="cpu")
    models: dict[str, Recognizer] = {f"{options.teacher}, {teacher.config.num_hidden_layers} layers": teacher}
    for layers in options.layers:
        for way in WAYS:
            result = trained(options, layers, way, speech)
            print(f"{layers} layers, {way}: {result.steps} updates, {result.minutes:.1f} min", flush=True)
            if result.best is not None:
                models[f"{layers} layers, {way}"] = load_asr(result.best, device="cpu")
    print(size_table(models, speech.test, rounds=5))


if __name__ == "__main__":
    main()
