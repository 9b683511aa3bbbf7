"""Chat templates in Go's syntax, for Ollama: known families, of which one is chosen by rendering, never by name.

In: the Jinja template of a model. Out: the Go template that renders the conversations of `prompts.CONVERSATIONS` byte
for byte as it does, or the reason why there is none. Tools are not translated: Ollama hands templates tools in types of
its own, and a template without them says so to its clients.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError
from speechkit.export.ollama_go import rendered
from speechkit.export.prompts import CONVERSATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["FAMILIES", "Family", "Translation", "jinja", "translate"]

# {default} stands for what the template says where there is no system message, {eos} for the token that ends an answer
_EACH = "{{- range .Messages }}"
_INDEXED = "{{- range $i, $_ := .Messages }}"
_FIRST = "{{ if and $.System (eq $i 1) }}{{ $.System }}\n\n{{ end }}"  # a system message goes before the first question
_LAST = (  # or before the last
    "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}{{ $.System }}\n\n{{ end }}"
)


@dataclass(frozen=True)
class Family:
    """A family's template; `default` is how it frames the system message that stands where none is given."""

    name: str
    template: str
    default: str = ""
    stops: tuple[str, ...] = ()


def _instructions(name: str, before: str, after: str, answer: str, system: str) -> Family:
    return Family(
        name,
        f'{_INDEXED}{{{{- if eq .Role "user" }}}}{before}{system}{{{{ .Content }}}}{after}'
        f'{{{{- else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}{{{{- end }}}}',
        stops=("[INST]",),
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        "ChatML",
        f"{_EACH}<|im_start|>{{{{ .Role }}}}\n{{{{ .Content }}}}<|im_end|>\n{{{{ end }}}}<|im_start|>assistant\n",
        "<|im_start|>system\n{default}<|im_end|>\n",
        ("<|im_start|>", "<|im_end|>"),
    ),
    Family(
        "Llama 3",
        f"{_EACH}<|start_header_id|>{{{{ .Role }}}}<|end_header_id|>\n\n{{{{ .Content }}}}<|eot_id|>{{{{ end }}}}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\n{default}<|eot_id|>",
        ("<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"),
    ),
    Family(
        "Gemma",
        f'{_INDEXED}{{{{- if eq .Role "user" }}}}<start_of_turn>user\n{_FIRST}{{{{ .Content }}}}<end_of_turn>\n'
        '{{ else if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}<end_of_turn>\n{{ end }}{{- end }}'
        "<start_of_turn>model\n",
        stops=("<end_of_turn>", "<start_of_turn>"),
    ),
    Family(
        "Phi-3",
        f"{_EACH}<|{{{{ .Role }}}}|>\n{{{{ .Content }}}}<|end|>\n{{{{ end }}}}<|assistant|>\n",
        "<|system|>\n{default}<|end|>\n",
        ("<|end|>", "<|user|>", "<|assistant|>"),
    ),
    Family(
        "Phi-4",
        f"{_EACH}<|im_start|>{{{{ .Role }}}}<|im_sep|>{{{{ .Content }}}}<|im_end|>{{{{ end }}}}"
        "<|im_start|>assistant<|im_sep|>",
        "<|im_start|>system<|im_sep|>{default}<|im_end|>",
        ("<|im_end|>", "<|im_start|>"),
    ),
    Family(
        "Zephyr",
        f"{_EACH}<|{{{{ .Role }}}}|>\n{{{{ .Content }}}}{{eos}}\n{{{{ end }}}}<|assistant|>\n",
        "<|system|>\n{default}{eos}\n",
        ("<|user|>", "<|assistant|>"),
    ),
    *(
        _instructions(f"Mistral ({kind}, system in the {where} question)", before, after, answer, system)
        for where, system in (("first", _FIRST), ("last", _LAST))
        for kind, before, after, answer in (
            ("v0.1", "[INST] ", " [/INST]", " {{ .Content }}{eos}"),
            ("v0.1, answers unspaced", "[INST] ", " [/INST]", "{{ .Content }}{eos}"),
            ("v0.1, a space after answers", "[INST] ", " [/INST]", "{{ .Content }}{eos} "),
            ("v0.3", "[INST] ", "[/INST]", " {{ .Content }}{eos}"),
            ("Tekken", "[INST]", "[/INST]", "{{ .Content }}{eos}"),
        )
    ),
)


