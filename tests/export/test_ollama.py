"""Modelfiles: a template is written where it renders as the file's own, byte for byte; Go's rules by its manual."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speechkit.errors import ExportError, OutputError, PlanError
from speechkit.export.ollama import write_modelfile
from speechkit.export.ollama_go import rendered
from speechkit.export.ollama_templates import jinja, translate
from speechkit.export.prompts import CONVERSATIONS

gguf = pytest.importorskip("gguf")

CHAT = Path(__file__).resolve().parents[2] / "speechkit/demo/models/chat"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
JINJA = {
    "ChatML": CHATML,
    "ChatML with a system message of its own": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n"
    "You are a kind helper.<|im_end|>\n' }}{% endif %}" + CHATML,
    "Llama 3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
    "m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "Gemma 2": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + "
    "m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "Gemma 3": "{{ bos_token }}{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content + "
    "'\n\n' %}{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if "
    "m.role == 'assistant' else m.role) + '\n' + (s if loop.first else '') + m.content + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "Mistral v0.1": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + "
    "' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}"
    "{{ raise_exception('only users and assistants') }}{% endif %}{% endfor %}",
    "Mistral v0.3": "{{ bos_token }}{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content"
    " + '\n\n' %}{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (s if loop.last else '') + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}",
    "Phi-3": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "Zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "demo/chat": (CHAT / "chat_template.jinja").read_text(),
}
BOS, EOS = "<s>", "</s>"


@pytest.mark.parametrize("name", JINJA)
def test_a_known_family_is_translated_and_renders_byte_for_byte(name: str) -> None:
    found = translate(JINJA[name], bos=BOS, eos=EOS, begins=True)
    assert found.template and not found.reason, found.reason
    seen = 0
    for one in CONVERSATIONS:
        if one.tools:
            continue
        try:
            wanted = jinja(JINJA[name], one, BOS, EOS)
        except ExportError:
            assert one.kind == "system"
            continue
        assert rendered(found.template, one) == wanted.removeprefix(BOS)
        seen += 1
    assert found.compared == seen >= 4


def test_the_modelfiles_system_message_stands_where_the_template_has_one_of_its_own() -> None:
    found = translate(JINJA["ChatML with a system message of its own"], bos=BOS, eos=EOS)
    asked = [{"role": "user", "content": "Hi."}]
    assert "You are a kind helper." in rendered(found.template, asked)
    assert rendered(found.template, asked, system="Be brief.") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (CHATML.replace("<|im_end|>\n", "<|im_end|>"), "is none of those"),
        (CHATML.replace("m.role", "m.role | upper"), "is none of those"),
        ("{{ nothing.at.all }}", "renders no plain conversation"),
        ("Today Date: {{ strftime_now('%d %b %Y') }}\n" + CHATML, "date of the day"),
    ],
)
def test_a_template_that_is_not_known_is_left_out_with_the_reason(changed: str, why: str) -> None:
    found = translate(changed, bos=BOS, eos=EOS)
    assert not found.template and why in found.reason


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        # https://pkg.go.dev/text/template: the example of trimming there, and its rules for blocks
        ('{{"23 -"}} < {{- "45"}}', "23 - <45"),
        ('{{"23" -}} < {{- "45"}}', "23<45"),
        ("{{/* nothing */}}a{{- /* nothing */ -}} b", "ab"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }} {{ end }}", "0system 1user "),
        ("{{ range .Messages }}{{ if eq .Role `x` }}", None),
        ('{{ range .Messages }}{{ if eq .Role "user" "tool" }}U{{ else }}S{{ end }}{{ end }}', "SU"),
        ('{{ if and .System (ne .System "x") }}{{ .System }}{{ else if .Tools }}t{{ else }}n{{ end }}', "Be brief."),
        ("{{ if not .Tools }}{{ len .Messages }}{{ end }}", "2"),
        ("{{ range $i, $_ := .Messages }}{{ len (slice $.Messages $i) }}{{ end }}", "21"),
        ("{{ range .Tools }}t{{ else }}none{{ end }}", "none"),
        ("{{ (index .Messages 1).Content }}", None),  # a field of a bracket: not known, so refused
        ("{{ if .System }}open", None),
        ("{{ end }}", None),
        ("{{ .Messages }}", None),
        ("{{ printf .System }}", None),
        ("{{ template x }}", None),
    ],
)
def test_gos_rules(template: str, wanted: str | None) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    if wanted is None:
        with pytest.raises(ExportError, match="the Go template"):
            rendered(template, messages)
    else:
        assert rendered(template, messages) == wanted


def test_neighbours_of_one_role_are_one_message_as_in_ollama() -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert rendered("{{ range .Messages }}[{{ .Content }}]{{ end }}", messages) == "[one\n\ntwo]"


def header(path: Path, template: str | None = CHATML, **more: Any) -> Path:
    """A GGUF file of metadata alone."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "<s>"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(more.get("context", 32768))
    writer.add_tokenizer_model(more.get("model", "gpt2"))
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 3])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(4)
    if "eot" in more:
        writer.add_eot_token_id(more["eot"])
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_modelfile_holds_all_that_the_file_tells(tmp_path: Path) -> None:
    report = write_modelfile(
        header(tmp_path / "m.gguf", eot=0),
        system="Be brief.",
        license="Apache-2.0",
        adapter=header(tmp_path / "a.gguf"),
        parameters={"temperature": 0.7, "seed": 3},
    )
    assert report.family == "ChatML" and report.compared == 6 and report.stops == (
        "<|im_end|>", "<|endoftext|>", "<|im_start|>",
    )  # fmt: skip
    assert (tmp_path / "Modelfile").read_text() == report.text
    assert report.text == (
        'FROM ./m.gguf\nADAPTER ./a.gguf\nTEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}'
        '<|im_end|>\n{{ end }}<|im_start|>assistant\n"""\nPARAMETER num_ctx 8192\nPARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|im_start|>"\nPARAMETER temperature 0.7\nPARAMETER seed 3\n'
        'SYSTEM """Be brief."""\nLICENSE """Apache-2.0"""\n'
    )
    assert "ollama create" in str(report) and json.dumps(report.as_dict())
    assert "-f 'my files/Modelfile'" in str(replace(report, path=Path("my files/Modelfile")))


