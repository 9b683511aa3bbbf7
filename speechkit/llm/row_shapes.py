"""One raw record, as data sets of language models have them, → a `Row`, or a `Fault` that says what is wrong with it.

Known shapes: OpenAI's `messages`, ShareGPT's `conversations`, Alpaca's instruction/input/output, prompt/completion,
question/answer, `text`, preference pairs (chosen/rejected) and prompts with further columns (GRPO). What is the same
gets one shape: roles are system, user, assistant and tool; arguments of tool calls are objects, not JSON in a string.
Knows no files, no tokenizer and no template.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["KINDS", "SHAPES", "Fault", "Message", "Row", "order_fault", "row_of"]

KINDS = ("chat", "completion", "preference", "prompt")
SHAPES = (
    "messages; conversations; instruction + output; prompt + completion; question + answer; text; "
    "prompt + chosen + rejected; prompt alone"
)
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
    "function_call": "call", "tool_call": "call",
}  # fmt: skip
HALF = re.compile("[\ud800-\udfff]")  # half of a pair, or a byte that was no UTF-8
SPOKEN = re.compile(r"\n\n(Human|Assistant):")  # as preference data of the first years has it
QUESTIONS = ("instruction", "question", "query")
CONTEXTS = ("input", "context")
ANSWERS = ("output", "response", "answer", "completion")


class Fault(ValueError):
    """What is wrong with one record, in words for a report."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str  # system, user, assistant or tool
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] | None = None  # OpenAI's shape, arguments as objects
    name: str | None = None  # of the tool that answers, or of who speaks
    tool_call_id: str | None = None  # which call a tool answers
    weight: int = 1  # 0: an assistant turn that is shown and not learnt

    def as_dict(self) -> dict[str, Any]:
        """As chat templates take it; what is not there is left out."""
        more = {"tool_calls": list(self.tool_calls) if self.tool_calls else None, "name": self.name}
        more["tool_call_id"] = self.tool_call_id
        return {"role": self.role, "content": self.content} | {key: one for key, one in more.items() if one is not None}


@dataclass(frozen=True, slots=True)
class Row:
    """One example to learn from."""

    kind: str  # one of KINDS
    messages: tuple[Message, ...] = ()  # the conversation; of a preference or a prompt what is answered
    chosen: tuple[Message, ...] = ()  # preference: the better answer
    rejected: tuple[Message, ...] = ()  # preference: the other
    tools: tuple[Mapping[str, Any], ...] = ()  # what the model may call, as JSON schemas
    text: str = ""  # completion: what is learnt
    prompt: str = ""  # completion: what stands before it and is not learnt
    where: str = ""  # line or row of the source
    extra: Mapping[str, Any] = field(default_factory=dict)  # prompt: further columns, for reward functions


def row_of(record: Mapping[str, Any], where: str = "", kind: str | None = None) -> Row:
    """The record as a `Row`; `kind` where it is asked for and not to be guessed. Raises Fault."""
    if not isinstance(record, dict) and not hasattr(record, "keys"):
        raise Fault(f"is a {_type(record)}, not an object with named fields")
    given = {str(key): value for key, value in record.items() if value is not None}
    if kind == "prompt":
        return _readable(_prompt(given, where))
    if ("chosen" in given) != ("rejected" in given):
        have, lack = ("chosen", "rejected") if "chosen" in given else ("rejected", "chosen")
        raise Fault(f"has {have} and no {lack}; a preference needs both")
    for needed, make in SHAPE_OF:
        if all(any(name in given for name in names) for names in needed):
            row = _readable(make(given, where))
            if kind is not None and row.kind != kind:
                raise Fault(f"is a {row.kind} row, {kind} was asked for")
            return row
    names = ", ".join(sorted(given)) or "none"
    cut = next((f"; its columns are divided by {mark!r}, which should be ','" for mark in ";\t" if mark in names), "")
    raise Fault(f"has the fields {names}{cut}; known are {SHAPES}")


def _readable(row: Row) -> Row:
    """The same; Fault where a text holds what no tokenizer takes."""
    said = [one.content for one in (*row.messages, *row.chosen, *row.rejected)]
    if found := next(filter(None, map(HALF.search, (*said, row.text, row.prompt))), None):
        code = ord(found[0])
        if 0xDC80 <= code <= 0xDCFF:
            raise Fault(f"holds the byte {code - 0xDC00:#x}, which is not UTF-8: save the file as UTF-8")
        raise Fault(f"holds U+{code:04X}, half of a character, which no tokenizer takes: write it anew")
    return row


