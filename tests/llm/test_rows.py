"""Rows of every known shape and source become one shape; what is broken is named and the rest is usable."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest

from speechkit.errors import DataError
from speechkit.llm.row_shapes import Message, Row, order_fault
from speechkit.llm.rows import Rows, read_rows

if TYPE_CHECKING:
    from pathlib import Path

USER, ANSWER = Message("user", "2 + 2?"), Message("assistant", "4")
CALL = {"id": "call1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
ADD = {"name": "add", "parameters": {"type": "object"}}


def one(record: Any, **more: Any) -> Row:
    return read_rows([record], **more)[0]


def reason(record: Any, **more: Any) -> str:
    """Why a record is broken, beside one that is not."""
    good = {"prompt": "x"} if more.get("kind") == "prompt" else {"messages": [USER.as_dict(), ANSWER.as_dict()]}
    rows = read_rows([good, record], **more)
    assert len(rows) == 1 and rows.broken[0].where == "row 1"
    return rows.broken[0].reason


@pytest.mark.parametrize(
    "record",
    [
        pytest.param({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]},
                     id="OpenAI's messages"),
        pytest.param({"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
                                   {"role": "assistant", "content": "4", "tool_calls": None}]}, id="parts of text"),
        pytest.param({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
                     id="ShareGPT"),
        pytest.param({"instruction": "2 + 2?", "input": "", "output": "4"}, id="Alpaca"),
        pytest.param({"question": "2 + 2?", "answer": 4}, id="question and answer"),
        pytest.param({"prompt": [USER.as_dict()], "completion": [ANSWER.as_dict()]}, id="prompt and completion: turns"),
        pytest.param({"messages": json.dumps([USER.as_dict(), ANSWER.as_dict()])}, id="messages as JSON, as in CSV"),
    ],
)  # fmt: skip
def test_a_chat_is_the_same_row_in_whatever_shape_it_comes(record: dict[str, Any]) -> None:
    row = one(record)
    assert row.kind == "chat" and row.messages == (USER, ANSWER) and row.where == "row 0"


def test_an_instruction_with_input_asks_both_and_a_system_column_comes_first() -> None:
    row = one({"instruction": "Add.", "input": "2, 2", "output": "4", "system": "Be brief."})
    assert [x.role for x in row.messages] == ["system", "user", "assistant"]
    assert row.messages[1].content == "Add.\n\n2, 2"


def test_a_tool_call_keeps_its_name_and_gets_its_arguments_as_an_object() -> None:
    turns = [
        {"role": "system", "content": "Use tools."}, {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "call1", "name": "add"},
        {"role": "assistant", "content": "It is 4."},
    ]  # fmt: skip
    row = one({"messages": turns, "tools": [ADD]})
    call = row.messages[2].as_dict()["tool_calls"][0]
    assert call == {"type": "function", "id": "call1", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    assert row.messages[3].as_dict() == {**turns[3]}
    assert row.tools == ({"type": "function", "function": ADD},)


def test_tool_calls_of_sharegpt_are_the_text_of_a_turn() -> None:
    turns = [("human", "2 + 2?"), ("function_call", '{"name": "add", "arguments": {"a": 2}}'), ("observation", "4"),
             ("gpt", "4")]  # fmt: skip
    row = one({"conversations": [{"from": a, "value": b} for a, b in turns], "tools": json.dumps([ADD])})
    assert [x.role for x in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.messages[1].tool_calls == ({"type": "function", "function": {"name": "add", "arguments": {"a": 2}}},)


def test_prompt_and_completion_of_strings_stay_strings() -> None:
    assert one({"prompt": "2 + 2 =", "completion": " 4"}) == Row(
        "completion", text=" 4", prompt="2 + 2 =", where="row 0"
    )
    assert one({"text": "Once upon a time"}).text == "Once upon a time"


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER.as_dict()], "chosen": [ANSWER.as_dict()], "rejected": [{"role": "assistant", "content": "5"}]},
        {"prompt": "2 + 2?", "chosen": [USER.as_dict(), ANSWER.as_dict()],
         "rejected": [USER.as_dict(), {"role": "assistant", "content": "5"}]},
        {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"},
    ],
    ids=["strings", "turns", "whole conversations", "conversations as one string"],
)  # fmt: skip
def test_a_preference_is_a_prompt_and_two_answers(record: dict[str, Any]) -> None:
    row = one(record)
    assert row.kind == "preference"
    assert (row.messages, row.chosen, row.rejected) == ((USER,), (ANSWER,), (Message("assistant", "5"),))


def test_a_prompt_keeps_its_other_columns_for_a_reward_function() -> None:
    row = one({"prompt": "2 + 2?", "target": 4})
    assert (row.kind, row.messages, dict(row.extra)) == ("prompt", (USER,), {"target": 4})
    asked = one({"question": "2 + 2?", "answer": "4"}, kind="prompt")
    assert (asked.messages, dict(asked.extra)) == ((USER,), {"answer": "4"})


def test_a_file_of_lines_names_broken_ones_and_the_rest_is_usable(tmp_path: Path) -> None:
    good = json.dumps({"messages": [USER.as_dict(), ANSWER.as_dict()]})
    path = tmp_path / "train.jsonl"
    lines = ["\ufeff" + good, '{"messages": [', "", '["a list"]', good, '{"messages": []}', '{"words": 3}']
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n')
    rows = read_rows(path)
    assert [row.where for row in rows] == ["line 1", "line 5"]
    assert [str(x) for x in rows.broken] == [
        "line 2: is not JSON at column 15: Expecting value",
        "line 4: is a list, not an object with named fields",
        "line 6: its messages are empty, not a list of turns",
        "line 7: has the fields words; known are messages; conversations; instruction + output; prompt + completion; "
        "question + answer; text; prompt + chosen + rejected; prompt alone",
        "line 8: is not UTF-8 at byte 11",
    ]
    printed = str(rows)
    assert printed.startswith("train.jsonl: 2 rows (2 chat)\nleft out as broken: 5\n  line 2: is not JSON")


def test_many_broken_rows_are_counted_and_five_are_shown() -> None:
    rows = Rows((one({"text": "x"}),), read_rows([{"text": "x"}, *[{}] * 9]).broken, "list")
    assert str(rows).endswith("  and 4 more") and str(rows).count("row ") == 5


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}], ids=["list", "object"])
def test_a_json_document_is_a_list_of_rows_or_holds_one(wrap: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(wrap([{"text": "one"}, {"text": "two"}])))
    assert [row.text for row in read_rows(path)] == ["one", "two"]
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert [row.where for row in read_rows(str(path))] == ["line 1", "line 2"], "JSON lines under the name .json"


def test_a_json_document_that_is_one_conversation_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"messages": [USER.as_dict(), ANSWER.as_dict()]}))
    assert len(read_rows(path)) == 1


def test_a_table_names_the_line_on_which_a_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["instruction", "input", "output"], ["Say, aloud", "", "one\ntwo"]])
        file.write("too,few\r\n\r\nAdd.,2 2,4\r\na,b,c,d\r\n")
    rows = read_rows(path)
    assert [row.where for row in rows] == ["line 2", "line 6"]
    assert rows[0].messages[1].content == "one\ntwo" and rows[1].messages[0].content == "Add.\n\n2 2"
    assert [str(x) for x in rows.broken] == ["line 4: has 2 cells, the head 3", "line 7: has 4 cells, the head 3"]


def test_a_data_set_gives_its_rows_without_the_fields_that_arrow_adds() -> None:
    from datasets import Dataset

    calls = [{"function": {"name": "add", "arguments": {"a": 1, "c": None}}}]
    first = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    data = Dataset.from_list([{"messages": first}, {"messages": [USER.as_dict(), ANSWER.as_dict()]}])
    rows = read_rows(data)
    assert rows.source == "data set" and rows[1].messages == (USER, ANSWER)
    assert rows[0].messages[1].tool_calls == ({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},)


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        (["user", "assistant"], ""),
        (["system", "user", "assistant", "user", "assistant"], ""),
        (["user", "call", "tool", "tool", "assistant"], ""),
        (["user", "call"], "the last message is of the assistant"),
        ([], "has no messages"),
        (["assistant", "user"], "message 1 is of the assistant at the beginning; system or user may come there"),
        (["user", "system", "assistant"],
         "message 2 is of the system after one of the user; assistant may come there"),
        (["user", "user", "assistant"], "message 2 is of the user after one of the user; assistant may come there"),
        (["user", "assistant", "assistant"],
         "message 3 is of the assistant after one of the assistant; user may come there"),
        (["user", "assistant", "tool", "assistant"],
         "message 3 is of the tool after one of the assistant; user may come there"),
        (["user", "call", "user", "assistant"],
         "message 3 is of the user after one of the assistant, which calls a tool; tool may come there"),
        (["user", "assistant", "user"], "the last message is of the user; it has to be of the assistant"),
    ],
)  # fmt: skip
def test_the_order_of_roles(roles: list[str], fault: str) -> None:
    calls = ({"function": {"name": "f", "arguments": {}}},)
    messages = [Message("assistant", "", calls) if role == "call" else Message(role, "x") for role in roles]
    if roles == ["user", "call"]:
        fault = ""  # to call is an answer too
    assert order_fault(messages) == fault


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("text", "is a string, not an object"),
        ({"messages": "hello"}, "its messages are text that is no JSON list of turns"),
        ({"messages": "[{'role': 'user'}]"}, "its messages are text that is no JSON list of turns"),
        ({"messages": [{"role": "user", "content": [{"type": None}, "x"]}]}, "has parts of the kind None, string"),
        ({"messages": [{"role": "user", "content": [{"type": ["x"]}]}]}, "has parts of the kind ['x']"),
        ({"messages": [USER.as_dict(), {**ANSWER.as_dict(), "tool_calls": 5}]},
         "message 2 has calls that are no list of tool calls"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": 5}]},
         "message 2 calls a tool without a name"),
        ({"messages": [USER.as_dict(), ANSWER.as_dict()], "tools": [{"function": 5}]},
         "one of its tools has a function that is no object"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "message 1, of the user, is empty"),
        ({"prompt": "x", "chosen": "a"}, "has chosen and no rejected; a preference needs both"),
        ({"text": "a\ud800"}, "holds U+D800, half of a character, which no tokenizer takes"),
        ({"question;answer": "a;b"}, "its columns are divided by ';', which should be ','"),
        ({"messages": [3]}, "message 1 is a number, not an object with role and content"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "message 1 has the role 'narrator'; known are system"),
        ({"messages": [{"role": "user", "content": " "}, ANSWER.as_dict()]}, "message 1, of the user, is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 has parts of the kind image"),
        ({"messages": [{"role": "user"}]}, "message 1 is a null, not text"),
        ({"messages": [USER.as_dict(), {"role": "assistant", "tool_calls": [{"function": {}}]}]},
         "message 2 calls a tool without a name"),
        ({"messages": [USER.as_dict(), {"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": "{"}}]}]}, "message 2: the arguments of f are no JSON object"),
        ({"messages": [USER.as_dict(), {**ANSWER.as_dict(), "weight": 0.5}]}, "message 2 has the weight 0.5"),
        ({"messages": [USER.as_dict(), ANSWER.as_dict()], "tools": "{"}, "its tools are no list of JSON schemas"),
        ({"instruction": "Add.", "output": " "}, "message 2, of the assistant, is empty"),
        ({"prompt": "x", "completion": " "}, "its completion is empty"),
        ({"text": ""}, "its text is empty"),
        ({"chosen": "a", "rejected": "b"}, "has chosen and rejected, and no prompt that they answer"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    ],
)  # fmt: skip
def test_what_is_broken_is_said(record: Any, said: str) -> None:
    assert said in reason(record)


def test_a_row_of_another_kind_than_asked_for_is_broken() -> None:
    rows = read_rows([{"text": "x"}, {"question": "a", "answer": "b"}], kind="chat")
    assert str(rows.broken[0]) == "row 0: is a completion row, chat was asked for"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.jsonl", "there is no file nowhere.jsonl; give a .jsonl, .json or .csv file"),
        ([], "list has no usable row: it is empty"),
        ([{"a": 1}], "list has no usable row: row 0: has the fields a; known are messages"),
        ({"train": [], "test": []}, "this holds train, test: give one of its parts"),
        (b"x", "rows are a bytes; give a file"),
        (3, "rows are a int; give a file, a data set or a list of rows"),
    ],
)
def test_a_source_without_usable_rows_is_an_error(source: Any, said: str) -> None:
    with pytest.raises(DataError) as error:
        read_rows(source)
    assert said in str(error.value)


def test_other_files_and_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").touch()
    with pytest.raises(DataError, match=r"rows\.xlsx is no \.jsonl, \.json or \.csv file"):
        read_rows(tmp_path / "rows.xlsx")
    with pytest.raises(DataError, match="kind is 'talk'; it can be chat, completion, preference, prompt"):
        read_rows([], kind="talk")


def test_a_table_loses_only_the_row_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"question,answer\na,b\ncaf\xe9,c\nd,e\n")
    rows = read_rows(tmp_path / "rows.csv")
    assert [row.where for row in rows] == ["line 2", "line 4"]
    assert str(rows.broken[0]) == "line 3: holds the byte 0xe9, which is not UTF-8: save the file as UTF-8"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.csv", "question,answer\na,b\n".encode("utf-16"), r"rows\.csv is UTF-16; save it as UTF-8"),
        ("rows.jsonl", '{"text": "a"}\n'.encode("utf-16"), r"rows\.jsonl is UTF-16; save it as UTF-8"),
        (
            "rows.csv",
            b"question,question,answer\na,b,c\n",
            "two columns are named 'question', so that one",
        ),
        (
            "rows.csv",
            b'question,answer\na,"b\nc,d\n',
            "line 1: what follows this line cannot be read .* quotation",
        ),
        ("rows.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1: cannot be read as JSON: Exceeds the limit"),
    ],
    ids=["a table in UTF-16", "lines in UTF-16", "two columns of one name", "an open quotation mark", "a huge number"],
)
def test_a_file_that_cannot_be_read_says_why(name: str, text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=said):
        read_rows(tmp_path / name)
    with pytest.raises(DataError, match="is a folder; give one"):
        read_rows(tmp_path)


def test_turns_in_a_cell_may_begin_on_a_new_line_and_a_list_of_numbers_is_a_prompt() -> None:
    turns = json.dumps([USER.as_dict(), ANSWER.as_dict()], indent=1)
    assert one({"messages": turns}).messages == (USER, ANSWER)
    assert one({"prompt": "[1, 2]"}).messages == (Message("user", "[1, 2]"),)


def test_an_instruction_of_context_alone_and_a_call_in_the_first_shape() -> None:
    assert one({"instruction": "", "input": "2 + 2?", "output": "4"}).messages == (USER, ANSWER)
    call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}}
    made = one({"messages": [USER.as_dict(), call]}).messages[1].tool_calls
    assert made == ({"type": "function", "function": {"name": "add", "arguments": {}}},)
