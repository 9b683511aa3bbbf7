"""llama.cpp answering messages, in a process of its own: run as a script by `gguf_chat`, and alone (no speechkit).

In: lines of JSON on stdin, first the settings, then numbered questions. Out: lines of JSON on what was stdout. Ends
when stdin does, without freeing anything: the server of xllamacpp may wait for itself for ever when it is freed.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import sys
from typing import Any


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what llama.cpp prints is no answer

    def say(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    try:
        server = _opened(json.loads(sys.stdin.readline()))
        say(opened=server.listening_address)
    except (RuntimeError, ValueError, OverflowError) as error:
        say(refused=str(error))
        os._exit(0)
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        try:
            told = server.handle_chat_completions(asked["body"])
            say(number=asked["number"], told=json.loads(told) if isinstance(told, str | bytes) else told)
        except (RuntimeError, ValueError, TypeError) as error:
            say(number=asked["number"], told={"error": str(error)})
    os._exit(0)


def _opened(settings: dict[str, Any]) -> Any:
    api = importlib.import_module("xllamacpp")
    params = api.CommonParams()
    params.model.path, params.n_ctx = settings["path"], settings["context"]
    params.n_parallel, params.verbosity, params.use_jinja, params.warmup = 1, 0, True, False
    params.api_keys = [secrets.token_hex(16)]  # other users of the machine can reach the loopback port too
    if hasattr(params, "ui"):  # not in every release
        params.ui = False
    return api.Server(params)


if __name__ == "__main__":
    main()
