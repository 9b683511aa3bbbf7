"""A folder → what can be said of the model in it: base, data, results, proofs, licence, hardware. Nothing is guessed.

In: the folder of a run, of an adapter, of weights, or of GGUF files. Out: `Facts`, for `card`. Reads JSON, headers
of safetensors and metadata of GGUF; no weights.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from math import exp, isfinite
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

from speechkit.asr.checkpoint import ARCHITECTURES as SPEECH
from speechkit.errors import ExportError
from speechkit.export.card_weights import files_of, ggufs_of, parameters_of
from speechkit.llm.families import ENCODER
from speechkit.llm.registry import family_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["DATA_REPORTS", "HUB_ID", "About", "Facts", "Kind", "Measured", "is_place", "read_facts", "read_record"]

Kind = Literal["speech", "encoder", "llm", "sentences", "adapter", "gguf"]
PERCENT = ("wer", "cer", "exact_match", "accuracy")  # kept as fractions, shown and published in percent
NAMES = {"wer": "WER", "cer": "CER", "exact_match": "exact match", "loss": "loss (nats per token)"}
TASKS: dict[Kind, str] = {
    "speech": "automatic-speech-recognition", "encoder": "feature-extraction", "llm": "text-generation",
    "sentences": "sentence-similarity", "adapter": "text-generation", "gguf": "text-generation",
}  # fmt: skip
DATA_REPORTS = {"data.json": "training", "data-dev.json": "development"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ELSEWHERE = re.compile(r"[.~]|[A-Za-z]:[\\/]|\\\\")  # relative, in a home, or on a drive of Windows
LICENCE_LINE = re.compile(r"^license: *([\w.-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Measured:
    """One result. `value` is a fraction for rates ("wer", "cer", "exact_match", "accuracy"): 0.1 is 10 %."""

    metric: str  # as https://hf.co/metrics calls it
    value: float
    data: str  # what it was measured on
    count: str = ""  # how much of it: "300 clips"
    command: str = ""  # that measures it again

    @property
    def shown(self) -> float:
        """In percent for rates, as it is otherwise."""
        return round(100 * self.value, 2) if self.metric in PERCENT else round(self.value, 4)

    @property
    def name(self) -> str:
        unit = " %" if self.metric in PERCENT else ""
        return f"{NAMES.get(self.metric, self.metric)}{unit}"

    def __str__(self) -> str:
        return f"{self.name} {self.shown:g} on {self.data}" + (f" ({self.count})" if self.count else "")


@dataclass(frozen=True)
class About:
    """What a folder cannot tell, or tells wrong; each goes before what was found there."""

    base: str = ""  # id on the Hub of the model that this one was made from
    licence: str = ""  # as the Hub spells it: "apache-2.0", "cc-by-sa-4.0", "other"
    languages: tuple[str, ...] = ()  # ISO 639-1 or 639-3
    hardware: str = ""  # what it was trained on
    measured: tuple[Measured, ...] = ()  # results beside those of the run
    source: str | os.PathLike[str] | None = None  # folder of the run or model that this was exported from


@dataclass(frozen=True)
class Facts:
    """What is known of a model that is to be published."""

    kind: Kind
    name: str
    model: Path  # folder of the weights
    run: Path | None = None  # folder of the run that made them
    base: str = ""  # without folders of this machine
    published: bool = False  # whether the Hub knows `base` by that name
    base_given: bool = False  # by About, which goes before what a card says
    languages: tuple[str, ...] = ()
    licence: str = ""
    licence_from: str = ""  # where it was read
    measured: tuple[Measured, ...] = ()
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)  # file → what `proof` wrote
    config: dict[str, Any] = field(default_factory=dict)  # config.json, or adapter_config.json
    origin: dict[str, Any] = field(default_factory=dict)  # origin.json of the run
    data: tuple[str, ...] = ()  # lines of the data report
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that made it
    machine: str = ""  # that it was trained on
    memory: str = ""  # precision and memory of the run
    parameters: int = 0
    ggufs: dict[str, dict[str, Any]] = field(default_factory=dict)  # file → metadata, parameters, bits per weight
    source: Facts | None = None  # what this was exported from

    @property
    def task(self) -> str:
        sees = self.kind == "llm" and "vision_config" in self.config
        return "image-text-to-text" if sees else TASKS[self.kind]

    @property
    def metrics(self) -> dict[str, float]:
        """Every figure under a name that the next version can be compared by."""
        rows = {f"{one.name}, {one.data}": one.shown for one in self.measured}
        for file, proof in self.proofs.items():
            what = file if self.kind == "gguf" else proof.get("quant") or file
            for key, name, scale in (("top1", "top-1 agreement %", 100), ("kl", "KL divergence", 1)):
                if isinstance(proof.get(key), (int, float)) and isfinite(proof[key]):
                    rows[f"{what}: {name}"] = round(scale * proof[key], 4)
        return rows


def read_facts(
    folder: Path, about: About | None = None, files: Sequence[str] | None = None, source: Facts | None = None
) -> Facts:
    """Look at a folder; of GGUF files and proofs at those that fit a glob pattern of `files`.

    source: of what it was exported from; it tells what the folder does not. Raises ExportError where no model is in
    the folder that could be published.
    """
    about = about or About()
    run = _run_of(folder)
    model = run / "best" if run else folder
    kind = _kind(model)
    origin = read_record(run / "origin.json") if run else {}
    config = read_record(model / ("adapter_config.json" if kind == "adapter" else "config.json"))
    ggufs = ggufs_of(model, files) if kind == "gguf" else {}
    gguf = next(iter(ggufs.values()), {})
    proofs = _proofs(model, files)
    base, published = _base(about, origin, config, gguf, proofs)
    licence, where = _licence(model, about, origin, gguf)
    recipe = read_record(model / "recipe.json")
    side = read_record(model / "speechkit_adapter.json")
    found = Facts(
        kind=kind, name=_name(run or folder, config), model=model, run=run, base=base, published=published,
        base_given=bool(about.base),
        languages=_languages(about, origin, run, recipe, gguf), licence=licence, licence_from=where,
        measured=(*_results(run, origin), *_recipe_results(recipe), *about.measured),
        proofs=proofs, config=config, origin=origin, data=_data(run),
        versions=dict(origin.get("versions") or recipe.get("versions") or side.get("versions") or {}),
        machine=about.hardware or str(origin.get("hardware") or ""), memory=_memory(run),
        parameters=0 if config.get("quantization_config") else parameters_of(model),
        ggufs=ggufs,
    )  # fmt: skip
    return found if source is None else _with_source(found, source, about)


def _with_source(found: Facts, source: Facts, about: About) -> Facts:
    """What the source knows and the folder does not; the results of the source stay in its own words."""
    told = not about.base and bool(source.base or not found.base)
    return replace(
        found,
        source=source,
        base=source.base if told else found.base,
        published=source.published if told else found.published,
        languages=found.languages or source.languages,
        licence=found.licence or source.licence,
        licence_from=found.licence_from or source.licence_from,
        data=found.data or source.data,
        versions=found.versions or source.versions,
        machine=found.machine or source.machine,
        memory=found.memory or source.memory,
    )


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _run_of(folder: Path) -> Path | None:
    """The run that `folder` is, or whose best model it is; None where weights lie beside its records, as on the Hub.

    Raises ExportError for a run without a model.
    """
    whole = folder.resolve()
    for place in (whole, *([whole.parent] if whole.name == "best" else [])):
        if (place / "result.json").is_file() and (place / "run.json").is_file():
            if any(place.glob("*.safetensors")) or any(place.glob("*.gguf")):
                return None
            if not (place / "best").is_dir():
                raise ExportError(
                    f"{place.name} is a run that kept no model (no best/ in it): let it end, or run it anew"
                )
            return place
    return None


def _kind(model: Path) -> Kind:
    if not model.is_dir():
        raise ExportError(f"{model} is no folder: give the folder of a run, of a model, of an adapter or of GGUF files")
    if any(model.glob("*.gguf")):
        return "gguf"
    if not any(model.glob("*.safetensors")):
        held = ", ".join(sorted(path.name for path in model.iterdir())[:8]) or "nothing"
        pickled = any(path for shape in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in model.glob(shape))
        what = "pickled weights only, which can run code when they are read" if pickled else "no weights"
        raise ExportError(
            f"{model.name} holds {what} (it holds: {held}); what can be published is *.safetensors, by "
            "save_pretrained, or *.gguf, by export_gguf"
        )
    if (model / "adapter_config.json").is_file() and not (model / "config.json").is_file():
        return "adapter"
    config = read_record(model / "config.json")
    if not config:
        raise ExportError(
            f"{model.name} holds weights and no config.json: nobody could load them; save the model again"
        )
    if config.get("model_type") not in SPEECH:
        family = family_of(config)
        return "sentences" if family is not None and family.kind == ENCODER else "llm"
    return "speech" if any("ForCTC" in name for name in config.get("architectures") or ()) else "encoder"


def _name(folder: Path, config: dict[str, Any]) -> str:
    return folder.resolve().name or str(config.get("model_type") or "model")


def _base(
    about: About,
    origin: dict[str, Any],
    config: dict[str, Any],
    gguf: dict[str, Any],
    proofs: dict[str, dict[str, Any]],
) -> tuple[str, bool]:
    """What the model was made from, and whether the Hub has it by that name."""
    told = str(config.get("base_model_name_or_path") or "")
    name = about.base or str(origin.get("model") or "") or told or _gguf_base(gguf)
    name = name or next((str(proof["source"]) for proof in proofs.values() if proof.get("source")), "")
    if not name:
        return "", False
    from speechkit.asr.registry import KNOWN
    from speechkit.llm.registry import KNOWN as KNOWN_LLMS

    name = KNOWN.get(name) or KNOWN_LLMS.get(name) or name
    if inside := re.search(r"speechkit/demo/models/([\w-]+)/?$", name):
        name = f"demo/{inside[1]}"
    if name.startswith("demo/"):
        return name, False
    if not about.base and is_place(name):
        return PureWindowsPath(name).name, False  # parts a path of any system
    return name, bool(HUB_ID.fullmatch(name)) and bool(about.base or origin.get("published", True))


def is_place(name: str) -> bool:
    """Whether a model is named by its folder, which is nothing to others."""
    return Path(name).is_absolute() or bool(ELSEWHERE.match(name)) or Path(name).is_dir()


def _gguf_base(gguf: dict[str, Any]) -> str:
    return str(gguf.get("general.base_model.0.repo_url") or "").removeprefix("https://huggingface.co/").strip("/")


def _licence(model: Path, about: About, origin: dict[str, Any], gguf: dict[str, Any]) -> tuple[str, str]:
    if about.licence:
        return about.licence, "given"
    for found, where in ((origin.get("licence"), "the base model"), (gguf.get("general.license"), "the GGUF metadata")):
        if found:
            return str(found), where
    base = str(read_record(model / "adapter_config.json").get("base_model_name_or_path") or "")
    if base and (place := Path(base).expanduser() / "README.md").is_file():
        found = LICENCE_LINE.search(place.read_text(encoding="utf-8", errors="replace").partition("\n---")[0])
        return (found[1], "the base model") if found else ("", "")
    return "", ""


def _languages(
    about: About, origin: dict[str, Any], run: Path | None, recipe: dict[str, Any], gguf: dict[str, Any]
) -> tuple[str, ...]:
    settings = recipe.get("recipe")
    found = about.languages or origin.get("language") or (read_record(run / "run.json").get("language") if run else "")
    found = found or (settings.get("language") if isinstance(settings, dict) else "") or gguf.get("general.languages")
    return tuple(found) if isinstance(found, (tuple, list)) else (str(found),) if found else ()


def _results(run: Path | None, origin: dict[str, Any]) -> list[Measured]:
    """Of a speech run its rates, of a language model's run loss and perplexity, on what was kept out."""
    if run is None:
        return []
    row = read_record(run / "result.json")
    if "wer" in row:
        count, command = f"{row.get('dev_clips')} clips", "speechkit finetune --config run.json"
        found = [(name, row[name]["value"]) for name in ("wer", "cer") if isinstance(row.get(name), dict)]
    else:
        count, command = f"{row.get('dev_rows')} rows", "speechkit llm-finetune --config run.json"
        loss = row.get("dev_loss")
        found = [("loss", loss), ("perplexity", exp(loss))] if isinstance(loss, float) and loss < 100 else []
    return [Measured(name, value, "development set", count, command) for name, value in found if _finite(value)]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)


