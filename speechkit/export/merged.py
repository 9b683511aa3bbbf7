"""A model with its adapter merged in, as a folder that transformers loads: 16 bits, or quantised to 8 or 4.

In: a folder, a name or (model, tokenizer), with or without an adapter. Out: the folder and a `MergedReport`. The folder
is reloaded and compared with what it was made from before it gets its name; one that differs is refused.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError, ModelError, PlanError
from speechkit.export.merged_formats import BITS, FORMATS, check_possible, notes_of, settings_of, widths_of
from speechkit.export.merged_write import bytes_in, check_apart, check_place, check_space, save_model, writing
from speechkit.export.prompts import CORPUS
from speechkit.export.proof_report import Parity, Proof
from speechkit.llm.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from speechkit.export.proof_source import Row
    from speechkit.llm.merge_check import MergeReport

__all__ = ["FORMATS", "MergedReport", "export_merged"]

SHARD_BYTES = 2 * 10**9
ROOM = 1.25  # of the weights' bytes, for activations and what is held twice while loading


@dataclass(frozen=True, repr=False)
class MergedReport:
    """What was written. Prints as some lines."""

    folder: Path
    format: str
    files: tuple[str, ...]
    bytes: int
    seconds: dict[str, float]
    merge: str  # what merging the adapter did to the logits; "" where there was none
    proof: Proof
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        shards = sum(name.endswith(".safetensors") for name in self.files)
        spent = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        lines = [f"{self.folder} ({self.format}): {self.bytes / 2**20:.1f} MiB in {shards} safetensors files; {spent}"]
        lines += [f"  merged         {self.merge}"] if self.merge else []
        return "\n".join([*lines, *(f"  note           {note}" for note in self.notes), self.proof.text()])

    __str__ = text
    __repr__ = text

    def as_dict(self) -> dict[str, Any]:
        """JSON's types."""
        return {**asdict(self), "folder": self.folder.name, "proof": self.proof.as_dict()}


@dataclass
class _Job:
    """What is asked for, checked."""

    place: Path
    format: str
    device: str
    shard_bytes: int
    prompts: Sequence[Any] | None
    force: bool
    seconds: dict[str, float]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 2)


@dataclass
class _Opened:
    """The model in 16 bits, the adapter merged."""

    model: Any
    tokenizer: Any
    name: str
    dtype: Any
    report: MergeReport | None = None
    back: Callable[[], None] | None = None  # of a model that was given: makes it what it was


