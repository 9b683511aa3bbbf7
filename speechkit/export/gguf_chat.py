"""A conversation with a GGUF file, in llama.cpp, in a process of its own. In: messages. Out: the answer's text.

For a look at what was exported; greedy, so that it says the same each time. A file that makes llama.cpp abort ends that
process and not this one (`gguf_chat_engine`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import ExportError
from speechkit.export.proof_llama import environment, parts_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["GgufChat"]


class GgufChat:
    """`chat([{"role": "user", "content": …}])` → the assistant's answer, by the template that is in the file.

    context: tokens of conversation and answer together; max_tokens: of an answer. A context manager, and `close()`,
    free the memory. Raises ExportError for a file that llama.cpp does not open or answer from, MissingExtra.
    """

    def __init__(self, path: str | os.PathLike[str], *, context: int = 2048, max_tokens: int = 256) -> None:
        extras.require("xllamacpp", extra="export", purpose="talking to a GGUF file")
        self.path, self.max_tokens = parts_of(Path(path).expanduser())[0], max_tokens
        if not self.path.is_file():
            raise ExportError(f"{self.path} is not there; give the .gguf file that was written")
        self._asked = 0
        self._child: Any = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", str(Path(__file__).with_name("gguf_chat_engine.py"))], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(), encoding="utf-8",
            start_new_session=True,  # Ctrl-C stops the question, not the conversation
        )  # fmt: skip
        try:
            told = self._told({"path": str(self.path.absolute()), "context": context})
        except BaseException:
            self.close()
            raise
        if "opened" not in told:
            self.close()
            why = told["refused"]
            raise ExportError(f"llama.cpp does not open {self.path.name}: {why}; export it again, with proof")
        self.address: str = told["opened"]  # on loopback, with a key that nobody has

    def __call__(self, messages: Sequence[dict[str, Any]]) -> str:
        if self._child is None:
            raise ExportError(f"the conversation with {self.path.name} is closed; open another GgufChat")
        self._asked += 1
        body = {"messages": list(messages), "temperature": 0.0, "max_tokens": self.max_tokens}
        line: dict[str, Any] = self._told({"number": self._asked, "body": body})
        told = line["told"]
        if "choices" not in told:
            raise ExportError(f"{self.path.name}: llama.cpp gave no answer: {told.get('error', told)}")
        return str(told["choices"][0]["message"].get("content") or "").strip()

    def _told(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The line that answers `asked`; what comes of a question that was interrupted is passed over."""
        try:
            self._child.stdin.write(json.dumps(asked) + "\n")
            self._child.stdin.flush()
            while line := self._child.stdout.readline():
                told: dict[str, Any] = json.loads(line)
                if told.get("number") == asked.get("number"):
                    return told
        except BrokenPipeError:
            pass  # as where nothing more can be read
        code = self._child.wait()
        self.close()
        raise ExportError(f"llama.cpp ended with code {code} on {self.path.name}; export it again, with proof")

    def close(self) -> None:
        """Free the file's memory. A second time does nothing."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def __enter__(self) -> GgufChat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GgufChat({self.path.name!r}{'' if self._child is not None else ', closed'})"
