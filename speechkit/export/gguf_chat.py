"""Conversations with a GGUF file, in llama.cpp, in this process. In: messages. Out: the answer's text.

For a look at what was exported; greedy, so that it says the same each time. The file is one that was proved, for a file
that makes llama.cpp abort would take this process along.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import ExportError
from speechkit.export.proof_llama import parts_of

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
        import xllamacpp

        self.path, self.max_tokens = parts_of(Path(path))[0], max_tokens
        if not self.path.is_file():
            raise ExportError(f"{self.path} is not there; give the .gguf file that was written")
        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.n_ctx, params.n_parallel, params.verbosity = context, 1, 0
        params.use_jinja, params.warmup, params.ui = True, False, False
        try:
            self._server: Any = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                f"llama.cpp does not open {self.path.name}: {error}; export it again, with proof"
            ) from error

    def __call__(self, messages: Sequence[dict[str, Any]]) -> str:
        if self._server is None:
            raise ExportError(f"the conversation with {self.path.name} is closed; open another GgufChat")
        body = {"messages": list(messages), "temperature": 0.0, "max_tokens": self.max_tokens}
        told = self._server.handle_chat_completions(body)
        told = json.loads(told) if isinstance(told, str | bytes) else told
        if "choices" not in told:
            raise ExportError(f"{self.path.name}: llama.cpp gave no answer: {told.get('error', told)}")
        return str(told["choices"][0]["message"].get("content") or "").strip()

    def close(self) -> None:
        """Free the file's memory. A second time does nothing."""
        self._server = None

    def __enter__(self) -> GgufChat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GgufChat({self.path.name!r}{'' if self._server is not None else ', closed'})"
