"""What the assistant says is found in every shape of template, to the token; and labels follow from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import templates
from tiny_tokens import TEMPLATE, tokenizer

from speechkit.errors import DataError
from speechkit.llm.chat import Encoder, has_marks, render
from speechkit.llm.data import IGNORED, TokenReport, Tokens, tokenize
from speechkit.llm.row_shapes import Fault, Message, Row
from speechkit.llm.rows import read_rows

TALK = (
    Message("user", "2 + 2?"), Message("assistant", "4"), Message("user", "é, 你?"), Message("assistant", "No 你."),
)  # fmt: skip
UNMARKED = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def learnt(made: Any, row: Row) -> list[list[str]]:
    """Of each sample the texts that are learnt."""
    found = []
    for sample in Encoder(made).encode(row).samples:
        runs: list[list[int]] = [[]]
        for token, flag in zip(sample.input_ids, sample.learnt, strict=True):
            if flag:
                runs[-1].append(token)
            elif runs[-1]:
                runs.append([])
        found.append([made.decode(run) for run in runs if run])
    return found


ENDS = {"Llama 3": "<|eot_id|>", "ChatML": "<|im_end|>", "ChatML with marks": "<|im_end|>", "Gemma": "<end_of_turn>",
        "Mistral": "</s>", "Phi 3": "<|end|>", "R1": "<｜end▁of▁sentence｜>"}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_what_is_learnt_is_what_the_assistant_says_and_the_end_of_its_turn(name: str) -> None:
    made, _ = templates.of(name)
    blank = " " if name == "Mistral" else ""
    expected = [f"{blank}{text}{ENDS[name]}" for text in ("4", "No 你.")]
    assert learnt(made, Row("chat", TALK)) == [expected]
    whole = made.decode(Encoder(made).encode(Row("chat", TALK)).samples[0].input_ids)
    assert whole == render(made, TALK), "every token is there, none twice"


def test_a_template_that_drops_earlier_thoughts_makes_a_row_of_each_answer() -> None:
    made, _ = templates.of("Qwen 3")
    thought = [*TALK[:3], Message("assistant", "<think>\nhm\n</think>\n\nNo.")]
    assert learnt(made, Row("chat", tuple(thought))) == [
        ["<think>\n\n</think>\n\n4<|im_end|>"], ["<think>\nhm\n</think>\n\nNo.<|im_end|>"]
    ]  # fmt: skip
    report = tokenize([Row("chat", tuple(thought), where="line 1")], made, 200)
    assert [row.where for row in report.rows] == ["line 1, answer 1", "line 1, answer 2"]
    assert "the template writes earlier turns otherwise than the last: 1 rows became 2" in str(report)


def test_marks_and_prefixes_find_the_same_tokens() -> None:
    marked, plain = tokenizer(), tokenizer(UNMARKED)
    assert has_marks(marked) and not has_marks(plain)
    row = Row("chat", (*TALK[:1], Message("assistant", "", (CALL,)), Message("tool", "4"), Message("assistant", "4.")))
    ours, theirs = Encoder(marked).encode(row), Encoder(plain).encode(row)
    assert ours.samples == theirs.samples and (ours.way, theirs.way) == ("marks", "prefixes")
    assert learnt(plain, row) == [['{"name": "add", "arguments": {"a": 2}}<|end|>', "4.<|end|>"]]


def test_marks_that_leave_out_the_end_of_a_turn_are_widened_by_it() -> None:
    short = TEMPLATE.replace("{{ eos_token }}{% endgeneration %}", "{% endgeneration %}{{ eos_token }}")
    assert learnt(tokenizer(short), Row("chat", TALK)) == [["4<|end|>", "No 你.<|end|>"]]


@pytest.mark.parametrize("template", [TEMPLATE, UNMARKED], ids=["marks", "prefixes"])
def test_an_answer_of_weight_0_is_shown_and_not_learnt(template: str) -> None:
    row = Row("chat", (TALK[0], Message("assistant", "4", weight=0), *TALK[2:]))
    assert learnt(tokenizer(template), row) == [["No 你.<|end|>"]]


def test_tools_reach_the_template() -> None:
    row = Row("chat", TALK, tools=({"type": "function", "function": {"name": "add"}},))
    ids = Encoder(tokenizer()).encode(row).samples[0].input_ids
    assert '"name": "add"' in tokenizer().decode(ids) and ids.count(1) == 1, "BOS is there once"


def test_a_template_that_begins_answers_otherwise_than_it_asks_for_them_is_refused() -> None:
    odd = templates.CHATML.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>answer:' }}")
    made = templates.made(odd, ("<|im_start|>",), None, "<|im_end|>", "<pad>")
    with pytest.raises(Fault, match=r"begins answers with .*answer:' when it asks for one and otherwise"):
        Encoder(made).encode(Row("chat", TALK))


def test_a_tokenizer_without_offsets_is_used_in_pieces() -> None:
    class Slow:
        """As those that do not know where their tokens lie."""

        is_fast = False

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, *args: Any, **more: Any) -> Any:
            assert "return_offsets_mapping" not in more
            return self.inner(*args, **more)

    row, plain = Row("chat", TALK), tokenizer(UNMARKED)
    assert Encoder(Slow(plain)).encode(row) == Encoder(plain).encode(row)


def labels_of(report: TokenReport, at: int = 0) -> str:
    return tokenizer().decode([token for token in report.rows[at].labels if token != IGNORED])


def test_a_completion_learns_what_follows_its_prompt_and_ends() -> None:
    report = tokenize(read_rows([{"prompt": "2+2=", "completion": "4"}, {"text": "once"}]), tokenizer(), 20)
    assert labels_of(report) == "4<|end|>" and report.rows[0].labels[:4] == (IGNORED,) * 4
    assert labels_of(report, 1) == "nce<|end|>", "the first token has nothing before it to be told from"


def test_the_report_counts_tokens_shares_and_what_was_left_out() -> None:
    rows = read_rows([
        {"question": "2 + 2?", "answer": "4"}, {"question": "a" * 50, "answer": "b"}, {"words": 1},
        {"prompt": "p", "chosen": "a", "rejected": "b"}, {"question": "2 + 3?", "answer": "5"},
    ])  # fmt: skip
    report = tokenize(rows, tokenizer(), 16)
    assert (len(report.rows), report.tokens, report.learnt, report.longest) == (2, 24, 4, 12)
    assert str(report) == (
        "2 token rows from 4: 24 tokens, 4 with loss (17%); median 12, longest 12 of 16\n"
        "left out: 2\n"
        "  longer than max_len 16: 1 (row 1)\n"
        "  is a preference row: it is for another kind of training: 1 (row 3)\n"
        "note: answers found by marks: 3 rows\n"
        "note: 1 more were broken when they were read"
    )


def test_too_long_rows_lose_their_end_only_where_that_is_asked_for() -> None:
    rows = read_rows([{"question": "2 + 2?", "answer": "four it is"}])
    with pytest.raises(DataError, match=r"none of 1 rows can be trained on. Left out: longer than max_len 14: 1"):
        tokenize(rows, tokenizer(), 14)
    report = tokenize(rows, tokenizer(), 14, too_long="cut")
    assert report.cut == 1 and len(report.rows[0]) == 14 and labels_of(report) == "four"
    assert "1 rows were cut to 14 tokens and end without a stop token" in report.notes


def test_a_tokenizer_that_knows_no_length_leaves_nothing_out() -> None:
    report = tokenize([Row("completion", text="a" * 3000)], tokenizer())
    assert str(report).splitlines()[0].endswith("median 3,001, longest 3,001")


def test_labels_all_masked_are_an_error_for_all_rows_and_a_reason_for_one() -> None:
    long, short = {"question": "a" * 30, "answer": "b"}, {"question": "a", "answer": "b"}
    report = tokenize(read_rows([long, short]), tokenizer(), 20, too_long="cut")
    assert [str(x.reason) for x in report.left_out] == [
        "labels all masked: no token of the assistant within the first 20"
    ]
    with pytest.raises(DataError, match="Left out: labels all masked: no token of the assistant within the first 20"):
        tokenize(read_rows([long, long]), tokenizer(), 20, too_long="cut")
    blind = tokenizer(TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "") + MARK_NOTHING)
    with pytest.raises(DataError, match="the template marks no token as the assistant's: 1 "):
        tokenize(read_rows([short]), blind, 20)


MARK_NOTHING = "{% if false %}{% generation %}{% endgeneration %}{% endif %}"


def test_a_template_without_a_stop_token_is_noted_beside_the_rows() -> None:
    endless = tokenizer(TEMPLATE.replace("{{ eos_token }}", "").replace(" + eos_token", ""))
    report = tokenize(read_rows([{"question": "a", "answer": "b"}]), endless, 20)
    assert any("1 rows have an answer without a stop token" in note for note in report.notes)


def test_bos_that_a_template_writes_twice_is_there_once() -> None:
    double = tokenizer("{{ bos_token }}" + TEMPLATE)
    rows = read_rows([{"question": "a", "answer": "b"}])
    assert tokenize(rows, double, 20).rows == tokenize(rows, tokenizer(), 20).rows


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_len": 1}, "max_len is 1; a row has two tokens or more"),
        ({"max_len": 9, "too_long": "drop"}, "too_long is 'drop'; it can be 'leave out' or 'cut'"),
        ({"max_len": 2.5}, "max_len is 2.5; a row has two tokens or more"),
        ({"max_len": 9, "rows": []}, "there are no rows to tokenise"),
        ({"max_len": 9, "rows": [{"text": "x"}]}, "row 0 is a dict, no Row: read_rows makes them"),
    ],
)
def test_settings_that_cannot_be_are_refused(more: dict[str, Any], said: str) -> None:
    rows = more.pop("rows", [Row("completion", text="x")])
    with pytest.raises(DataError, match=said):
        tokenize(rows, tokenizer(), **more)


def test_a_chat_without_a_template_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"no chat template, and the rows are chats: set tokenizer.chat_template"):
        tokenize([Row("chat", TALK)], tokenizer(None), 20)
    assert tokenize([Row("completion", text="text")], tokenizer(None), 20).rows


def test_tokens_and_labels_of_different_number_are_refused() -> None:
    with pytest.raises(DataError, match="line 3 has 2 tokens and 1 labels"):
        Tokens((1, 2), (1,), "line 3")
