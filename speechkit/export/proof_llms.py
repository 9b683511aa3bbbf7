"""Two transformers models on the same prompts: adapter and merged, source and reloaded, 16 bits and four.

In: both models, or the rows that the first one said before it was freed. Out: a `Proof` without a tokenizer's part,
for the tokenizer is one and the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.errors import PlanError
from speechkit.export.proof_measure import Following, continuations_alike
from speechkit.export.proof_report import Proof, judged
from speechkit.export.proof_source import greedy, logp_after, rows_of, stops_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.export.proof_source import Row

__all__ = ["ASKED", "against", "compared"]

WIDE = ("same", "merged", "16-bit")
ASKED: dict[str, dict[str, float]] = {
    "same": {"greedy": 1.0, "kl": 1e-3},  # the same weights in 16 bits, where other kernels sum in another order
    "merged": {"top1": 0.98, "kl": 0.005},  # rounded to 16 bits
    "16-bit": {"top1": 0.98, "kl": 0.005},
    "int8": {"top1": 0.97},
    "fp8": {"top1": 0.95},
    "nf4": {"top1": 0.90},
    "int4": {"top1": 0.90},
}


def compared(source: Any, exported: Any, prompts: Sequence[Any] | None, *, tokenizer: Any, kind: str) -> Proof:
    """See `speechkit.export.proof.compare_llms`."""
    if kind not in ASKED:
        raise PlanError(f"kind is {kind!r}; it can be {', '.join(map(repr, ASKED))}")
    (first, own), (second, other) = _pair(source), _pair(exported)
    for name, one in (("source", first), ("exported", second)):
        if not hasattr(one, "generate"):
            raise PlanError(f"{name} is {type(one).__name__}; give a transformers model, or (model, tokenizer)")
    tokenizer = tokenizer or own or other
    if tokenizer is None:
        raise PlanError("no tokenizer was given: compare_llms(source, exported, prompts, tokenizer=…)")
    if first.training or second.training:
        raise PlanError("a model is in training mode, where dropout makes answers vary; call .eval() on both")
    rows, asked, notes = rows_of(first, tokenizer, prompts)
    if len(rows) < asked:
        notes = (*notes, f"{len(rows)} of {asked} prompts: the source took its time for more")
    names = [str(getattr(one.config, "name_or_path", "") or type(one).__name__) for one in (second, first)]
    names = [name.rstrip("/").rpartition("/")[2] for name in names]
    proof = Proof(names[0], names[1], kind, thresholds=ASKED[kind], notes=notes)
    return against(proof, rows, second, tokenizer)


def against(proof: Proof, rows: Sequence[Row], model: Any, tokenizer: Any) -> Proof:
    """`proof` with what `model` says on the rows of its source, judged. Raises PlanError for another vocabulary."""
    found, answers, stops = Following(), [], stops_of(model, tokenizer)
    vocabulary = rows[0].logp.shape[1]
    for row in rows:
        logp = logp_after(model, row.ids, row.first)
        if logp.shape[1] != vocabulary:
            raise PlanError(
                f"the vocabularies differ, {vocabulary} and {logp.shape[1]} tokens; compare what belongs together"
            )
        for ours, theirs in zip(row.logp, logp, strict=True):
            found.add(ours, np.arange(vocabulary), theirs.astype(np.float64))
        answers.append(greedy(model, tokenizer, row.prompt, stops)[len(row.prompt) :])
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    parity, ties = continuations_alike(rows, answers, texts, "BF16" if proof.quant in WIDE else "F32")
    if ties:
        proof = replace(proof, notes=(*proof.notes, f"{ties} greedy continuations part at a tie"))
    reasons = proof.reasons if found.finite else (*proof.reasons, "log-probabilities that are not finite")
    return judged(
        replace(
            proof, prompts=len(rows), tokens=found.positions, top=vocabulary, reasons=reasons, top1=found.top1,
            ties=found.ties, kl=found.mean_kl, max_logprob_difference=found.difference, greedy=parity,
        )
    )  # fmt: skip


def _pair(given: Any) -> tuple[Any, Any]:
    return given if isinstance(given, tuple) and len(given) == 2 else (given, None)
