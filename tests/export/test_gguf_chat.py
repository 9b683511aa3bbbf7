"""What was exported answers in llama.cpp, by the template in the file; and the panel in which one types."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest

from speechkit.errors import ExportError
from speechkit.export.gguf import export_gguf
from speechkit.export.gguf_chat import GgufChat
from speechkit.widgets.chat_panel import ChatPanel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.gguf"
    return export_gguf("demo/chat", path, "Q8_0", prove=False).files[0]


@pytest.fixture
def chat(file: Path) -> Iterator[GgufChat]:
    with GgufChat(file, context=512, max_tokens=32) as opened:
        yield opened


def test_the_file_answers_and_says_the_same_again(chat: GgufChat) -> None:
    asked = [{"role": "user", "content": "what is 3 plus 4?"}]
    assert "7" in chat(asked) and chat(asked) == chat(asked)


def test_a_closed_conversation_says_so_and_closes_again(file: Path) -> None:
    chat = GgufChat(file, context=128)
    chat.close()
    chat.close()
    assert "closed" in repr(chat)
    with pytest.raises(ExportError, match=r"chat\.gguf is closed"):
        chat([{"role": "user", "content": "hello"}])


def test_a_conversation_longer_than_the_context_is_an_error_with_llama_cpps_reason(chat: GgufChat) -> None:
    with pytest.raises(ExportError, match="no answer"):
        chat([{"role": "user", "content": "hello " * 600}])


def test_no_file_and_no_gguf_are_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nothing\.gguf is not there"):
        GgufChat(tmp_path / "nothing.gguf")
    with pytest.raises(ExportError, match="is not there"):
        GgufChat(tmp_path / "nothing-00001-of-00002.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ExportError, match=r"does not open text\.gguf"):
        GgufChat(tmp_path / "text.gguf")


@pytest.mark.parametrize("messages", [[{"role": "user"}], ["hello"]])
def test_messages_without_content_are_an_error_with_llama_cpps_reason(chat: GgufChat, messages: list[Any]) -> None:
    with pytest.raises(ExportError, match="no answer"):
        chat(messages)


def test_its_port_answers_nobody_else(chat: GgufChat) -> None:
    assert chat.address.startswith("http://127.0.0.1:")
    line = HTTPConnection(chat.address.removeprefix("http://"), timeout=20)
    line.request("POST", "/completion", '{"prompt": "hello", "n_predict": 1}', {"Content-Type": "application/json"})
    assert line.getresponse().status == 401
    line.close()


def test_a_process_that_ends_is_an_error_and_an_interrupted_questions_answer_is_passed_over(file: Path) -> None:
    with GgufChat(file, context=512, max_tokens=32) as chat:
        asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        chat._child.stdin.write(json.dumps({"number": 0, "body": asked}) + "\n")  # nobody reads what comes of it
        assert "7" in chat([{"role": "user", "content": "what is 3 plus 4?"}])
        chat._child.kill()
        with pytest.raises(ExportError, match=r"ended with code -9 on chat\.gguf"):
            chat([{"role": "user", "content": "hello"}])
        assert "closed" in repr(chat)


def test_conversations_open_and_close_one_after_the_other_without_waiting(file: Path) -> None:
    for _ in range(4):  # in this process, where llama.cpp's server was freed before, one of some hung for ever
        with GgufChat(file, context=128) as chat:
            child = chat._child
        assert child.returncode is not None


def _echo(messages: Sequence[dict[str, Any]]) -> str:
    return f"{len(messages)}: {messages[-1]['content']}"


def test_the_panel_keeps_the_conversation_and_begins_anew() -> None:
    panel = ChatPanel(_echo, title="echo", system="be brief")
    assert panel.send("one") == "2: one"
    panel.entry.value = "two"  # as typed, and Enter
    assert panel.messages[-1] == {"role": "assistant", "content": "4: two"} and panel.entry.value == ""
    assert "4: two" in panel.view.value and "you: two" in repr(panel)
    panel.fresh.click()
    assert panel.messages == [{"role": "system", "content": "be brief"}]
    panel.entry.value = "   "
    assert len(panel.messages) == 1, "nothing is asked with nothing typed"


def test_what_is_said_is_text_and_no_markup() -> None:
    panel = ChatPanel(lambda _: "<script>alert(1)</script>", title="<b>")
    panel.send("<img src=x>")
    twin = panel._repr_mimebundle_()[0]["text/html"]
    for shown in (panel.view.value, twin):
        assert "<script>" not in shown and "<img" not in shown and "&lt;script&gt;" in shown


def test_trouble_is_shown_and_the_question_is_not_kept() -> None:
    def refuse(_: Sequence[dict[str, Any]]) -> str:
        raise ExportError("the file is gone")

    panel = ChatPanel(refuse)
    assert panel.send("hello") == "" and panel.messages == []
    assert "no answer: the file is gone" in panel.view.value and "the file is gone" in repr(panel)
    panel.answer = _echo
    assert panel.send("hello") == "1: hello" and "gone" not in panel.view.value


def test_an_interrupted_question_is_not_kept() -> None:
    def interrupted(_: Sequence[dict[str, Any]]) -> str:
        raise KeyboardInterrupt

    panel = ChatPanel(interrupted)
    with pytest.raises(KeyboardInterrupt):
        panel.send("hello")
    assert panel.messages == [] and "KeyboardInterrupt" in panel.view.value and "…" not in panel.view.value
