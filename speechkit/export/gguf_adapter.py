"""A LoRA adapter as a GGUF of its own, which llama.cpp puts on the GGUF of its base (`--lora`), switched on and off.

In: a PEFT folder. Out: the file and a `GgufReport`. Its rows are put in the order that the base's have in llama.cpp;
one alpha is written, so ranks and alphas of single modules are multiplied into B. What llama.cpp cannot put on a model
(DoRA, modules trained whole, embeddings, experts) is refused: merge it (`export_gguf(adapter=…)`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import ExportError, ModelError, OutputError, PlanError
from speechkit.export.gguf import GgufReport, export_gguf
from speechkit.export.gguf_families import Architecture, architecture_of
from speechkit.export.gguf_write import Stopwatch, check_room, finish, partial_folder, split_files, write_tensors
from speechkit.export.mixture import type_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import torch

    from speechkit.export.gguf_tensors import Planned
    from speechkit.export.gguf_weights import Weights
    from speechkit.export.proof_report import Proof

__all__ = ["export_gguf_adapter"]

MERGE = "merge it into a model of its own instead: export_gguf(base, path, adapter=folder)"
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight$")


@dataclass(frozen=True)
class _Base:
    """The model that the adapter is for."""

    folder: Path
    row: Architecture
    text: Any
    weights: Weights


def export_gguf_adapter(
    adapter_folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    force: bool = False,
    overwrite: bool = False,
    prove: bool = True,
    prompts: Sequence[Any] | None = None,
) -> GgufReport:
    """Write a PEFT LoRA folder as a GGUF adapter in float32, compared with base and adapter in transformers.

    base: the folder or name of its base, by default the one that adapter_config.json names. The proof writes the base
    as an F32 GGUF for as long as it lasts; where the disk has no room for that the adapter is kept, unproved.

    Raises ExportError for an adapter that llama.cpp cannot hold, that changes nothing or holds NaN, or with modules
    that the base lacks (named); ModelError for a broken one; PlanError and OutputError as `export_gguf`.
    """
    extras.require("gguf", extra="export", purpose="writing GGUF")
    from speechkit.export.gguf_weights import Weights
    from speechkit.llm.files import read_json

    place = Path(path).expanduser()
    if place.suffix != ".gguf":
        raise PlanError(f"path is {str(path)!r}; a GGUF file is named so: {place.name or 'adapter'}.gguf")
    if place.is_dir():
        raise OutputError(f"{place} is a folder; name a file in it, {place / 'adapter.gguf'}")
    if split_files(place) and not overwrite:
        raise OutputError(f"{place} is there already; pass overwrite=True to replace it, or choose another name")
    watch = Stopwatch()
    with partial_folder(place) as made:
        with watch.stage("prepare"):
            folder = Path(adapter_folder).expanduser()
            config = read_json(folder / "adapter_config.json")
            model = _base(base or config.get("base_model_name_or_path"), folder)
            weights = Weights(folder, "adapter_model")
            plan = _plan(config, weights, model)
        report = _written(made / place.name, config, plan, weights, model, watch)
        proof = None
        if prove:
            with watch.stage("prove"):
                report, proof = _proved(report, folder, model, made, prompts, force)
        files = finish(made, place, overwrite)
        if proof is not None:
            proof.save(place.parent)
    return replace(report, files=files, proof=proof)


def _base(name: Any, folder: Path) -> _Base:
    from speechkit.export.gguf_weights import Weights
    from speechkit.llm import registry
    from speechkit.llm.files import find, read_config

    if not name:
        raise ModelError(f"{folder}/adapter_config.json names no base model; pass base=")
    place = find(registry.resolve(name))
    config = read_config(place.base)
    return _Base(place.base, architecture_of(config), config.get_text_config(), Weights(place.base))


def _plan(config: dict[str, Any], weights: Weights, base: _Base) -> dict[str, Planned]:
    """GGUF name → plan, A and B of each module one after the other."""
    from speechkit.export.gguf_tensors import name_map

    _check_kind(config)
    names = name_map(base.row.arch, base.text.num_hidden_layers)
    found: dict[str, dict[str, str]] = {}
    for name in weights.tensors:
        match = _KEY.match(name)
        if match is None:
            raise ExportError(f"{name} of {weights.folder} is nothing that a GGUF adapter holds; {MERGE}")
        found.setdefault(match[1], {})[match[2]] = name
    stored = {name.removesuffix(".weight") for name in base.weights.tensors}
    if lacking := sorted(set(found) - stored):
        raise ExportError(
            f"the adapter has {len(lacking)} modules that its base {base.folder} lacks, among them {lacking[0]}: it is "
            "of another model; pass its own as base="
        )
    plan: dict[str, Planned] = {}
    for module, pair in found.items():
        target = names(module + ".weight")
        if target is None or set(pair) != {"A", "B"} or "embed" in module or "kv_b_proj" in module:
            raise ExportError(f"llama.cpp cannot put an adapter on {module} of {base.row.arch}; {MERGE}")
        plan |= _pair(target, module, pair, config, weights, base)
    return plan


def _check_kind(config: dict[str, Any]) -> None:
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise ExportError(f"the adapter is of kind {kind}; llama.cpp puts LoRA on a model and nothing else")
    for key, what in (
        ("use_dora", "DoRA"), ("modules_to_save", "modules trained whole"), ("target_parameters", "adapted experts"),
        ("trainable_token_indices", "trained tokens"),
    ):  # fmt: skip
        if config.get(key):
            raise ExportError(f"the adapter has {what} ({key}), which llama.cpp does not know; {MERGE}")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or not alpha:
        raise ModelError(f"adapter_config.json has lora_alpha {alpha!r}; it is a number, and with 0 nothing is adapted")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(("pissa", "olora", "corda")):
        raise ExportError(
            f"the adapter begins at {start}, which changes the base's own weights too, and a GGUF of the base has them "
            f"as they were; {MERGE}"
        )
    if str(config.get("bias", "none")) != "none":
        raise ExportError(
            f"the adapter trained biases (bias is {config['bias']!r}), which a GGUF has no place for; {MERGE}"
        )


def _pair(
    target: str, module: str, pair: dict[str, str], config: dict[str, Any], weights: Weights, base: _Base
) -> dict[str, Planned]:
    from speechkit.export.gguf_tensors import Part, Planned, changed, plain_name

    a, b, whole = weights.tensors[pair["A"]], weights.tensors[pair["B"]], base.weights.tensors[module + ".weight"]
    if (b.rows, a.width) != (whole.rows, whole.width) or a.rows != b.width:
        raise ExportError(
            f"{module}: the adapter's {b.shape} · {a.shape} does not fit the base's {whole.shape}: it is of another"
        )
    factor = _scale(module, a.rows, config) * a.rows / float(config["lora_alpha"])
    part = changed(base.row, base.text, base.weights.tensors, plain_name(module + ".weight"), Part(b.name, 0, b.rows))
    if factor != 1:
        part = replace(part, change=_scaled(part.change, factor))
    return {
        f"{target}.lora_a": Planned(f"{target}.lora_a", a.shape, (Part(a.name, 0, a.rows),)),
        f"{target}.lora_b": Planned(f"{target}.lora_b", b.shape, (part,)),
    }


def _scaled(
    change: Callable[[torch.Tensor], torch.Tensor] | None, factor: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    return (lambda rows: rows * factor) if change is None else (lambda rows: change(rows) * factor)


def _scale(module: str, rank: int, config: dict[str, Any]) -> float:
    """peft's factor of B·A for a module: alpha / r, or alpha / √r (rsLoRA), with the alphas of single modules."""
    alpha = float(config["lora_alpha"])
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = float(own)
            break
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _written(
    file: Path, config: dict[str, Any], plan: dict[str, Planned], weights: Weights, base: _Base,
    watch: Stopwatch,
) -> GgufReport:  # fmt: skip
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, Keys

    _check_values(weights)
    writer = GGUFWriter(str(file), base.row.arch)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_name(weights.folder.name)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, float(config["lora_alpha"]))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, str(config.get("base_model_name_or_path") or base.folder).rpartition("/")[2])
    types = dict.fromkeys(plan, "F32")
    sizes = {name: type_bytes("F32", one.shape) for name, one in plan.items()}
    for name, one in plan.items():
        writer.add_tensor_info(name, one.shape, np.dtype(np.float32), sizes[name], raw_dtype=GGMLQuantizationType.F32)
    check_room(file.parent, sum(sizes.values()) + (1 << 20))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        write_tensors(writer, plan, types, weights, {}, watch)
    finally:
        writer.close()
    count = sum(sizes.values()) // 4
    return GgufReport((file,), base.row.arch, "F32", file.stat().st_size, count, {"F32": len(plan)}, watch.seconds)


def _check_values(weights: Weights) -> None:
    """Raise ExportError where B is zero in all modules, as before training."""
    named = [one for one in weights.tensors.values() if ".lora_B" in one.name]
    if not any(bool(weights.rows(one.name, 0, one.rows).any()) for one in named):
        raise ExportError(
            f"the adapter in {weights.folder} changes nothing: B is zero in all its modules, as before training"
        )


def _proved(
    report: GgufReport, folder: Path, base: _Base, made: Path, prompts: Sequence[Any] | None, force: bool
) -> tuple[GgufReport, Proof | None]:
    from speechkit.export.proof import prove_gguf

    whole = made / "base" / "base.gguf"
    try:
        export_gguf(base.folder, whole, "F32", prove=False)
    except OutputError as error:
        return replace(
            report, notes=(*report.notes, f"unproved, for its base cannot be written beside it: {error}")
        ), None
    proof = prove_gguf(str(base.folder), whole, "F32", prompts=prompts, adapter=folder, lora=report.files[0])
    proof = replace(proof, file=report.files[0].name).enforce(force)
    return report, proof
