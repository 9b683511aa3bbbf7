"""The model card of a fine-tuned model: what it is, how well it does, what it learnt from, how to repeat that.

In: the result, the configuration and the origin of a run. Out: Markdown with the Hub's front matter. No path of the
machine goes in: cards are published.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.training.config import FinetuneConfig
    from speechkit.training.report import FinetuneResult

__all__ = ["card"]


def card(result: FinetuneResult, config: FinetuneConfig, origin: dict[str, Any]) -> str:
    """Markdown; every figure in it was measured by the run."""
    language = origin.get("language") or config.language
    head = ["---", *([f"language: {language}"] if language else []), "library_name: transformers"]
    head += ["pipeline_tag: automatic-speech-recognition"]
    base, published = _base(config.model)
    head += [f"base_model: {base}"] if published else []
    name = result.folder.resolve().name  # "." has none
    rows = [
        "---",
        f"# {name}: {base} fine-tuned with speechkit",
        "",
        f"Strategy `{result.strategy}`, {result.trainable:,} of {result.total:,} numbers learnt: {origin['reason']}.",
        "",
        "## How well it does",
        "",
        "Greedy decoding on the development set, corpus-level (all edits over all reference words or characters), with",
        "95 % bootstrap intervals. The best step was chosen on this very set, so expect a little less on other speech.",
        "",
        "| | WER | CER | clips |",
        "|---|---|---|---|",
        *_before(result),
        f"| this model (step {result.best_step}) | {result.wer} | {result.cer} | {result.dev_clips} |",
        "",
        *_data(result, config, origin["data"]),
        "## Use it",
        "",
        "    from speechkit import load_asr",
        f'    load_asr("{name}/best").transcribe("clip.wav")',
        "",
        "## Repeat it",
        "",
        "    speechkit finetune --config run.json",
        "",
        "`run.json` holds every setting, `curve.jsonl` every point of the run, `origin.json` data and versions:",
        "",
        *(f"- {name} {number}" for name, number in origin["versions"].items()),
        *_licence(base, origin.get("licence", "")),
    ]
    return "\n".join([*head, *rows]) + "\n"


def _base(model: str) -> tuple[str, bool]:
    """What the base model is called, without the folders of this machine, and whether the Hub has it by that name."""
    from speechkit.asr import registry

    name = registry.KNOWN.get(model, model)
    if name.startswith("demo/"):
        return name, False
    if Path(name).expanduser().is_dir() or name.startswith((".", "/", "~")):
        return Path(name).name, False
    return name, True


def _licence(base: str, licence: str) -> list[str]:
    if not licence:
        return []
    return [
        "",
        "## Licence",
        "",
        f"{base} is under `{licence}`, which may bind what is made from it; so may the speech.",
    ]


def _data(result: FinetuneResult, config: FinetuneConfig, data: dict[str, Any]) -> list[str]:
    return [
        "## What it was trained on",
        "",
        f"- training: {data['train_clips']} clips, {data['train_minutes']:.1f} minutes, {_people(data['speakers'])}",
        f"- development: {data['dev_clips']} clips, {data['dev_minutes']:.1f} minutes",
        f"- left out: {data['left_out']} rows (`data.json` beside the run says which and why)",
        *([f"- source: `{Path(config.train).name}`"] if config.train else []),
        "",
        f"{result.steps} steps in {result.minutes:.1f} minutes, {result.audio_s / 60:.1f} minutes of audio heard,",
        f"{result.precision}; {config.batch_s:g} s of audio per batch, learning rate {config.learning_rate:g}.",
        *(f"- {note}" for note in result.notes),
        "",
    ]


def _before(result: FinetuneResult) -> list[str]:
    if result.wer_before is None or result.cer_before is None:
        return []
    return [f"| before | {100 * result.wer_before:.1f} % | {100 * result.cer_before:.1f} % | {result.dev_clips} |"]


def _people(speakers: int) -> str:
    return f"{speakers} speaker{'s' * (speakers != 1)}" if speakers else "speakers not named"