def export_merged(
    model_or_folder: Any,
    folder: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    format: str = "16-bit",
    shard_bytes: int = SHARD_BYTES,
    prompts: Sequence[Any] | None = None,
    device: str | None = None,
    base: str | os.PathLike[str] | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> MergedReport:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads, after it was reloaded and compared.

    model_or_folder: a folder, a name, a folder with an adapter, or (model, tokenizer), where the model may carry an
    adapter and is afterwards as it was. adapter: a PEFT folder to merge. format: "16-bit" (the model's own dtype where
    it has 16 bits, else bfloat16), "nf4" (bitsandbytes), "int8", "int4", "fp8" (torchao). base: of a quantised model
    with an adapter, the name of its base, onto which the adapter is merged in 16 bits. device: where it is loaded, by
    default where the model given is, else the CPU (int4 takes half a byte a weight on NVIDIA GPUs only). force: keep
    what failed.

    Raises ExportError for an adapter that changes nothing, weights that are not finite, a reloaded model that differs;
    ModelError for an adapter of another base; OutputError for a folder that exists, or too little disk; PlanError for
    an unknown format, or one that the device cannot run.
    """
    from speechkit.device import choose_device

    if not isinstance(shard_bytes, int) or shard_bytes < 2**20:
        raise PlanError(f"shard_bytes is {shard_bytes!r}; it is bytes a file, at least 1,048,576")
    given = isinstance(model_or_folder, tuple) and len(model_or_folder) == 2
    where = choose_device(device or (str(model_or_folder[0].device) if given else "cpu")).value
    check_possible(format, where)
    if not given and not isinstance(model_or_folder, (str, os.PathLike)):
        kind = type(model_or_folder).__name__
        raise PlanError(f"model_or_folder is {kind}; it is a folder, a name, or (model, tokenizer)")
    place = check_place(folder, overwrite)
    if place.exists():
        check_apart(place, _folders_of(model_or_folder, adapter))
    job = _Job(place, format, where, shard_bytes, prompts, force, {})
    with job.stage("open and merge"):
        opened = _open(model_or_folder, adapter, job, base)
    training = given and model_or_folder[0].training
    try:
        return _written(opened, job)
    finally:
        if opened.back is not None:
            opened.back()
        if training:
            model_or_folder[0].train()


def _folders_of(source: Any, adapter: Any) -> list[Path]:
    """Folders that are here and are read: the source's, its base's where it is an adapter, the adapter's."""
    from speechkit.llm import registry
    from speechkit.llm.files import find

    read = [] if adapter is None else [Path(adapter).expanduser()]
    if not isinstance(source, tuple):
        place = find(registry.resolve(source))
        read += [place.base] if place.adapter is None else [place.base, place.adapter]
    return [path for path in read if path.is_dir()]


def _open(source: Any, adapter: Any, job: _Job, base: Any) -> _Opened:
    """Read, check, merge. A model that was given is changed only as far as `back` can undo."""
    from speechkit.llm.adapter_files import load_adapter

    given = isinstance(source, tuple) and len(source) == 2
    if given:
        model, tokenizer = source
        name = str(getattr(model.config, "name_or_path", "") or "the model given").rstrip("/").rpartition("/")[2]
    else:
        model, tokenizer, own = _read(source, job.device)
        if own is not None and adapter is not None:
            raise PlanError(f"{source} is an adapter already; merge it first, or leave adapter= out")
        adapter, name = adapter or own, Path(source).name or Path(source).resolve().name
    if adapter is not None and hasattr(model, "peft_config"):
        raise PlanError("the model carries an adapter already; give its base, or leave adapter= out")
    _check_finite(model, name)
    dtype, carried = _dtype_of(model), hasattr(model, "peft_config")
    if not carried and adapter is None:
        _check_plain(model)
        return _Opened(model, tokenizer, name, dtype, back=_cast(model, dtype))
    from speechkit.llm.merge import merge, unmerge

    adapted = model if carried else load_adapter(model, adapter, kernels=False)
    try:
        merged, report = merge(adapted, base=base, dtype=dtype, keep=given)
    except BaseException:
        if given and not carried:
            adapted.unload()
        raise

    def back() -> None:
        if base is None:
            unmerge(merged)
        if not carried:
            adapted.unload()

    return _Opened(merged, tokenizer, name, dtype, report, back if given else None)


def _cast(model: Any, dtype: Any) -> Callable[[], None]:
    """All weights in `dtype`; what is returned gives them back, to the bit."""
    from speechkit.llm.merge_weights import cast

    steps: list[Callable[[], None]] = []
    named = getattr(model.config, "dtype", None)
    cast(model, dtype, steps)
    model.config.dtype = dtype

    def back() -> None:
        model.config.dtype = named
        while steps:
            steps.pop()()

    return back


def _read(source: Any, device: str) -> tuple[Any, Any, Path | None]:
    from speechkit.llm import registry
    from speechkit.llm.files import find, read_config, read_model, read_tokenizer

    place = find(registry.resolve(source))
    config = read_config(place.base)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{source} is quantised already; export the model that it was made from")
    own = str(getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None) or "")
    dtype = own.removeprefix("torch.") if own.endswith("float16") else "bfloat16"
    return read_model(place.base, config, dtype, device), read_tokenizer(place.tokenizer), place.adapter


def _check_plain(model: Any) -> None:
    from speechkit.llm.merge_weights import quantised

    if getattr(model, "hf_quantizer", None) is not None or quantised(model):
        raise ModelError("the model's weights are quantised already; export the model that they were made from")


