"""The model card of a push: what the folder's own card says, and what the facts say besides, with metadata for the Hub.

In: `Facts`, the id on the Hub, the card that is there already. Out: Markdown with front matter, checked offline. A
section that a person wrote, in the folder or on the Hub, survives. No folder of this machine is named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError, ExportError, PlanError
from speechkit.export.card_facts import is_place
from speechkit.export.card_sections import written_sections
from speechkit.export.card_text import Page, Section, carried_over, joined, read_page, with_rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from speechkit.export.card_facts import Facts

__all__ = ["Card", "check_card", "model_card"]

OF_SOURCE = ("library_name", "pipeline_tag", "model-index", "metrics", "base_model_relation")
UNNAMED = "# Model Card for Model ID"  # as peft and transformers head a card
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
# ids of https://huggingface.co/docs/hub/repositories-licenses, to which the Hub adds: any other is only remarked on
LICENCES = frozenset(
    """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
""".split()
)


@dataclass(frozen=True)
class Card:
    """A card that was checked."""

    text: str  # with front matter
    metadata: dict[str, Any]
    kept: tuple[str, ...] = ()  # titles of sections that were written on the Hub
    sections: tuple[str, ...] = ()  # titles of all others
    notes: tuple[str, ...] = ()


def model_card(
    facts: Facts, repo_id: str, there: str = "", staying: Sequence[str] = (), pushed: Sequence[str] = ()
) -> Card:
    """The card for `repo_id`; `there` is the one that the Hub has.

    staying: files that this push leaves there, whose rows are kept. pushed: titles of sections that the push before
    brought; those that are no longer in the folder go, while what was written on the Hub stays.

    Raises ExportError for front matter that the Hub would not take, naming each fault.
    """
    own = _own_page(facts) or Page({}, (Section("", f"# {repo_id.rpartition('/')[2]}"),))
    page = joined(own, written_sections(facts, repo_id, own))
    kept: tuple[str, ...] = ()
    titles = tuple(section.title for section in page.sections)
    before: dict[str, Any] = {}
    if there:
        online = read_page(there, "README.md on the Hub")
        page, kept = carried_over(with_rows_of(page, online, staying), online, pushed)
        before = {name: value for name, value in online.front.items() if name not in own.front}
    front, notes = _metadata(facts, repo_id, own.front, before)
    text = _with_front(front, page.text())
    check_card(text)
    return Card(text, front, kept, titles, tuple(notes))


def check_card(text: str) -> None:
    """Raise ExportError, naming every fault, for a card that the Hub would refuse; no network is asked.

    huggingface_hub reads it as the Hub does (front matter, model-index); languages, base and pipeline are looked at
    here. The Hub is asked as well before a push sends anything.
    """
    from huggingface_hub import ModelCard

    page = read_page(text)
    try:
        read: Any = ModelCard(text)
        data = read.data.to_dict()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(f"the card's metadata cannot be read: {' '.join(str(error).split())}") from error
    faults = [*_wrong(page.front), *_wrong_index(data.get("model-index") or [])]
    if faults:
        raise ExportError("the Hub would refuse the card's metadata: " + "; ".join(faults))


def _own_page(facts: Facts) -> Page | None:
    """The folder's own card, else that of what it was exported from, without what is true of that alone."""
    if text := _own(facts):
        return read_page(text.replace(UNNAMED, f"# {facts.name}", 1))
    if facts.source is None or (page := _own_page(facts.source)) is None:
        return None
    return Page({name: value for name, value in page.front.items() if name not in OF_SOURCE}, page.sections)


def _own(facts: Facts) -> str:
    """The card in the folder; of a run without one, the card that its training writes."""
    for place in (facts.run, facts.model):
        if place is not None and (place / "README.md").is_file():
            try:
                return (place / "README.md").read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ExportError(f"{place.name}/README.md is no UTF-8 text: save it as such") from error
    return _of_run(facts.run, facts.origin) if facts.run is not None else ""


