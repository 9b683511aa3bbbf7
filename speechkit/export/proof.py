"""No export is called done before it has been reloaded and compared with its source; here is where that is done.

In: a source and a GGUF file (`prove_gguf`, opened by llama.cpp), or two transformers models (`compare_llms`). Out: a
`Proof`, which prints. The source is opened first, its numbers are kept, it is freed, then the file is opened.
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import ExportError
from speechkit.export.proof_report import Parity, Proof, judged, thresholds_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from speechkit.export.proof_llama import Answers
    from speechkit.export.proof_source import Facts

__all__ = ["Parity", "Proof", "compare_llms", "prove_gguf", "thresholds_of"]

ROOM = 1.25  # of the weights' bytes: activations, what is held twice while loading
ENGINE_BYTES = 300 * 2**20  # llama.cpp's cache and buffers for short prompts
SOURCE_S = 180.0


def prove_gguf(
    source: str | os.PathLike[str] | tuple[Any, Any] | Facts,
    path: str | os.PathLike[str],
    quant: str,
    *,
    prompts: Sequence[Any] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    memory: int | None = None,
    limits: dict[str, float] | None = None,
) -> Proof:
    """Open a GGUF file with llama.cpp and compare it with `source`: a folder, a name, (model, tokenizer), or the
    `Facts` that `proof_source.read_facts` read of one, which serve any number of files.

    Compared: token ids of a corpus, the chat template byte for byte, tokens that end answers, next-token
    log-probabilities and greedy continuations of at most 32 `prompts` (texts or conversations). adapter: a PEFT folder
    on top of the source. lora: a GGUF adapter on top of the file. memory: bytes that may be used, by default what is
    available. limits: seconds by stage ("source", "open", "tokens", "template", "greedy", "logprobs").

    `proof.enforce(force)` refuses what did not pass. Where memory or llama.cpp is missing nothing is compared and
    `proved` is False; a file that llama.cpp does not open, or breaks on, is compared and has failed. Raises ExportError
    where there is no such file, ModelError for a source that cannot be loaded.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ExportError(f"{file} is not there, so that it cannot be proved; give the .gguf file that was written")
    proof = Proof(file.name, _named(source), quant, thresholds=thresholds_of(quant), versions=_versions())
    if why := _hindered(source, file, memory):
        return replace(proof, reasons=(why,))
    from speechkit.export.proof_llama import ask
    from speechkit.export.proof_source import Facts, read_facts

    began = time.monotonic()
    if isinstance(source, Facts):
        facts = source
    else:
        facts = read_facts(source, prompts, adapter=adapter, seconds=(limits or {}).get("source", SOURCE_S))
    spent = {"source": time.monotonic() - began}
    gc.collect()  # the source's weights go before the file's come
    answers = ask(file, facts, lora=Path(lora).expanduser().absolute() if lora else None, limits=limits)
    proof = replace(proof, seconds={name: round(value, 2) for name, value in (spent | answers.seconds).items()})
    return _measured(proof, facts, answers)


def _measured(proof: Proof, facts: Facts, answers: Answers) -> Proof:
    """All that llama.cpp answered beside the source's; where it stopped answering, that is why it failed."""
    from speechkit.export import proof_measure as measure

    if answers.failure:
        return replace(proof, proved=True, reasons=(answers.failure,))
    template, notes = measure.chats_alike(facts, answers)
    ids, texts = [one["ids"] for one in answers.greedy], [one["text"] for one in answers.greedy]
    greedy, ties = measure.continuations_alike(facts.rows, ids, texts, proof.quant)
    found = measure.following(facts.rows, answers)
    notes = (*facts.notes, *notes, *_short(facts, answers, found.positions))
    if ties:
        notes = (*notes, f"{ties} greedy continuations part where the source has two tokens all but equally likely")
    if not facts.chats:
        notes = (*notes, "the source has no chat template to compare")
    if answers.top < facts.vocabulary:
        notes = (*notes, f"KL over the {answers.top} likeliest tokens and one bucket for all others: a lower bound")
    reasons = () if found.finite else ("log-probabilities that are not finite",)
    return judged(
        replace(
            proof, prompts=len(answers.logprobs), tokens=found.positions, top=answers.top, notes=notes, reasons=reasons,
            tokenizer=measure.tokens_alike(facts, answers), stops=measure.stops_alike(facts, answers),
            template=template, top1=found.top1, ties=found.ties, kl=found.mean_kl, greedy=greedy,
            max_logprob_difference=found.difference,
        )
    )  # fmt: skip


def _short(facts: Facts, answers: Answers, positions: int) -> list[str]:
    """What time did not allow."""
    notes = []
    if len(facts.rows) < facts.asked:
        notes.append(f"{len(facts.rows)} of {facts.asked} prompts: the source took its time for more")
    if len(answers.greedy) < len(facts.rows):
        notes.append(
            f"{len(answers.greedy)} of {len(facts.rows)} greedy continuations: llama.cpp took its time for more"
        )
    if positions < facts.positions:
        notes.append(f"{positions} of {facts.positions} positions: llama.cpp took its time for more")
    return notes


def _hindered(source: Any, file: Path, memory: int | None) -> str:
    """Why no comparison can be made; empty where one can."""
    if not extras.available("xllamacpp"):
        return f"xllamacpp is not installed: {extras.install_command('export')}, then prove_gguf again"
    from speechkit.export.proof_llama import parts_of
    from speechkit.export.proof_source import float32_bytes

    if memory is None:
        import psutil

        memory = int(psutil.virtual_memory().available)
    parts = sum(part.stat().st_size for part in parts_of(file))
    needs = {"the source in float32": int(ROOM * float32_bytes(source)), "the file": parts + ENGINE_BYTES}
    for what, bytes_needed in needs.items():
        if bytes_needed > memory:
            return (
                f"{what} needs {bytes_needed / 2**30:.1f} GiB of memory and {memory / 2**30:.1f} GiB are available: "
                "prove_gguf compares them on a machine with more"
            )
    return ""


def _named(source: Any) -> str:
    if hasattr(source, "rows"):
        return _named(source.name)
    if isinstance(source, tuple):
        return str(getattr(source[0].config, "name_or_path", "") or "the model given").rstrip("/").rpartition("/")[2]
    text = str(source).rstrip("/")
    return Path(text).resolve().name if text in (".", "..") else Path(text).name if Path(text).exists() else text


def _versions() -> dict[str, str]:
    found = {}
    for package in ("speechkit", "transformers", "torch", "xllamacpp"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def compare_llms(
    source: Any, exported: Any, prompts: Sequence[Any] | None = None, *, tokenizer: Any = None, kind: str = "merged"
) -> Proof:
    """Two transformers models on the same prompts: adapter and merged, source and reloaded 4 bits, …

    source, exported: models, or (model, tokenizer); one tokenizer is enough. prompts: texts, conversations or token ids
    (lists of int). kind: what is asked for, see `proof_llms.ASKED`. Runs on each model's own device and dtype.
    Raises PlanError where there is no tokenizer for text prompts, or the vocabularies differ.
    """
    from speechkit.export.proof_llms import compared

    return compared(source, exported, prompts, tokenizer=tokenizer, kind=kind)
