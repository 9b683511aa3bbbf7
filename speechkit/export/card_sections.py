"""The sections of a card that every push writes anew: how to use it, what was exported, how it was checked, measured.

In: `Facts`, the id on the Hub, the page as it stands. Out: sections; only such as the facts have something to say in.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import TYPE_CHECKING, Any

from speechkit.export.card_text import Page, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.export.card_facts import Facts, Measured

__all__ = ["size_of", "written_sections"]


def written_sections(facts: Facts, repo_id: str, page: Page) -> list[Section]:
    """In the order in which they are read."""
    titles = {section.title for section in page.sections}
    bare = titles == {""} and "\n" not in page.text().strip()  # no more than a title
    has, told = "How well it does" in titles, page.text()
    more = [one for one in facts.measured if one.command and one.command not in told]
    versions = [] if "- torch" in told else [f"- {name} {number}" for name, number in facts.versions.items()]
    parts = {
        "": _opening(facts, page) if bare else [],
        "Use it": _use(facts, repo_id),
        "How well it does": [] if has else _measured(facts.measured),
        "More results": _measured(more) if has else [],
        "Exported files": _files(facts),
        "How it was checked": _checked(facts),
        "Data report": [f"- {row}" for row in facts.data],
        "Configuration": _configuration(facts),
        "Hardware": [f"{row}." for row in ("; ".join(filter(None, (facts.machine, facts.memory))),) if row],
        "Licence": [] if {"Licence", "License"} & titles else _licence(facts),
        "Framework versions": versions,
    }
    return [
        Section(title, "\n".join([f"## {title}", "", *rows] if title else rows))
        for title, rows in parts.items()
        if rows
    ]


def size_of(count: int) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count} bytes"


def _opening(facts: Facts, page: Page) -> list[str]:
    """Title and one sentence, for a folder without a card."""
    title = page.sections[0].text.strip() or f"# {facts.name}"
    of = f" of {_linked(facts)}" if facts.base else ""
    count = f"{facts.parameters / 1e6:,.1f} M parameters" if facts.parameters else ""
    kind = str(facts.config.get("model_type") or "")
    what = {
        "speech": f"A {kind} CTC model for speech recognition ({count}).",
        "encoder": f"A {kind} encoder of speech ({count}); it transcribes nothing before it is fine-tuned.",
        "llm": f"A {kind} language model{_packed(facts)}{f' ({count})' if count else ''}.",
        "sentences": f"A {kind} encoder of sentences ({count}).",
        "adapter": f"A {facts.config.get('peft_type', 'LoRA')} adapter{of} ({count}).",
        "gguf": f"GGUF files{of} for llama.cpp and what is built on it.",
    }[facts.kind]
    rest = [] if facts.kind in ("adapter", "gguf") or not facts.base else ["", f"Made from {_linked(facts)}."]
    return [title, "", what, *rest]


def _packed(facts: Facts) -> str:
    how = facts.config.get("quantization_config")
    if not isinstance(how, dict):
        return ""
    kinds = [str(proof["quant"]) for proof in facts.proofs.values() if proof.get("quant")]
    kind = kinds[0] if kinds else str(how.get("bnb_4bit_quant_type") or "fewer bits")
    return f", weights packed by {how.get('quant_method', 'its library')} ({kind})"


def _linked(facts: Facts) -> str:
    return f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.published else f"`{facts.base}`"


def _use(facts: Facts, repo_id: str) -> list[str]:
    if facts.kind == "speech":
        return ["    from speechkit import load_asr", f'    load_asr("{repo_id}").transcribe("clip.wav")']
    if facts.kind == "encoder":
        return [f"    speechkit finetune --model {repo_id} --train manifest.tsv"]
    if facts.kind == "sentences":
        return ["    from speechkit.llm.embedding import load_encoder", f'    load_encoder("{repo_id}")']
    if facts.kind == "gguf":
        name = _first(facts)
        return [
            "    from speechkit.export.hub import pull",
            f'    folder = pull("{repo_id}")',
            "",
            f"and open `{name}` with llama.cpp, `llama-cli -m {name}`, or anything that reads GGUF.",
        ]
    return ["    from speechkit import load_llm", f'    model, tokenizer = load_llm("{repo_id}")']


def _first(facts: Facts) -> str:
    return min(facts.ggufs)


def _files(facts: Facts) -> list[str]:
    if facts.kind != "gguf":
        return []
    rows = ["| file | type | size | bits per weight |", "|---|---|---|---|"]
    for name, row in facts.ggufs.items():
        path, proof = facts.model / name, facts.proofs.get(name, {})
        shown = f"{row['bits']:.2f}" if row.get("bits") else "–"
        rows.append(f"| `{path.name}` | {proof.get('quant') or '–'} | {size_of(path.stat().st_size)} | {shown} |")
    return rows


def _checked(facts: Facts) -> list[str]:
    """The verdicts of the proofs, the bad ones too; files without any are called unproved."""
    first = {name for name in facts.ggufs if "-of-" not in name or "-00001-of-" in name}  # of a split file one part
    unproved = sorted(first - set(facts.proofs))
    if not facts.proofs and not unproved:
        return []
    rows = ["Opened again after it was written, and compared with what it was made from, on the same prompts.", ""]
    rows += [
        "| file | tokens compared | top-1 agreement | mean KL | greedy text | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for file, proof in facts.proofs.items():
        tokens = f"{proof['tokens']:,}" if isinstance(proof.get("tokens"), int) else "–"
        cells = (tokens, _percent(proof.get("top1")), _small(proof.get("kl")), _parity(proof.get("greedy")))
        rows.append(f"| `{file}` | {' | '.join(cells)} | {_verdict(proof)} |")
    rows += [f"| `{name}` | – | – | – | – | **unproved**: it was not compared |" for name in unproved]
    told = [f"- `{file}`: {reason}" for file, proof in facts.proofs.items() for reason in _listed(proof.get("reasons"))]
    return [*rows, *(["", *told] if told else [])]


def _verdict(proof: dict[str, Any]) -> str:
    told = str(proof.get("verdict") or ("passed" if proof.get("passed") else "failed"))
    return told if told == "passed" else f"**{told}**"


def _parity(found: Any) -> str:
    """How many continuations were the same."""
    return f"{found.get('same')} of {found.get('of')}" if isinstance(found, dict) else "–"


def _measured(rows: Sequence[Measured]) -> list[str]:
    if not rows:
        return []
    made = ["| measured on | how much | metric | value |", "|---|---|---|---|"]
    made += [f"| {one.data} | {one.count or '–'} | {one.name} | {one.shown:g} |" for one in rows]
    commands = list(dict.fromkeys(one.command for one in rows if one.command))
    return [*made, *(["", "Measured by:", "", *(f"    {command}" for command in commands)] if commands else [])]


def _configuration(facts: Facts) -> list[str]:
    if facts.kind == "adapter":
        wanted = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules")
        found = {name: facts.config[name] for name in wanted if facts.config.get(name) not in (None, False, 0, [])}
        found = {name: sorted(value) if isinstance(value, list) else value for name, value in found.items()}
    elif facts.kind == "gguf":
        row = next(iter(facts.ggufs.values()), {})
        found = {name: row[name] for name in row if name == "general.architecture" or "context_length" in name}
    else:
        found = {}
    return [f"- `{name}`: {json.dumps(value, ensure_ascii=False)}" for name, value in found.items()]


def _licence(facts: Facts) -> list[str]:
    if not facts.licence:
        return []
    if facts.licence_from == "the base model":
        return [f"`{facts.licence}`, as the model it was made from, {_linked(facts)}."]
    return [f"`{facts.licence}`."]


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else []


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, (int, float)) and isfinite(value) else "–"


def _small(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, (int, float)) and isfinite(value) else "–"