def _check_finite(model: Any, name: str) -> None:
    import torch

    wrong = [key for key, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if wrong:
        raise ExportError(
            f"{name} holds weights that are not finite, {wrong[0]} among {len(wrong)}; it diverged in training, or its "
            "file is broken: export an earlier checkpoint"
        )


def _written(opened: _Opened, job: _Job) -> MergedReport:
    """What the model says, the folder, what the folder says, the verdict; then its name."""
    from speechkit.export.proof_source import rows_of

    model = opened.model.eval()
    widths_of(model, job.format)
    check_space(job.place, _bytes_needed(model, job.format))
    with job.stage("ask the source"), quiet():
        rows, asked, notes = rows_of(model, opened.tokenizer, job.prompts)
    if len(rows) < asked:
        notes = (*notes, f"{len(rows)} of {asked} prompts: the source took its time for more")
    if opened.report is not None:
        notes = (f"merged: {opened.report}", *notes)
    with writing(job.place) as fresh:
        with job.stage("write"):
            del model
            _save(opened, fresh, job)
        with job.stage("reload and compare"):
            proof = _compared(opened, rows, notes, fresh, job).enforce(job.force)
        proof.save(fresh)
        files, size = tuple(sorted(path.name for path in fresh.iterdir())), bytes_in(fresh)
    told = "" if opened.report is None else str(opened.report)
    notes = notes_of(job.format, job.device, opened.dtype)
    return MergedReport(job.place, job.format, files, size, job.seconds, told, proof, notes)


def _dtype_of(model: Any) -> Any:
    """What is written: the weights' own 16-bit dtype, or bfloat16."""
    import torch

    found = next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
    return found if found in (torch.float16, torch.bfloat16) else torch.bfloat16


def _bytes_needed(model: Any, format: str) -> float:
    """On disk, at most at one time: of a quantised folder the 16 bits besides, from which it is made."""
    import torch

    linear = sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
    every = sum(weight.numel() for weight in model.parameters())
    whole = 2.0 * every
    return whole if format == "16-bit" else whole + linear * BITS[format] / 8 + 2.0 * max(0, every - linear)


def _save(opened: _Opened, fresh: Path, job: _Job) -> None:
    """The folder in its format. A model that was read here is let go, for the next is read."""
    target = fresh if job.format == "16-bit" else fresh / "16-bit"
    save_model(opened.model, opened.tokenizer, target, job.shard_bytes)
    opened.model = None  # what `back` holds of it stays
    gc.collect()
    if job.format == "16-bit":
        return
    settings = settings_of(job.format, job.device, opened.dtype)
    model = _load(target, job, opened.dtype, settings)
    save_model(model, opened.tokenizer, fresh, job.shard_bytes)
    shutil.rmtree(target)


def _load(folder: Path, job: _Job, dtype: Any, settings: Any = None) -> Any:
    from speechkit.llm.files import read_config, read_model

    return read_model(folder, read_config(folder), str(dtype).removeprefix("torch."), job.device, settings).eval()


def _compared(opened: _Opened, rows: Sequence[Row], notes: Sequence[str], fresh: Path, job: _Job) -> Proof:
    """The folder as anyone would load it, beside the rows of its source."""
    from importlib.metadata import version

    from speechkit.export.proof_llms import ASKED, against
    from speechkit.llm.files import read_tokenizer

    asked = ASKED["same" if job.format == "16-bit" else job.format]
    versions = {name: version(name) for name in ("speechkit", "transformers", "torch")}
    tokenizer = read_tokenizer(fresh)
    proof = Proof(
        job.place.name, opened.name, job.format, thresholds=asked, notes=tuple(notes), versions=versions,
        tokenizer=_tokens_alike(opened.tokenizer, tokenizer), template=_chats_alike(opened.tokenizer, tokenizer),
    )  # fmt: skip
    if why := _without_room(fresh, job.device):
        return replace(proof, reasons=(why,))
    with quiet():
        return against(proof, rows, _load(fresh, job, opened.dtype), tokenizer)


def _without_room(folder: Path, device: str) -> str:
    """Why the folder cannot be loaded here beside what is; empty where it can."""
    import psutil

    needed, free = int(ROOM * bytes_in(folder)), int(psutil.virtual_memory().available)
    if device != "cpu" or needed <= free:
        return ""
    return (
        f"reloading it needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are available: "
        "compare_llms compares it on a machine with more"
    )


def _tokens_alike(source: Any, saved: Any) -> Parity:
    wrong = [text for text in CORPUS if source(text)["input_ids"] != saved(text)["input_ids"]]
    return Parity(len(CORPUS) - len(wrong), len(CORPUS), repr(wrong[0][:48]) if wrong else "")


def _chats_alike(source: Any, saved: Any) -> Parity | None:
    from speechkit.export.proof_source import chats_of

    if not getattr(source, "chat_template", None):
        return None
    ours, theirs = chats_of(source), chats_of(saved) if saved.chat_template else []
    same = sum(one in theirs for one in ours)
    return Parity(same, len(ours), "" if same == len(ours) else "the template that was saved renders otherwise")