def order_fault(messages: Sequence[Message], last: str = "assistant") -> str:
    """What is wrong with the order of roles, empty where nothing is. `last`: who must have the last word."""
    before, wanted = "", {"system", "user"}
    for number, one in enumerate(messages, 1):
        if one.role not in wanted:
            return f"message {number} is of the {one.role} {_after(before)}; {_either(wanted)} may come there"
        wanted = {
            "system": {"user"},
            "user": {"assistant"},
            "assistant": {"tool"} if one.tool_calls else {"user"},
            "tool": {"tool", "assistant"},
        }[one.role]
        before = f"{one.role}, which calls a tool" if one.tool_calls else one.role
    if not messages:
        return "has no messages"
    allowed = {last} if last == "assistant" else {"user", "tool"}
    if messages[-1].role not in allowed:
        return f"the last message is of the {messages[-1].role}; it has to be of the {_either(allowed)}"
    return ""


def _after(before: str) -> str:
    return f"after one of the {before}" if before else "at the beginning"


def _either(names: set[str]) -> str:
    return " or ".join(sorted(names))


def _checked(messages: tuple[Message, ...], last: str = "assistant") -> tuple[Message, ...]:
    if fault := order_fault(messages, last):
        raise Fault(fault)
    return messages


# ---- shapes ----


def _messages(given: Mapping[str, Any], where: str) -> Row:
    listed = next(given[name] for name in ("messages", "conversations", "conversation") if name in given)
    messages = messages_of(listed)
    if given.get("system") and (not messages or messages[0].role != "system"):
        messages = (Message("system", _text(given["system"], "system")), *messages)
    return Row("chat", _checked(messages), tools=tools_of(given), where=where)


def _instruction(given: Mapping[str, Any], where: str) -> Row:
    asked = _text(next(given[name] for name in QUESTIONS if name in given), "the question")
    context = next((_text(given[name], name) for name in CONTEXTS if given.get(name)), "")
    answer = _text(next(given[name] for name in ANSWERS if name in given), "the answer")
    turns = [Message("user", "\n\n".join(filter(None, (asked, context)))), Message("assistant", answer)]
    if given.get("system"):
        turns.insert(0, Message("system", _text(given["system"], "system")))
    return Row("chat", _filled(turns), where=where)


def _completion(given: Mapping[str, Any], where: str) -> Row:
    prompt, answer = given["prompt"], given["completion"]
    if isinstance(prompt, str) and isinstance(answer, str):
        if not answer.strip():
            raise Fault("its completion is empty")
        return Row("completion", text=answer, prompt=prompt, where=where)
    whole = (*messages_of(prompt, "user"), *messages_of(answer, "assistant"))
    return Row("chat", _checked(whole), tools=tools_of(given), where=where)


def _plain(given: Mapping[str, Any], where: str) -> Row:
    text = _text(given["text"], "text")
    if not text.strip():
        raise Fault("its text is empty")
    return Row("completion", text=text, where=where)


def _preference(given: Mapping[str, Any], where: str) -> Row:
    chosen, rejected = (
        messages_of(_spoken(given[name]) or given[name], "assistant") for name in ("chosen", "rejected")
    )  # fmt: skip
    shared = 0
    if chosen and chosen[0].role != "assistant":  # whole conversations: what they share is the prompt
        most = min(len(chosen), len(rejected)) - 1
        shared = next((n for n in range(most) if chosen[n] != rejected[n]), max(most, 0))
        prompt = chosen[:shared]
    elif "prompt" not in given:
        raise Fault("has chosen and rejected, and no prompt that they answer")
    else:
        prompt = messages_of(given["prompt"], "user")
    chosen, rejected = chosen[shared:], rejected[shared:]
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if fault := order_fault((*prompt, *answer)):
            raise Fault(f"{name}: {fault}")
        _filled(answer)
    if chosen == rejected:
        raise Fault("chosen and rejected are the same")
    return Row("preference", _filled(_checked(prompt, "user")), chosen, rejected, tools_of(given), where=where)


def _spoken(text: Any) -> list[dict[str, str]]:
    """The turns of a conversation written as one string, "\\n\\nHuman: …\\n\\nAssistant: …"; none where it is not."""
    parts = SPOKEN.split(text) if isinstance(text, str) and text.startswith("\n\nHuman:") else [""]
    return [{"role": role, "content": said.strip()} for role, said in zip(parts[1::2], parts[2::2], strict=True)]


def _prompt(given: Mapping[str, Any], where: str) -> Row:
    name = next((name for name in ("prompt", "messages", *QUESTIONS) if name in given), None)
    if name is None:
        raise Fault(f"has the fields {', '.join(sorted(given)) or 'none'}; a prompt needs one that is named prompt")
    messages = _filled(_checked(messages_of(given[name], "user"), "user"))
    extra = {key: value for key, value in given.items() if key not in (name, "tools")}
    return Row("prompt", messages, tools=tools_of(given), where=where, extra=extra)


# the fields that a shape needs, one of each group; the first shape that fits
SHAPE_OF: tuple[tuple[tuple[tuple[str, ...], ...], Callable[[Mapping[str, Any], str], Row]], ...] = (
    ((("chosen",), ("rejected",)), _preference),
    ((("messages", "conversations", "conversation"),), _messages),
    ((("prompt",), ("completion",)), _completion),
    ((QUESTIONS, ANSWERS), _instruction),
    ((("prompt",),), _prompt),
    ((("text",),), _plain),
)