def _of_run(run: Path, origin: dict[str, Any]) -> str:
    from speechkit.llm.llm_config import LlmConfig
    from speechkit.llm.llm_result import LlmResult, llm_card
    from speechkit.training.card import card
    from speechkit.training.config import FinetuneConfig
    from speechkit.training.report import FinetuneResult

    try:
        if "wer" in (run / "result.json").read_text(encoding="utf-8"):
            return card(FinetuneResult.load(run), FinetuneConfig.load(run / "run.json"), origin)
        return llm_card(LlmResult.load(run), LlmConfig.load(run / "run.json"), origin)
    except (DataError, PlanError, KeyError, OSError) as error:
        raise ExportError(
            f"{run.name} has no README.md, and none can be written from its records ({error}): put one beside run.json"
        ) from error


def _metadata(
    facts: Facts, repo_id: str, own: dict[str, Any], before: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """(front matter, remarks): the folder's own entries go first, then the facts, then what stands on the Hub."""
    from huggingface_hub import ModelCardData

    own = {name: value for name, value in _placeless(own, facts).items() if value not in (None, "", [])}
    licence = facts.licence if facts.licence_from == "given" or not own.get("license") else own["license"]
    licence = licence or before.get("license") or ""
    metrics = [one.metric for one in facts.measured if one.metric != "loss"]
    known: dict[str, Any] = {
        "language": _languages(facts, own), "license": licence or None, "library_name": _library(facts),
        "pipeline_tag": facts.task, "base_model": facts.base if facts.published else None,
        "base_model_relation": _relation(facts) if facts.published else None,
    }  # fmt: skip
    merged = {**known, **{name: value for name, value in own.items() if name not in ("language", "license", "tags")}}
    if facts.kind == "gguf":  # a card that came along is of the model, not of its files
        merged |= {"library_name": "gguf", "pipeline_tag": known["pipeline_tag"]}
    merged["tags"] = _tags(facts, own, before)
    merged["metrics"] = list(dict.fromkeys([*_several(own.get("metrics")), *metrics])) or None
    merged |= {name: value for name, value in before.items() if merged.get(name) in (None, "", [])}
    merged.pop("model-index", None)
    name = repo_id.rpartition("/")[2] if facts.measured else None
    data: Any = ModelCardData(**merged, eval_results=_evaluations(facts) or None, model_name=name)
    return data.to_dict(), _remarks(facts, str(licence), "license" in own)


def _placeless(own: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """Without the base where it is named by a folder, as peft and transformers do, or by About as well."""
    bases = [] if facts.base_given else [base for base in _several(own.get("base_model")) if not is_place(str(base))]
    told = [str(tag) for tag in _several(own.get("tags"))]
    tags = [tag for tag in told if not (tag.startswith("base_model:") and _of_place(tag, facts))]
    return own | {"base_model": bases[0] if len(bases) == 1 else bases, "tags": tags}


def _of_place(tag: str, facts: Facts) -> bool:
    """Of `base_model:owner/name` and `base_model:adapter:owner/name`, whether it names another base or a folder."""
    name = re.sub(r"^base_model:(?:(?:adapter|finetune|merge|quantized):)?", "", tag)
    return is_place(name) or (facts.base_given and name != facts.base)


def _remarks(facts: Facts, licence: str, own: bool) -> list[str]:
    """What the card does not say, and what it takes on trust."""
    notes = []
    if not licence:
        notes.append(
            "no licence is known, so nobody else may use the model: say About(licence='apache-2.0') or another"
        )
    elif facts.licence_from == "the base model" and licence == facts.licence and not own:
        notes.append(f"licence {licence} was taken from the base model; say About(licence=…) if yours is another")
    if licence and licence not in LICENCES:
        notes.append(
            f"licence {licence!r} is none of those that the Hub was known to take; it will say whether it does: see "
            "https://huggingface.co/docs/hub/repositories-licenses, or 'other' with license_name and license_link"
        )
    if facts.run is not None and not facts.machine:
        notes.append("the hardware is not known: say About(hardware='one T4, 16 GB') with yours")
    if facts.base and not facts.published:
        notes.append(
            f"the base model {facts.base!r} is not in the metadata: say About(base='owner/name') if the Hub has it"
        )
    return notes


def _evaluations(facts: Facts) -> list[Any]:
    from huggingface_hub import EvalResult

    names = {"wer": "WER, %", "cer": "CER, %", "exact_match": "exact match, %", "accuracy": "accuracy, %"}
    return [
        EvalResult(
            task_type=facts.task, dataset_type=_slug(f"{facts.name}-{one.data}"),
            dataset_name=f"{one.data} ({one.count})" if one.count else one.data,
            metric_type=one.metric, metric_value=one.shown, metric_name=names.get(one.metric, one.metric),
        )
        for one in facts.measured
    ]  # fmt: skip


def _languages(facts: Facts, own: dict[str, Any]) -> Any:
    found = list(facts.languages) or own.get("language")
    rows = found if isinstance(found, list) else [found] if found is not None else []
    told = ["no" if one is False else str(one) for one in rows]  # YAML reads Norwegian as a refusal
    return None if not told else told[0] if len(told) == 1 else told


def _library(facts: Facts) -> str:
    return {"adapter": "peft", "gguf": "gguf", "sentences": "sentence-transformers"}.get(facts.kind, "transformers")


def _relation(facts: Facts) -> str:
    if facts.source is not None and facts.base == facts.source.base and facts.source.kind in ("adapter", "speech"):
        return "finetune"  # of the base that its source was trained from
    if facts.kind == "gguf" or facts.config.get("quantization_config"):
        return "quantized"
    return "adapter" if facts.kind == "adapter" else "finetune"


def _tags(facts: Facts, own: dict[str, Any], before: dict[str, Any]) -> list[str]:
    mine = {"speech": ["ctc"], "adapter": [str(facts.config.get("peft_type") or "lora").lower()], "gguf": ["llama.cpp"]}
    kind = str(facts.config.get("model_type") or "")
    rows: list[Any] = [*mine.get(facts.kind, []), *([kind] if kind else []), "speechkit"]
    for front in (own, before):
        more = front.get("tags") or []
        rows = [*([more] if isinstance(more, str) else more), *rows] if front is own else [*rows, *more]
    return list(dict.fromkeys(str(row) for row in rows))


def _with_front(front: dict[str, Any], body: str) -> str:
    import yaml  # type: ignore[import-untyped]

    block = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000).strip()
    return f"---\n{block}\n---\n{body}"


def _wrong(front: dict[str, Any]) -> list[str]:
    """Faults of single entries, each with what is allowed."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    faults = []
    if front.get("license") == "other" and not front.get("license_name"):
        faults.append("license 'other' needs a license_name")
    faults += [
        f"language {code!r} is no ISO 639 code such as 'en'"
        for code in _several(front.get("language"))
        if not LANGUAGE.fullmatch("no" if code is False else str(code))
    ]
    for base in _several(front.get("base_model")):
        try:
            validate_repo_id(str(base))
        except HFValidationError:
            faults.append(f"base_model {base!r} is no id of the Hub such as 'owner/name'")
    if not isinstance(front.get("tags", []), list):
        faults.append("tags must be a list")
    for name in ("library_name", "pipeline_tag"):
        if not isinstance(front.get(name, ""), str):
            faults.append(f"{name} must be one word")
    return faults


def _wrong_index(index: list[Any]) -> list[str]:
    """What the Hub's own check of model-index asks beyond what huggingface_hub reads."""
    return [
        f"model-index: {metric.get('type')} is {metric.get('value')!r}, not a number"
        for model in index
        for result in model.get("results", ())
        for metric in result.get("metrics", ())
        if not isinstance(metric.get("value"), (int, float, str, list)) or metric.get("value") != metric.get("value")
    ]


def _several(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "data"