@dataclass(frozen=True)
class Translation:
    """A Go template, or the reason why there is none."""

    template: str = ""
    family: str = ""
    reason: str = ""
    stops: tuple[str, ...] = ()
    compared: int = 0  # conversations
    notes: tuple[str, ...] = field(default=())


def jinja(template: str, messages: Sequence[Mapping[str, Any]], bos: str, eos: str, tools: Sequence[Any] = ()) -> str:
    """The prompt as transformers renders it. Raises ExportError where the template refuses these messages."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        found = render_jinja_template(
            conversations=[[dict(one) for one in messages]], chat_template=template, add_generation_prompt=True,
            bos_token=bos, eos_token=eos, tools=list(tools) or None,
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise ExportError(f"the chat template refuses a conversation: {error}") from error
    return str((found[0] if isinstance(found, tuple) else found)[0])


def translate(template: str, *, bos: str = "", eos: str = "", begins: bool = False) -> Translation:
    """The family that renders all conversations as `template` does.

    begins: whether Ollama puts `bos` before a prompt by itself, as the GGUF file tells it to.
    """
    wanted: list[tuple[str, Sequence[Mapping[str, Any]], str]] = []
    refused: set[str] = set()
    for one in CONVERSATIONS:
        if one.tools:
            continue
        try:
            text = jinja(template, one, bos, eos)
        except ExportError:
            refused.add(one.kind)
            continue
        wanted.append((one.kind, one, text.removeprefix(bos) if begins and bos else text))
    if not any(kind == "turns" for kind, _, _ in wanted):
        return Translation(reason="the file's own template renders no plain conversation")
    for family in FAMILIES:
        for made in _candidates(family, wanted, eos):
            if all(_same(made, messages, text) for _, messages, text in wanted):
                notes = ["the file's own template refuses a system message"] if "system" in refused else []
                if _takes_tools(template, bos, eos):
                    notes.append("the file's own template takes tools, the one for Ollama does not")
                return Translation(made, family.name, stops=family.stops, compared=len(wanted), notes=tuple(notes))
    if _dated([text for _, _, text in wanted]):
        return Translation(reason="its chat template writes the date of the day, which Go's cannot in the same way")
    known = ", ".join(dict.fromkeys(family.name.partition(" (")[0] for family in FAMILIES))
    return Translation(reason=f"its chat template is none of those that are known in Go's syntax ({known})")


def _takes_tools(template: str, bos: str, eos: str) -> bool:
    one = next(one for one in CONVERSATIONS if one.kind == "tools")
    try:
        return str(one.tools[0]["function"]["name"]) in jinja(template, one, bos, eos, one.tools)
    except ExportError:
        return False


def _candidates(family: Family, wanted: Sequence[tuple[str, Any, str]], eos: str) -> list[str]:
    """The template as it is, and with the system message that the Jinja template has by itself."""
    plain = family.template.replace("{eos}", eos)
    found = [plain]
    first = next(text for kind, _, text in wanted if kind == "one turn")
    if family.default:
        head, _, tail = family.default.replace("{eos}", eos).partition("{default}")
        if first.startswith(head) and tail in first:
            said = first[len(head) :].partition(tail)[0]
            if "{{" not in said and "}}" not in said:
                found.append(f"{{{{- if not .System }}}}{head}{said}{tail}{{{{ end }}}}{plain}")
    return found


def _same(template: str, messages: Sequence[Mapping[str, Any]], text: str) -> bool:
    try:
        return rendered(template, messages) == text
    except ExportError:
        return False


def _dated(texts: Sequence[str]) -> bool:
    today = datetime.datetime.now(tz=datetime.UTC).date()
    days = {today.strftime(form) for form in ("%d %b %Y", "%Y-%m-%d", "%d %B %Y", "%B %d, %Y")}
    return any(day in text for text in texts for day in days)