def _recipe_results(recipe: dict[str, Any]) -> list[Measured]:
    """Of the embedded models, whose recipe holds what they reached when they were made."""
    results = recipe.get("results")
    made = []
    for data, row in results.items() if isinstance(results, dict) else ():
        for key, metric, what in (
            ("wer", "wer", "clips"),
            ("cer", "cer", "clips"),
            ("exact", "exact_match", "questions"),
        ):
            if isinstance(row, dict) and _finite(row.get(key)):
                made.append(Measured(metric, float(row[key]), data, f"{row.get(what)} {what}"))
    return made


def _proofs(model: Path, files: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    found = {}
    for path in files_of(model, ".proof.json", files):
        stem = path.name.removesuffix(".proof.json")
        if row := read_record(path):
            file = f"{stem}.gguf"
            found[file if (model / file).is_file() else stem] = row
    return found


def _data(run: Path | None) -> tuple[str, ...]:
    """What the check of the data found, in counts: no row is named."""
    rows = []
    for name, what in DATA_REPORTS.items() if run else ():
        counts = read_record(run / name).get("counts") if run else None
        found = [
            f"{number:,} {kind}" for kind, number in (counts.items() if isinstance(counts, dict) else ()) if number
        ]
        rows += [f"{what}: {', '.join(found)}"] if found else []
    return tuple(rows)


def _memory(run: Path | None) -> str:
    """What the run tells of the machine, where it recorded no more."""
    row = read_record(run / "result.json") if run else {}
    parts = [str(row["precision"])] if row.get("precision") else []
    if _finite(row.get("memory_mib")):
        parts.append(f"peak {row.get('memory_of', 'memory')}: {row['memory_mib']:,.0f} MiB")
    return "; ".join(parts)
