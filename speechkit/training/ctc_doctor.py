"""Why a CTC training does not learn. In: its curve, the model, a batch, texts: whatever is at hand. Out: `Diagnosis`.

The yardstick for the all-blank plateau is the *blind loss*: the least that an output which is the same in every frame
can reach on these labels. At that level nothing of the sound has been used, whatever the number looks like. Nothing is
changed: the model is put back into the mode it was in, and no gradient is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from speechkit.asr.checkpoint import check_vocabulary
from speechkit.asr.frames import FrameGrid
from speechkit.asr.masks import lengths_known
from speechkit.errors import DataError, ModelError
from speechkit.training.anatomy import Anatomy
from speechkit.training.check import frames_needed
from speechkit.training.ctc_curve import curve_findings, text_findings
from speechkit.training.findings import Diagnosis, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from speechkit.training.curve import Curve

__all__ = ["Diagnosis", "Finding", "blind_loss", "diagnose", "frames_needed"]

ALL_BLANK = 0.97  # share of frames; speech of a trained model is 60 to 90 % blank
NEAR_BLIND = 0.8  # of the blind loss: above, hardly anything was heard
UNKNOWN = 0.05  # share of <unk> among the labels
SHARES = 24  # blank probabilities tried for the blind loss
HALF_MOST = 65504.0  # largest number in float16
_ORDER = {"stops": 0, "costs": 1, "watch": 2}


def diagnose(
    curve: Curve | None = None,
    model: Any = None,
    batch: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    texts: Sequence[tuple[str, str]] = (),
) -> Diagnosis:
    """Look at whatever is given, and say what is wrong, how one can tell, why, and what to do.

    batch: as the model is fed in training: `input_values` (B, T), `labels` (B, L) with -100 behind the shorter ones,
    `attention_mask` (B, T) or nothing. texts: (reference, hypothesis) pairs, not normalised.

    Found are: the all-blank plateau, losses and activations that are no numbers (which rows, which layer), labels
    longer than their frames, labels outside the head, unknown characters, a tokenizer that is not the head's, frozen
    weights, learning rates that never rose or were never warmed up, a loss that falls without WER, overfitting, text
    that differs in case, spelling or spaces. Raises DataError for a batch without labels, ModelError for a model
    without CTC head.
    """
    found: list[Finding] = []
    if curve is not None:
        found += curve_findings(curve)
    if model is not None:
        found += _model_findings(Anatomy.of(model), model, tokenizer)
    if batch is not None:
        if "labels" not in batch or "input_values" not in batch:
            raise DataError(f"the batch holds {', '.join(batch)}; wanted input_values and labels, as in training")
        found += _label_findings(batch, model, tokenizer)
    if model is not None and batch is not None:
        found += _heard_findings(model, batch)
    found += text_findings(texts) if texts else ()
    if "all-blank plateau" in [finding.name for finding in found]:
        found = [finding for finding in found if finding.name != "plateau"]  # said better, with what was measured
    given = {"curve": curve, "model": model, "batch": batch, "tokenizer": tokenizer, "texts": texts or None}
    ranked = sorted(found, key=lambda finding: _ORDER[finding.severity])
    return Diagnosis(tuple(ranked), tuple(name for name, value in given.items() if value is not None))


def blind_loss(labels: Sequence[Sequence[int]], frames: Sequence[int], vocabulary: int, blank: int = 0) -> float:
    """Least CTC loss per label, mean over clips, of an output that is the same in every frame.

    Letters get the shares that they have in `labels` (ids per clip), the blank the best of a row of probabilities.
    Clips whose labels do not fit into their `frames` are left out; NaN when none is left.
    """
    fitting = [pair for pair in zip(labels, frames, strict=True) if pair[0] and frames_needed(pair[0]) <= pair[1]]
    if not fitting:
        return float("nan")
    flat = torch.tensor([label for ids, _ in fitting for label in ids])
    counts = torch.bincount(flat, minlength=vocabulary).float() + 1e-6
    counts[blank] = 0
    sizes, lengths = torch.tensor([len(ids) for ids, _ in fitting]), torch.tensor([size for _, size in fitting])
    best = float("inf")
    for share in torch.linspace(0.02, 0.98, SHARES):
        p = counts / counts.sum() * (1 - share)
        p[blank] = share
        rows = p.log().expand(int(lengths.max()), len(fitting), vocabulary)  # (F, B, V)
        losses = torch.nn.functional.ctc_loss(rows, flat, lengths, sizes, blank, reduction="none")
        best = min(best, float((losses / sizes).mean()))
    return best


def _model_findings(parts: Anatomy, model: Any, tokenizer: Any) -> Iterator[Finding]:
    weights = list(model.named_parameters())
    if not any(weight.requires_grad for _, weight in weights):
        yield Finding(
            "everything is frozen", "stops", f"0 of {sum(w.numel() for _, w in weights):,} numbers learn",
            "requires_grad is False everywhere; load_asr and from_pretrained checks leave models so.",
            'choose what learns: apply_strategy(model, "top-2"), "all", "lora", …',
        )  # fmt: skip
    broken = [name for name, weight in weights if not bool(torch.isfinite(weight).all())]
    if broken:
        yield Finding(
            "weights are no numbers", "stops", f"NaN or infinity in {len(broken)} parameters, the first is {broken[0]}",
            "a step was made with a gradient that was no number.",
            "go back to the last good checkpoint; skip such steps (max_grad_norm alone does not), lower the rate.",
        )  # fmt: skip
    config, head = parts.model.config, parts.head
    rows = getattr(head, "out_features", int(config.vocab_size))
    if rows != int(config.vocab_size):
        yield Finding(
            "head and config differ", "stops", f"the head has {rows} rows, config.vocab_size is {config.vocab_size}",
            "the head was replaced by hand.", "set config.vocab_size, or resize with training.vocabulary.",
        )  # fmt: skip
    if tokenizer is not None:
        try:
            check_vocabulary(tokenizer, rows, "model and tokenizer")
        except ModelError as error:
            yield Finding(
                "tokens are not the head's rows", "stops", f"{rows} rows, {len(tokenizer.encoder)} tokens: {error}",
                "the tokenizer belongs to another training run, or the head was not resized to it.",
                "resize the head to this vocabulary, or take the tokenizer that was saved beside the model.",
            )  # fmt: skip
        if tokenizer.pad_token_id != config.pad_token_id:
            yield Finding(
                "blank differs", "stops",
                f"the tokenizer's is {tokenizer.pad_token_id}, the model's {config.pad_token_id}",
                "the loss treats another row as the blank than decoding does: text comes out empty or doubled.",
                f"set model.config.pad_token_id = {tokenizer.pad_token_id} before training.",
            )  # fmt: skip


def _rows_of(batch: Mapping[str, Any], model: Any) -> tuple[list[list[int]], list[int]]:
    """Label ids and frames of each clip; without a model, frames of 20 ms."""
    labels = [[int(label) for label in row if label >= 0] for row in torch.as_tensor(batch["labels"]).tolist()]
    grid = FrameGrid.from_config(Anatomy.of(model).model.config) if model is not None else FrameGrid()
    return labels, [grid.frames(count) for count in _samples(batch)]


def _samples(batch: Mapping[str, Any]) -> list[int]:
    values, mask = torch.as_tensor(batch["input_values"]), batch.get("attention_mask")
    return [values.shape[1]] * len(values) if mask is None else torch.as_tensor(mask).sum(-1).tolist()


def _label_findings(batch: Mapping[str, Any], model: Any, tokenizer: Any) -> Iterator[Finding]:
    labels, frames = _rows_of(batch, model)
    long = [place for place, ids in enumerate(labels) if frames_needed(ids) > frames[place]]
    if long:
        row = long[0]
        need = f"{len(labels[row])} labels need {frames_needed(labels[row])} frames, it has {frames[row]}"
        zero = model is not None and Anatomy.of(model).model.config.ctc_zero_infinity
        yield Finding(
            "labels longer than their frames", "costs" if zero else "stops",
            f"{len(long)} of {len(labels)} clips (rows {_few(long)}); row {row}: {need}",
            "text and audio do not belong together, the clip was cut, or speech is very fast; CTC has no path for it, "
            f"so the loss is infinite{' and is set to 0 here: the row teaches nothing' if zero else ''}.",
            "leave these rows out; the report on the data lists them.",
        )  # fmt: skip
    empty = [place for place, ids in enumerate(labels) if not ids]
    if empty:
        yield Finding(
            "clips without labels", "stops" if len(empty) == len(labels) else "watch",
            f"{len(empty)} of {len(labels)} clips (rows {_few(empty)})",
            "empty text, or no character of it is in the vocabulary; many of these teach the model to say nothing.",
            "leave them out, but for a few per cent of true silence.",
        )  # fmt: skip
    if model is not None:
        yield from _range_findings(labels, Anatomy.of(model).model.config)
    unknown = getattr(tokenizer, "unk_token_id", None)
    count, total = sum(ids.count(unknown) for ids in labels) if unknown is not None else 0, sum(map(len, labels))
    if total and count / total > UNKNOWN:
        yield Finding(
            "unknown characters", "stops" if count == total else "costs",
            f"{count / total:.0%} of the labels are {tokenizer.unk_token}",
            "the text has characters that the vocabulary has not: often upper case against lower case.",
            "normalise the text as the vocabulary was, or extend the vocabulary (training.vocabulary).",
        )  # fmt: skip


def _range_findings(labels: Sequence[Sequence[int]], config: Any) -> Iterator[Finding]:
    top = max((label for ids in labels for label in ids), default=0)
    if top >= int(config.vocab_size):
        yield Finding(
            "labels outside the head", "stops", f"the largest label is {top}, the head has {config.vocab_size} rows",
            "the labels were made with another vocabulary.",
            "encode with the tokenizer of this model, or resize its head.",
        )  # fmt: skip
    blanks = [place for place, ids in enumerate(labels) if config.pad_token_id in ids]
    if blanks:
        yield Finding(
            "blank among the labels", "stops", f"{len(blanks)} of {len(labels)} clips (rows {_few(blanks)})",
            f"labels were padded with {config.pad_token_id}, which is the blank, and not with -100.",
            "pad labels with -100: speechkit.training.collate does.",
        )  # fmt: skip


@dataclass
class _Heard:
    """What a forward pass gave."""

    logits: torch.Tensor  # (B, F, V) float32, CPU
    first: str | None  # first module whose output was no number
    largest: float  # absolute value that the module before it gave


def _heard_findings(model: Any, batch: Mapping[str, Any]) -> Iterator[Finding]:
    parts = Anatomy.of(model)
    labels, frames = _rows_of(batch, model)
    heard = _listen(parts, batch)
    inside = torch.arange(heard.logits.shape[1])[None, :] < torch.tensor(frames)[:, None]  # (B, F)
    logits = heard.logits[inside]
    if heard.first is not None or not bool(torch.isfinite(logits).all()):
        dtype = str(next(parts.model.parameters()).dtype).removeprefix("torch.")
        half = dtype == "float16" and heard.largest > HALF_MOST / 100
        yield Finding(
            "activations are no numbers", "stops",
            f"first in {heard.first or 'the logits'}, in {dtype}; before it the largest was {heard.largest:.3g}",
            f"float16 ends at {HALF_MOST:.0f}, and this layer goes beyond." if half
            else "weights or samples are no numbers, or too large.",
            "run in bfloat16 or float32, or leave this layer in float32." if half
            else "look at this layer's weights and at input_values; go back to the last good checkpoint.",
        )  # fmt: skip
        return
    blank, rows = int(parts.model.config.pad_token_id), heard.logits.shape[-1]
    share = float((logits.argmax(-1) == blank).float().mean())
    usable = [place for place, ids in enumerate(labels) if ids and max(ids) < rows and blank not in ids]
    usable = [place for place in usable if frames_needed(labels[place]) <= frames[place]]
    if not usable or share < ALL_BLANK:
        return
    own, sizes = [labels[place] for place in usable], torch.tensor([len(labels[place]) for place in usable])
    losses = torch.nn.functional.ctc_loss(
        heard.logits[usable].log_softmax(-1).transpose(0, 1), torch.tensor([label for ids in own for label in ids]),
        torch.tensor([frames[place] for place in usable]), sizes, blank, reduction="none",
    )  # fmt: skip
    loss, blind = float((losses / sizes).mean()), blind_loss(own, [frames[place] for place in usable], rows, blank)
    if loss > NEAR_BLIND * blind:
        yield _plateau(share, loss, blind)


def _plateau(share: float, loss: float, blind: float) -> Finding:
    more = "above it still: the head is moving away from its random start" if loss > 1.1 * blind else "at it"
    return Finding(
        "all-blank plateau", "stops",
        f"{share:.1%} of the frames say blank; loss {loss:.2f} per label, and the best output that hears nothing would "
        f"have {blind:.2f}: {more}",
        "blank is right most often, so CTC says it everywhere before it can tell sounds apart. From random weights "
        "this is normal for some hundred steps (demo/en left it between steps 200 and 400 of 24 s of audio); from a "
        "pretrained encoder it should be over sooner.",
        "wait through the warm-up and as long again. Then: from scratch, short clips first; with a pretrained encoder, "
        "a higher learning rate for the head than for the layers (parameter_groups) or its front-end frozen; if the "
        "loss swings, a lower rate; if it stands still at a low rate, a higher one; start the blank's bias at 0.",
    )  # fmt: skip


def _listen(parts: Anatomy, batch: Mapping[str, Any]) -> _Heard:
    """One forward pass in evaluation mode, every module watched."""
    model, seen = parts.model, _Heard(torch.empty(0), None, 0.0)

    def watch(name: str) -> Any:
        def hook(module: Any, given: Any, out: Any) -> None:
            value = out[0] if isinstance(out, tuple) else out
            if seen.first is None and isinstance(value, torch.Tensor) and value.is_floating_point():
                top = float(value.detach().abs().max()) if value.numel() else 0.0
                if top <= torch.finfo(torch.float32).max:  # False for NaN
                    seen.largest = top
                else:
                    seen.first = name

        return hook

    training, weight = model.training, next(model.parameters())
    leaves = [(name, module) for name, module in model.named_modules() if name and not list(module.children())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    mask = batch.get("attention_mask")
    model.eval()
    try:
        with torch.no_grad(), lengths_known(model, _samples(batch) if mask is not None else None):
            values = torch.as_tensor(batch["input_values"]).to(weight.device, weight.dtype)
            mask = torch.as_tensor(mask).to(weight.device) if mask is not None else None
            seen.logits = model(values, attention_mask=mask).logits.float().cpu()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return seen


def _few(places: Sequence[int], most: int = 5) -> str:
    shown = ", ".join(map(str, places[:most]))
    return shown + (f" and {len(places) - most} more" if len(places) > most else "")
