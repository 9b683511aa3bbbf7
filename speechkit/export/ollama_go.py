"""The part of Go's text/template that chat templates for Ollama are written in, rendered as Ollama renders it.

In: a template and messages. Out: the prompt. Known: fields, variables, range, if / else if / else, trim marks (`{{-`,
`-}}`), and the functions eq, ne, lt, le, gt, ge, and, or, not, len, slice, index. What is not known is an error,
never a guess (https://pkg.go.dev/text/template; messages are joined as in Ollama's template package).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["rendered"]

ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
TOKEN = re.compile(r'\s+|"(?:[^"\\]|\\.)*"|:=|[(),]|\$?[\w.]+|\$|\.')
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *rest: any(first == one for one in rest),
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "and": lambda *given: next((one for one in given if not one), given[-1]),
    "or": lambda *given: next((one for one in given if one), given[-1]),
    "not": lambda one: not one,
    "len": len,
    "slice": lambda what, *cut: what[slice(*(cut if len(cut) > 1 else (cut[0], None)))],
    "index": lambda what, *keys: what[keys[0]] if len(keys) == 1 else what[keys[0]][keys[1]],
}
ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


def rendered(template: str, messages: Sequence[Mapping[str, Any]], system: str = "") -> str:
    """The prompt of a conversation. system: the Modelfile's, used where the conversation brings none.

    Raises ExportError for what this subset does not know.
    """
    if system and not any(message["role"] == "system" for message in messages):
        messages = [{"role": "system", "content": system}, *messages]
    joined, said = _joined(messages)
    nodes = _parsed(iter(_pieces(template)), ())[0]
    return "".join(_run(nodes, _Scope({"Messages": joined, "System": said, "Response": "", "Tools": []})))


def _joined(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Neighbours of one role become one message; the system's messages besides as one text."""
    made: list[dict[str, Any]] = []
    for message in messages:
        if made and made[-1]["Role"] == message["role"]:
            made[-1]["Content"] += f"\n\n{message['content']}"
        else:
            made.append({"Role": message["role"], "Content": message["content"]})
    return made, "\n\n".join(str(one["content"]) for one in messages if one["role"] == "system")


@dataclass
class _Node:
    """A text, a value to write, or a block with its branches."""

    kind: str
    text: str = ""
    branches: list[tuple[str, list[_Node]]] = field(default_factory=list)  # condition, body


@dataclass
class _Scope:
    """`.`, `$` and the variables."""

    dot: Any
    root: Any = None
    names: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.dot if self.root is None else self.root


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """("text", …) and ("action", …) in turn, white space trimmed where a mark says so."""
    at, trim = 0, False
    for found in ACTION.finditer(template):
        text = template[at : found.start()]
        text = text.lstrip(" \t\r\n") if trim else text
        yield "text", text.rstrip(" \t\r\n") if found[1] else text
        if not found[2].strip().startswith("/*"):
            yield "action", found[2].strip()
        at, trim = found.end(), bool(found[3])
    rest = template[at:]
    yield "text", rest.lstrip(" \t\r\n") if trim else rest


def _parsed(pieces: Iterator[tuple[str, str]], ends: tuple[str, ...]) -> tuple[list[_Node], str]:
    """Nodes up to one of `ends`, and that end."""
    nodes: list[_Node] = []
    for kind, text in pieces:
        word = text.partition(" ")[0]
        if kind == "text":
            nodes.append(_Node("text", text))
        elif word in ("end", "else"):
            if word not in ends:
                raise ExportError(f"the Go template has {{{{ {text} }}}} outside a block")
            return nodes, text
        elif word in ("if", "range"):
            nodes.append(_block(pieces, word, text[len(word) :].strip()))
        else:
            nodes.append(_Node("value", text))
    if ends:
        raise ExportError("the Go template has a block without {{ end }}")
    return nodes, ""


def _block(pieces: Iterator[tuple[str, str]], word: str, condition: str) -> _Node:
    node = _Node(word)
    while True:
        body, end = _parsed(pieces, ("end", "else"))
        node.branches.append((condition, body))
        if end == "end":
            return node
        condition = end.removeprefix("else").strip().removeprefix("if").strip()


def _run(nodes: list[_Node], scope: _Scope) -> Iterator[str]:
    for node in nodes:
        if node.kind == "text":
            yield node.text
        elif node.kind == "value":
            yield _written(_value(node.text, scope))
        elif node.kind == "range":
            yield from _range(node, scope)
        else:
            body = next((body for test, body in node.branches if not test or _value(test, scope)), [])
            yield from _run(body, scope)


def _range(node: _Node, scope: _Scope) -> Iterator[str]:
    what, body = node.branches[0]
    names, given, value = what.rpartition(":=")
    items = _value(value, scope)
    if not items and len(node.branches) > 1:
        yield from _run(node.branches[1][1], scope)
    for number, item in enumerate(items):
        own = dict(scope.names)
        if given:
            bound = [name.strip() for name in names.split(",")]
            own |= dict(zip(bound, (number, item) if len(bound) == 2 else (item,), strict=True))
        yield from _run(body, _Scope(item, scope.root, own))


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise ExportError(f"the Go template writes a {type(value).__name__}, which this subset does not render")


def _value(text: str, scope: _Scope) -> Any:
    tokens = []
    at = 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise ExportError(f"the Go template has {text!r}, which this subset does not know")
        at = found.end()
        tokens += [found[0]] if not found[0].isspace() else []
    value, rest = _call(tokens, scope)
    if rest:
        raise ExportError(f"the Go template has {text!r}, which this subset does not know")
    return value


def _call(tokens: list[str], scope: _Scope) -> tuple[Any, list[str]]:
    """A function with all that follows as its arguments, or one operand."""
    if not tokens:
        raise ExportError("the Go template has an empty action")
    if tokens[0] not in FUNCTIONS:
        return _operand(tokens, scope)
    name, rest = tokens[0], tokens[1:]
    given = []
    while rest and rest[0] != ")":
        value, rest = _operand(rest, scope)
        given.append(value)
    return FUNCTIONS[name](*given), rest


def _operand(tokens: list[str], scope: _Scope) -> tuple[Any, list[str]]:
    first, rest = tokens[0], tokens[1:]
    if first == "(":
        value, rest = _call(rest, scope)
        if not rest or rest[0] != ")":
            raise ExportError("the Go template has a bracket that is not closed")
        return value, rest[1:]
    if first.startswith('"'):
        return re.sub(r"\\(.)", lambda found: ESCAPES[found[1]], first[1:-1]), rest
    if first.lstrip("-").isdigit():
        return int(first), rest
    if first in ("true", "false"):
        return first == "true", rest
    return _looked_up(first, scope), rest


def _looked_up(path: str, scope: _Scope) -> Any:
    head, *fields = path.split(".")
    if head == "":
        value = scope.dot
    elif head == "$":
        value = scope.root
    elif head in scope.names:
        value = scope.names[head]
    else:
        raise ExportError(f"the Go template names {path!r}, which this subset does not know")
    for one in fields:
        if one:
            value = value.get(one, "")
    return value
