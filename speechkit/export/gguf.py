"""A language model as a GGUF file for llama.cpp, Ollama and LM Studio, compared with its source before it is kept.

In: a model, a folder or a name, and a kind of file. Out: the file (or its splits) and a `GgufReport`. Pure Python: the
gguf package writes and names, `kquants` packs. Weights are streamed: of a sharded model never more than parts of one
tensor are held. Stages: `gguf_source` finds, `gguf_tensors` plans, `mixture` chooses types, `gguf_write` writes.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import ExportError, ModelError, OutputError, PlanError
from speechkit.export import mixture
from speechkit.export.gguf_families import ARCHITECTURES, architecture_of
from speechkit.export.gguf_write import Stopwatch, check_room, finish, partial_folder, split_files, write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from gguf import GGUFWriter

    from speechkit.export.gguf_source import Source
    from speechkit.export.gguf_tensors import Planned
    from speechkit.export.proof_report import Proof

__all__ = ["ARCHITECTURES", "GgufReport", "export_gguf"]


@dataclass(frozen=True)
class GgufReport:
    """What was written; prints as `text()`."""

    files: tuple[Path, ...]
    arch: str  # llama.cpp's name of the architecture
    quant: str
    bytes: int
    parameters: int
    types: dict[str, int]  # tensors of each type
    seconds: dict[str, float]  # by stage
    notes: tuple[str, ...] = ()
    proof: Proof | None = field(default=None, repr=False)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / max(1, self.parameters)

    def text(self) -> str:
        """For people."""
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        spent = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items() if value >= 0.05)
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        lines = [
            f"{self.files[0]}{more}: {self.arch} {self.quant}, {self.bytes / 2**20:,.1f} MiB, "
            f"{self.bits_per_weight:.2f} bits per weight",
            f"      tensors    {types}",
            f"      seconds    {sum(self.seconds.values()):.1f}" + (f": {spent}" if spent else ""),
            *(f"      note       {note}" for note in self.notes),
        ]
        return "\n".join(
            [*lines, "      unproved   not compared with its source" if self.proof is None else self.proof.text()]
        )

    def as_dict(self) -> dict[str, Any]:
        """For a card or a log: strings, numbers, lists."""
        found = asdict(replace(self, proof=None))
        proof = self.proof.as_dict() if self.proof is not None else None
        return {
            **found,
            "files": [file.name for file in self.files],
            "bits_per_weight": self.bits_per_weight,
            "proof": proof,
        }

    __str__ = text


@dataclass(frozen=True)
class _Wanted:
    """What was asked for, checked."""

    path: Path
    kind: mixture.Kind
    imatrix: Mapping[str, np.ndarray]
    split_bytes: int
    pre: str | None


def export_gguf(
    model_or_folder: Any,
    path: str | os.PathLike[str],
    quant: str = "Q4_K_M",
    adapter: str | os.PathLike[str] | None = None,
    imatrix: Any = None,
    force: bool = False,
    overwrite: bool = False,
    *,
    prove: bool = True,
    split_bytes: int | None = None,
    prompts: Sequence[Any] | None = None,
    pre: str | None = None,
) -> GgufReport:
    """Write a model as GGUF, compare it with its source in llama.cpp, and keep it where it passed.

    model_or_folder: a folder, a name that load_llm knows, a PEFT folder, a model that load_llm made, or (model,
    tokenizer). quant: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q4_0, mixed as llama.cpp does.
    adapter: a PEFT folder, merged in. imatrix: {name: (K,)} or the file of one. force: keep what its proof refuses
    (the proof says so). split_bytes: of weights in one file; files are then named -00001-of-0000N.gguf. prompts: for
    the proof. pre: llama.cpp's pre-tokenizer for a tokenizer that it does not know.

    Raises PlanError for a path or type that cannot be, OutputError for a file in the way and too little room,
    ModelError for a model or shard that is broken, ExportError for what llama.cpp cannot hold and a file that fails.
    """
    extras.require("gguf", extra="export", purpose="writing GGUF")
    from speechkit.export.gguf_source import source_of

    wanted = _checked(path, quant, imatrix, overwrite, split_bytes, pre)
    watch = Stopwatch()
    with ExitStack() as stack:
        made = stack.enter_context(partial_folder(wanted.path))
        with watch.stage("prepare"):
            source = stack.enter_context(source_of(model_or_folder, adapter, made))
        report = _written(source, made, wanted, watch)
        proof = _proved(source, made, wanted, prompts, force, watch) if prove else None
        files = finish(made, wanted.path, overwrite)
        if proof is not None:
            proof.save(wanted.path.parent)
    return replace(report, files=files, proof=proof, seconds=watch.seconds)


def _checked(path: Any, quant: str, imatrix: Any, overwrite: bool, split_bytes: int | None, pre: str | None) -> _Wanted:
    place, kind = Path(path).expanduser(), mixture.kind_of(quant)
    if place.suffix != ".gguf":
        raise PlanError(f"path is {str(path)!r}; a GGUF file is named so: {place.name or 'model'}.gguf")
    if place.is_dir():
        raise OutputError(f"{place} is a folder; name a file in it, {place / 'model.gguf'}")
    if (old := split_files(place)) and not overwrite:
        raise OutputError(f"{old[0]} is there already; pass overwrite=True to replace it, or choose another name")
    if part := re.fullmatch(r"(.+)-\d{5}-of-\d{5}", place.stem):
        raise PlanError(f"path is {str(path)!r}, the name of a part; name the whole, {part[1]}.gguf, and split_bytes")
    if split_bytes is not None and (not isinstance(split_bytes, int) or split_bytes < 1):
        raise PlanError(f"split_bytes is {split_bytes!r}; it is how many bytes of weights one file may hold")
    return _Wanted(place, kind, _importance_of(imatrix), split_bytes or 0, pre)


def _importance_of(imatrix: Any) -> Mapping[str, np.ndarray]:
    if imatrix is None:
        return {}
    if isinstance(imatrix, (str, os.PathLike)):
        from speechkit.export.imatrix import load_imatrix

        found: Mapping[str, np.ndarray] = load_imatrix(imatrix)
        return found
    if not hasattr(imatrix, "items"):
        raise PlanError(f"imatrix is {type(imatrix).__name__}; it is a file, or a mapping of names to arrays (K,)")
    return dict(imatrix)


def _written(source: Source, made: Path, wanted: _Wanted, watch: Stopwatch) -> GgufReport:
    """The whole file in the temporary folder."""
    from gguf import GGUFWriter, size_label

    from speechkit.export.gguf_metadata import rope_tensors
    from speechkit.export.gguf_tensors import own_head, plan_tensors
    from speechkit.export.gguf_weights import Weights
    from speechkit.llm.files import read_config

    with watch.stage("prepare"):
        config = read_config(source.folder)
        row, text = architecture_of(config), config.get_text_config()
        weights = Weights(source.folder)
        plan, notes = plan_tensors(row, text, weights.tensors, own_head(weights, text))
        plan = {**{one.name: one for one in rope_tensors(row, text)}, **plan}
        types, told = _types(plan, row.arch, text, wanted)
        writer = GGUFWriter(str(made / wanted.path.name), row.arch, split_max_size=wanted.split_bytes)
        notes = (*source.notes, *_add_metadata(writer, source, row, text, plan, wanted), *notes, *told)
        size = _add_tensors(writer, plan, types)
        writer.add_size_label(size_label(*writer.get_total_parameter_count()))
        check_room(wanted.path.parent, size + _metadata_bytes(source))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    try:
        importance = _renamed(wanted.imatrix, row.arch, text)
        notes = (*notes, *_unmeasured(types, importance))
        write_tensors(writer, plan, types, weights, importance, watch)
    finally:
        writer.close()
    files = tuple(sorted(made.glob("*.gguf")))
    counts = {kind: count for kind in mixture.BLOCK if (count := sum(one == kind for one in types.values()))}
    parameters = sum(_count(one) for one in plan.values())
    return GgufReport(
        files, row.arch, wanted.kind.name, sum(file.stat().st_size for file in files), parameters, counts,
        watch.seconds, notes,
    )  # fmt: skip


def _types(
    plan: Mapping[str, Planned], arch: str, text: Any, wanted: _Wanted
) -> tuple[dict[str, str], tuple[str, ...]]:
    names = ("n_routed_experts", "num_local_experts", "num_experts")
    experts = next((int(n) for name in names if (n := getattr(text, name, None))), 0)
    shapes = {name: one.shape for name, one in plan.items()}
    types = mixture.tensor_types(shapes, wanted.kind, arch=arch, experts=experts, imatrix=bool(wanted.imatrix))
    if wanted.kind.base in mixture.WHOLE:
        return types, ()
    odd = [name for name, kind in types.items() if kind == "F16"]
    weights = {name: _count(one) for name, one in plan.items()}
    if sum(weights[name] for name in odd) > sum(weights.values()) / 2:
        width = shapes[odd[0]][-1]
        raise ExportError(
            f"{len(odd)} tensors, most of the weights, have a width that 32 does not divide ({odd[0]}: {width}), so "
            f"that {wanted.kind.name} would pack next to nothing; export F16 or BF16"
        )
    told = [f"{len(odd)} tensors stay F16: 32 does not divide their width ({', '.join(odd[:3])})"] if odd else []
    fallen = [
        name for name, kind in types.items() if kind in ("Q5_0", "Q5_1") or (kind == "Q8_0" and shapes[name][-1] % 256)
    ]
    if fallen and wanted.kind.base.endswith("_K"):
        told.append(f"{len(fallen)} tensors in blocks of 32: 256 does not divide their width ({fallen[0]}, …)")
    return types, tuple(told)


def _add_metadata(
    writer: GGUFWriter, source: Source, row: Any, text: Any, plan: Mapping[str, Planned], wanted: _Wanted
) -> tuple[str, ...]:
    from speechkit.export.gguf_metadata import add_general, add_model
    from speechkit.export.gguf_tokenizer import add_tokenizer, told_name
    from speechkit.llm.files import read_tokenizer

    tokenizer = read_tokenizer(source.tokenizer)
    source = replace(source, name=told_name(source.name, tokenizer, source.tokenizer))
    add_general(writer, source.folder, source.name, wanted.kind.number)
    notes = add_model(writer, row, text)
    rows = plan["token_embd.weight"].shape[0]
    stops = _stops(source.folder)
    return (
        *notes,
        *add_tokenizer(writer, tokenizer, rows, source=source, pre=wanted.pre, stops=stops),
    )


def _add_tensors(writer: GGUFWriter, plan: Mapping[str, Planned], types: Mapping[str, str]) -> int:
    """Names, shapes and types into the writer; bytes of the weights."""
    import numpy as np
    from gguf import GGMLQuantizationType

    total = 0
    for name, one in plan.items():
        size = mixture.type_bytes(types[name], one.shape)
        kind = GGMLQuantizationType[types[name]]
        writer.add_tensor_info(name, one.shape, np.dtype(np.float32), size, raw_dtype=kind)
        total += size + 32
    return total


def _metadata_bytes(source: Source) -> int:
    """About what the tokenizer takes."""
    return (1 << 20) + sum(file.stat().st_size for file in source.tokenizer.glob("tokenizer*"))


def _stops(folder: Path) -> tuple[int, ...]:
    """The ids at which its generation config ends an answer."""
    from speechkit.llm.files import read_json

    file = folder / "generation_config.json"
    found = read_json(file).get("eos_token_id") if file.is_file() else None
    if isinstance(found, list):
        return tuple(int(one) for one in found)
    return (int(found),) if found is not None else ()


def _renamed(importance: Mapping[str, np.ndarray], arch: str, text: Any) -> dict[str, np.ndarray]:
    """By llama.cpp's names, whichever they came by."""
    import numpy as np

    from speechkit.export.gguf_tensors import name_map

    names = name_map(arch, text.num_hidden_layers)
    found = {}
    for name, values in importance.items():
        plain = name if str(name).startswith(("blk.", "output", "token_embd")) else names(str(name)) or str(name)
        held = values.detach().float().cpu() if hasattr(values, "detach") else values
        found[plain if plain.endswith(".weight") else plain + ".weight"] = np.asarray(held, dtype=np.float32)
    if importance and not any(name.startswith("blk.") for name in found):
        raise ModelError(
            f"none of the {len(found)} names in the importance matrix is of this model ({next(iter(found))})"
        )
    return found


def _unmeasured(types: Mapping[str, str], importance: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """A note on packed layers that the importance matrix, where there is one, does not know."""
    layers = [name for name, kind in types.items() if name.startswith("blk.") and kind not in mixture.WHOLE]
    missing = [name for name in layers if name not in importance]
    if not importance or not missing:
        return ()
    named = ", ".join(missing[:3])
    return (f"the importance matrix says nothing of {len(missing)} of {len(layers)} tensors ({named}): packed without",)


def _count(one: Planned) -> int:
    count = 1
    for axis in one.shape:
        count *= axis
    return count


def _proved(
    source: Source, made: Path, wanted: _Wanted, prompts: Sequence[Any] | None, force: bool, watch: Stopwatch
) -> Proof:
    """The proof of the file where it lies. Raises ExportError where it fails and `force` is off."""
    from speechkit.export.proof import prove_gguf

    first = min(made.glob("*.gguf"))
    with watch.stage("prove"):
        proof = prove_gguf(source.compared, first, wanted.kind.name, prompts=prompts, adapter=source.adapter)
    return replace(proof, source=source.name).enforce(force)
