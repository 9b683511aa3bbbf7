"""The lint passes templates of real shape, and finds what is wrong with broken ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import templates
from tiny_tokens import TEMPLATE, tokenizer

from speechkit.llm.row_shapes import Message, Row
from speechkit.llm.template_lint import ERROR, NOTE, WARNING, lint

TALK = (Message("user", "2 + 2?"), Message("assistant", "4"))
EXPECTED = {
    "Llama 3": [], "ChatML": [], "ChatML with marks": [], "Phi 3": [], "Qwen 3": [],
    "Gemma": ["system messages are refused: the chat template refuses it: System role not supported"],
    "Mistral": ["system messages are refused: the chat template refuses it: Only user and assistant roles are "
                "supported!"],
    "R1": ["system messages are dropped"],
}  # fmt: skip


@pytest.mark.parametrize("name", templates.SHAPES)
def test_templates_of_the_families_pass_with_their_known_limits(name: str) -> None:
    made, generation = templates.of(name)
    report = lint(made, generation_config=generation)
    assert report.ok and [x.what for x in report.findings if x.level == WARNING] == EXPECTED[name]
    notes = [x.what for x in report.findings if x.level == NOTE]
    assert any("no {% generation %} marks" in x for x in notes) == (name != "ChatML with marks")
    assert any("earlier turns otherwise" in x for x in notes) == (name == "Qwen 3")


def broken(level: str, template: str | None = TEMPLATE, **more: str) -> list[str]:
    return [str(x) for x in lint(tokenizer(template, **more)).findings if x.level == level]


def test_the_tiny_template_has_nothing_to_find() -> None:
    report = lint(tokenizer())
    assert report.ok and not report.findings
    assert str(report) == (
        "chat template: nothing found\n"
        "  right: answers end with <|end|>, which ends generation\n"
        "  right: <|end|> is in the labels of each answer\n"
        "  right: pad is <|pad|>, not eos\n"
        "  right: <|begin|> begins a conversation once\n"
        "  right: text survives the way to tokens and back"
    )


ENDLESS = TEMPLATE.replace("{{ eos_token }}", "").replace(" + eos_token", "")
FOREIGN = ENDLESS.replace("{% endgeneration %}", "{{ '<stop>' }}{% endgeneration %}")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "error: there is no chat template → set tokenizer.chat_template"),
        ("{{ 1 + messages }}", "error: a plain conversation of two turns cannot be rendered"),
        (
            "{{ 1 / 0 }}",
            "error: a plain conversation of two turns cannot be rendered: the chat template refuses it: di",
        ),
        ("{{ range(10 ** 9) | list }}", "error: a plain conversation of two turns cannot be rendered: the chat templ"),
        ("{{ 'a'.index('b') }}", "error: a plain conversation of two turns cannot be rendered: the chat template ref"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "error: a plain conversation of two turns cannot be ren"),
        ("{{ messages[0]['content'] }}", "error: it does not write all that was said: 'It is seven.' is missing"),
        (ENDLESS, "error: no stop token: the template puts nothing behind an answer"),
        (FOREIGN, "error: no stop token: the template ends an answer with '<stop>', which the tokenizer has as no"),
        ("{{ bos_token }}" + TEMPLATE, "error: it writes <|begin|> twice at the beginning"),
    ],
    ids=[
        "none",
        "fails",
        "divides by 0",
        "fills memory",
        "seeks in vain",
        "calls itself",
        "drops turns",
        "no stop token",
        "a stop token that is no token",
        "BOS doubled",
    ],
)
def test_a_broken_template_is_an_error(template: str | None, said: str) -> None:
    found = broken(ERROR, template)
    assert found and found[0].startswith(said)


def test_pad_that_is_eos_is_an_error_and_no_pad_a_note() -> None:
    assert "pad is <|end|>, which ends answers: collators mask it" in broken(ERROR, **{"pad_token": "<|end|>"})[0]
    made = tokenizer()
    made.pad_token = None
    assert [x.what for x in lint(made).findings] == ["there is no pad token"]


def test_an_end_of_turn_on_which_generation_does_not_stop_is_a_warning() -> None:
    made, _ = templates.of("Gemma")
    (first, *_) = [str(x) for x in lint(made).findings if x.level == WARNING]
    assert first.startswith("warning: answers end with <end_of_turn>, generation with <eos> → add ")


def test_a_template_of_another_family_is_seen_by_its_tokens_that_are_none() -> None:
    made = templates.made(templates.CHATML, (), None, "<|endoftext|>", "<pad>")
    report = lint(made)
    assert "no stop token" in report.errors[0].what
    assert any("<|im_start|>, <|im_end|>: no token of this tokenizer" in x.what for x in report.findings)


def test_only_the_last_answer_ended_is_a_warning() -> None:
    template = TEMPLATE.replace("{{ eos_token }}{% endgen", "{% if loop.last %}{{ eos_token }}{% endif %}{% endgen")
    assert "only the last answer of a conversation ends with a stop token" in broken(WARNING, template)[0]


def test_a_tokenizer_that_begins_text_itself_is_told_apart_from_a_doubled_bos() -> None:
    from tokenizers.processors import TemplateProcessing

    made = tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    report = lint(made)
    assert report.ok and [x.what for x in report.findings] == [
        "the template writes <|begin|> and so does the tokenizer"
    ]


def test_text_that_does_not_survive_is_a_warning() -> None:
    from tokenizers import normalizers

    made = tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    (found,) = lint(made).findings
    assert found.level == WARNING and found.what.startswith("tokens do not give the text back: 'What is 3")


def test_rows_show_what_they_need() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    deaf = TEMPLATE.replace("{% if tools %}", "{% if false %}")
    report = lint(tokenizer(deaf), [Row("chat", TALK, tools=(tool,), where="line 1")])
    assert [x.what for x in report.errors] == ["rows have tools or calls, and the template does not write them"]
    assert lint(tokenizer(), [Row("chat", TALK, tools=(tool,))]).ok
    spoken = Row("chat", (Message("user", "What is <|end|>?"), TALK[1]), where="line 2")
    assert "1 rows write special tokens" in str(lint(tokenizer(), [spoken]))
    made, generation = templates.of("Gemma")
    row = Row("chat", (Message("system", "Be brief."), *TALK), where="line 3")
    assert lint(made, [row], generation_config=generation).errors[0].what == (
        "1 rows (line 3): the chat template refuses it: System role not supported"
    )
