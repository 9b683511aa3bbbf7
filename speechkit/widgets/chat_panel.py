"""A small conversation: a line to type in, and what was said. In: a function messages → answer. Plain ipywidgets.

The panel keeps the conversation (`messages`), says what went wrong in place of an answer, and is kept as plain HTML by
whoever saves the notebook.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets

from speechkit.errors import SpeechkitError
from speechkit.widgets.palette import card

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ChatPanel"]

WHO = {"user": "you", "assistant": "model", "system": "system"}


class ChatPanel(ipywidgets.VBox):  # type: ignore[misc]
    """`ChatPanel(chat)`: type, press Enter or *Send*; *New* forgets what was said. `system` is told first, if given."""

    _ipython_display_ = None  # as in Player: ipywidgets 7 would hide the twins

    def __init__(
        self, answer: Callable[[Sequence[dict[str, Any]]], str], title: str = "chat", system: str | None = None
    ) -> None:
        self.answer, self.title, self.system = answer, title, system
        self.messages: list[dict[str, Any]] = []
        self.trouble = ""
        self.view = ipywidgets.HTML()
        line = ipywidgets.Layout(flex="1 1 auto", width="auto")
        self.entry = ipywidgets.Text(placeholder="say something", continuous_update=False, layout=line)
        self.button = ipywidgets.Button(description="Send", button_style="primary")
        self.fresh = ipywidgets.Button(description="New", tooltip="forget what was said")
        row = ipywidgets.Box([self.entry, self.button, self.fresh], layout=ipywidgets.Layout(max_width="720px"))
        super().__init__([self.view, row])
        self.entry.observe(lambda change: self.send(change["new"]), "value")  # on Enter, or when the field is left
        self.button.on_click(lambda _: self.send(self.entry.value))
        self.fresh.on_click(lambda _: self.reset())
        self.reset()

    def send(self, text: str) -> str:
        """Ask, as if typed → the answer; what goes wrong is said in the panel, and the question can be asked again."""
        if not text.strip():
            return ""
        self.trouble = ""
        self.messages.append({"role": "user", "content": text.strip()})
        self._draw(waiting=True)
        try:
            said = self.answer(list(self.messages))
        except (SpeechkitError, RuntimeError, ValueError) as error:
            self.messages.pop()
            self.trouble, said = str(error), ""
        except BaseException as error:  # as when the cell is interrupted: the next question does not follow this one
            self.messages.pop()
            self.trouble = type(error).__name__
            self._draw()
            raise
        else:
            self.messages.append({"role": "assistant", "content": said})
        self.entry.value = ""
        self._draw()
        return said

    def reset(self) -> None:
        """Begin anew."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.trouble = ""
        self._draw()

    def _draw(self, waiting: bool = False) -> None:
        self.view.value = self._section("line-height:1.5", waiting)  # in the notebook's own colours

    def _section(self, style: str, waiting: bool = False) -> str:
        rows = [
            f'<p style="margin:4px 0"><b>{WHO.get(one["role"], one["role"])}</b> '
            f'<span style="white-space:pre-wrap">{escape(str(one["content"]))}</span></p>'
            for one in self.messages
        ]
        if waiting:
            rows.append('<p style="margin:4px 0"><b>model</b> …</p>')
        if self.trouble:
            rows.append(f'<p role="alert" style="margin:4px 0">⚠ no answer: {escape(self.trouble)}</p>')
        said = "".join(rows) or '<p style="margin:4px 0">nothing said yet</p>'
        label = escape(self.title)
        return f'<section aria-label="{label}" style="{style};max-width:720px"><b>{label}</b><hr/>{said}</section>'

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        data = {
            "application/vnd.jupyter.widget-view+json": view,
            "text/html": self._section(card()),
            "text/plain": repr(self),
        }
        return data, {}

    def __repr__(self) -> str:
        said = [f"{WHO.get(one['role'], one['role'])}: {one['content']}" for one in self.messages]
        return "\n".join([self.title, *said, *([f"no answer: {self.trouble}"] if self.trouble else [])])