# ---- messages ----


def messages_of(given: Any, role: str = "") -> tuple[Message, ...]:
    """A list of turns in either shape, or JSON of it (as CSV has it); a string that is neither is a turn of `role`."""
    if isinstance(given, str):
        listed = _json(given) if given.lstrip().startswith("[") else None
        turns = isinstance(listed, list) and listed and isinstance(listed[0], dict)
        if not turns and role:
            return (Message(role, given),)
        if not turns:
            raise Fault("its messages are text that is no JSON list of turns")
        given = listed
    if not isinstance(given, list | tuple) or not given:
        raise Fault(f"its messages are {'empty' if given in ([], ()) else 'a ' + _type(given)}, not a list of turns")
    return _filled([_message(one, number) for number, one in enumerate(given, 1)])


def _message(given: Any, number: int) -> Message:
    if not hasattr(given, "keys"):
        raise Fault(f"message {number} is a {_type(given)}, not an object with role and content")
    said = given.get("role") or given.get("from")
    role = ROLES.get(str(said).lower())
    if role is None:
        raise Fault(f"message {number} has the role {said!r}; known are {', '.join(ROLES)}")
    content = given.get("content") if given.get("content") is not None else given.get("value")
    if role == "call":  # ShareGPT: the call is the text
        called = _json(content)
        return Message("assistant", "", _calls(called if isinstance(called, dict | list) else [content], number))
    called = given.get("tool_calls") or given.get("function_call")  # the second: OpenAI's first shape
    calls = _calls(called, number) if called else None
    text = "" if content is None and calls else _text(content, f"message {number}")
    weight = given.get("weight")
    if weight not in (None, 0, 1):
        raise Fault(f"message {number} has the weight {weight!r}; it is 0 or 1")
    known = {key: str(given[key]) for key in ("name", "tool_call_id") if given.get(key) is not None}
    return Message(role, text, calls, weight=1 if weight is None else int(weight), **known)


def _filled(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same; Fault where a turn of user or assistant says nothing."""
    for number, one in enumerate(messages, 1):
        if one.role in ("user", "assistant") and not one.content.strip() and not one.tool_calls:
            raise Fault(f"message {number}, of the {one.role}, is empty")
    return tuple(messages)


def _calls(given: Any, number: int) -> tuple[Mapping[str, Any], ...]:
    calls = []
    given = _json(given) if isinstance(given, str) else given
    if not hasattr(given, "keys") and not isinstance(given, list | tuple):
        raise Fault(f"message {number} has calls that are no list of tool calls")
    for one in [given] if hasattr(given, "keys") else list(given):
        inner: Any = one.get("function", one) if hasattr(one, "keys") else None
        if not hasattr(inner, "keys") or not isinstance(inner.get("name"), str):
            raise Fault(f"message {number} calls a tool without a name")
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _json(arguments)
        if not isinstance(arguments, dict):
            raise Fault(f"message {number}: the arguments of {inner['name']} are no JSON object")
        # Arrow gives every call the fields of all of them, empty where there are none
        function = {"name": inner["name"], "arguments": {key: x for key, x in arguments.items() if x is not None}}
        call: dict[str, Any] = {"type": "function", "function": function}
        calls.append({**call, "id": one["id"]} if one.get("id") else call)
    return tuple(calls)


def tools_of(given: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The schemas of `tools`, a list or JSON; a bare function gets the envelope that templates expect."""
    tools = given.get("tools") or given.get("functions") or ()
    tools = _json(tools) if isinstance(tools, str) else tools
    if not isinstance(tools, list | tuple) or not all(hasattr(one, "keys") for one in tools):
        raise Fault("its tools are no list of JSON schemas")
    if not all(hasattr(one.get("function", one), "keys") for one in tools):
        raise Fault("one of its tools has a function that is no object")
    return tuple(dict(one) if "function" in one else {"type": "function", "function": dict(one)} for one in tools)


def _text(given: Any, what: str) -> str:
    """A string, or parts that are all text."""
    if isinstance(given, list | tuple):
        kinds = {str(one.get("type", "?")) if hasattr(one, "keys") else _type(one) for one in given}
        if kinds == {"text"}:
            return "".join(_text(one.get("text"), what) for one in given)
        raise Fault(f"{what} has parts of the kind {', '.join(sorted(kinds))}; here rows are text alone")
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise Fault(f"{what} is a {_type(given)}, not text")
    return str(given)


def _json(given: Any) -> Any:
    """The object that a string holds; None where it is no JSON. What is no string stays."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return None


def _type(value: Any) -> str:
    names = {"NoneType": "null", "str": "string", "dict": "single object", "int": "number", "float": "number"}
    return names.get(type(value).__name__, type(value).__name__)