def test_a_begin_token_that_llama_cpp_adds_is_not_written_twice(tmp_path: Path) -> None:
    report = write_modelfile(header(tmp_path / "m.gguf", "{{ bos_token }}" + CHATML, model="llama"))
    assert report.family == "ChatML" and "<s>" not in report.text


@pytest.mark.parametrize(("template", "why"), [(None, "no chat template"), ("{{ messages }}", "none of those")])
def test_without_a_known_template_the_line_is_left_out_and_said(template: str | None, why: str, tmp_path: Path) -> None:
    report = write_modelfile(header(tmp_path / "m.gguf", template))
    assert "TEMPLATE" not in report.text and not report.family
    assert any(why in note and "ollama show --template" in note for note in report.notes)


def test_tools_that_are_not_translated_are_told(tmp_path: Path) -> None:
    report = write_modelfile(header(tmp_path / "m.gguf", JINJA["demo/chat"]))
    assert report.family == "ChatML" and any("takes tools" in note for note in report.notes)


def test_an_existing_modelfile_is_kept_without_overwrite(tmp_path: Path) -> None:
    file = header(tmp_path / "m.gguf")
    (tmp_path / "Modelfile").write_text("mine")
    with pytest.raises(OutputError, match="overwrite=True"):
        write_modelfile(file)
    assert (tmp_path / "Modelfile").read_text() == "mine"
    assert write_modelfile(file, overwrite=True).path.read_text().startswith("FROM ./m.gguf\n")


def test_a_modelfile_never_replaces_the_models_own_file(tmp_path: Path) -> None:
    file, adapter = header(tmp_path / "m.gguf"), header(tmp_path / "a.gguf")
    (tmp_path / "link").symlink_to(file)
    before = file.read_bytes()
    for place in (file, tmp_path / "link", adapter):
        with pytest.raises(PlanError, match="the model's own file"):
            write_modelfile(file, place, adapter=adapter, overwrite=True)
    assert file.read_bytes() == before == adapter.read_bytes()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"num_ctx": 0}, "1 to 32768"),
        ({"num_ctx": 65536}, "1 to 32768"),
        ({"system": 'say """'}, "cannot quote"),
        ({"parameters": {"Stop Now": 1}}, "lower case"),
        ({"parameters": {"seed": None}}, "a number, a text or a bool"),
    ],
)
def test_values_that_a_modelfile_cannot_hold_are_refused(more: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=why):
        write_modelfile(header(tmp_path / "m.gguf"), **more)
    assert not (tmp_path / "Modelfile").exists()


def test_what_ollama_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not there"):
        write_modelfile(tmp_path / "absent.gguf")
    (tmp_path / "none.gguf").write_bytes(b"not a model" * 9)
    with pytest.raises(ExportError, match="cannot be read"):
        write_modelfile(tmp_path / "none.gguf")
    with pytest.raises(ExportError, match="part of a split file"):
        write_modelfile(header(tmp_path / "m-00001-of-00002.gguf"))
