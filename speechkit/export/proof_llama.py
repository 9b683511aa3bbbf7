"""A GGUF file opened by llama.cpp, asked what its source was asked. In: a file and `Facts`. Out: `Answers`.

llama.cpp runs in a process of its own (`proof_engine`): one that aborts, or passes its limit and is ended, leaves this
process as it was and an `Answers` that says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from speechkit.export.proof_source import CONTINUED

if TYPE_CHECKING:
    from speechkit.export.proof_source import Chat, Facts

__all__ = ["LIMITS", "WHOLE", "Answers", "ask", "environment", "parts_of"]

LIMITS = {"open": 120.0, "tokens": 60.0, "template": 60.0, "greedy": 90.0, "logprobs": 150.0}  # seconds
GRACE_S = 20.0  # after the limit that the engine keeps by itself
GIB_S = 20.0  # more to open each GiB: a disk of 50 MB/s
WHOLE = 2048  # vocabularies up to this size are compared whole
TOP = 256  # likeliest tokens that are asked for in larger ones
SAYS = 400  # characters of llama.cpp's log that are passed on


@dataclass
class Answers:
    """What llama.cpp said, as far as it came."""

    props: dict[str, Any] = field(default_factory=dict)
    tokens: list[list[int]] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)  # text and ids, or error
    stops: dict[int, bool] = field(default_factory=dict)  # token → whether generation ended at it
    greedy: list[dict[str, Any]] = field(default_factory=list)  # ids, text, stop
    logprobs: list[list[list[list[float]]]] = field(default_factory=list)  # by row, by position: [id, log-probability]
    top: int = WHOLE
    failure: str = ""  # why there is no more; empty where all stages ended
    seconds: dict[str, float] = field(default_factory=dict)


def parts_of(path: Path) -> tuple[Path, ...]:
    """The file, or all parts of a split one that are there: name-00001-of-00003.gguf, …; itself where none is."""
    head, mark, tail = path.stem.rpartition("-of-")
    name, _, number = head.rpartition("-")
    if not (mark and name and number.isdigit() and tail.isdigit()):
        return (path,)
    numbered = (path.with_name(f"{name}-{n:0{len(number)}}-of-{tail}{path.suffix}") for n in range(1, int(tail) + 1))
    return tuple(part for part in numbered if part.is_file()) or (path,)


def ask(path: Path, facts: Facts, *, lora: Path | None = None, limits: dict[str, float] | None = None) -> Answers:
    """Open `path` and ask everything; a `limits` entry (seconds) replaces that of LIMITS."""
    limit = LIMITS | (limits or {})
    limit["open"] += GIB_S * sum(part.stat().st_size for part in parts_of(path)) / 2**30
    task = _task(path, facts, limit) | ({"lora": str(lora)} if lora else {})
    answers = Answers(top=task["top"])
    with TemporaryDirectory(prefix="speechkit-proof-") as folder:
        place = Path(folder)
        (place / "task.json").write_text(json.dumps(task), encoding="utf-8")
        (place / "answers.jsonl").touch()
        with (place / "log.txt").open("wb") as log:
            # -P: the engine's folder holds a gguf.py, which must not stand before the package gguf
            child = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", str(Path(__file__).with_name("proof_engine.py")), "task.json", "answers.jsonl"],
                cwd=place, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(),
            )  # fmt: skip
            try:
                _follow(child, place / "answers.jsonl", answers, limit)
            finally:
                if child.poll() is None:
                    child.kill()
                child.wait()
        if answers.failure:
            answers.failure += _last_words(place / "log.txt").replace(f"{path.absolute().parent}{os.sep}", "")
    return answers


def _task(path: Path, facts: Facts, limit: dict[str, float]) -> dict[str, Any]:
    longest = max(len(row.prompt) for row in facts.rows) + CONTINUED
    return {  # links are not followed: llama.cpp finds the parts of a split file by their names
        "path": str(path.absolute()), "threads": _threads(), "context": -(-(longest + 8) // 256) * 256, "limits": limit,
        "top": facts.vocabulary if facts.vocabulary <= WHOLE else TOP, "drawn": facts.drawn, "count": CONTINUED,
        "texts": facts.texts, "chats": [{"messages": _openai(chat), "tools": chat.tools} for chat in facts.chats],
        "greedy": [row.prompt for row in facts.rows], "stops": facts.stops,
        "rows": [{"ids": row.ids, "first": row.first} for row in facts.rows],
    }  # fmt: skip


def _openai(chat: Chat) -> list[dict[str, Any]]:
    """The arguments of a call as text, which is OpenAI's shape and the server's; transformers has them as an object."""
    messages = []
    for message in chat.messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        messages.append({**message, "tool_calls": calls} if calls else message)
    return messages


def _threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else max(1, (os.cpu_count() or 2) // 2)


def environment() -> dict[str, str]:
    """Without what could send the engine elsewhere, and without secrets, which it has no use for."""
    secret = ("TOKEN", "SECRET", "PASSWORD", "API_KEY")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LLAMA_") and not any(word in name.upper() for word in secret)
    }


def _follow(child: subprocess.Popen[bytes], path: Path, answers: Answers, limit: dict[str, float]) -> None:
    """Read answers as they come, until the last, the end of the process, or the end of a stage's time."""
    stage, began = "open", time.monotonic()
    with path.open("rb") as file:
        rest = b""
        while True:
            over = child.poll() is not None  # asked before reading, so that the last lines are not missed
            rest += file.read()
            *lines, rest = rest.split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "stage" in told:
                    answers.seconds[stage] = answers.seconds.get(stage, 0.0) + time.monotonic() - began
                    stage, began = told["stage"], time.monotonic()
                else:
                    _keep(answers, told)
            if stage == "done" or answers.failure:
                return
            if over:
                answers.failure = f"llama.cpp ended {_how(child.returncode)} at the stage {stage!r}"
                return
            if (spent := time.monotonic() - began) > limit[stage] + GRACE_S:
                answers.failure = f"llama.cpp was ended after {spent:.0f} s at the stage {stage!r}"
                return
            time.sleep(0.02)


def _keep(answers: Answers, told: dict[str, Any]) -> None:
    ((name, value),) = told.items()
    if name == "refused":
        answers.failure = f"llama.cpp does not open the file: {value}"
    elif name == "props":
        answers.props = value
    elif name == "stop":
        answers.stops[value[0]] = value[1]
    else:
        getattr(answers, "chats" if name == "chat" else name).append(value)


def _how(code: int) -> str:
    return f"with signal {-code}" if code < 0 else f"with exit code {code}"


def _last_words(path: Path) -> str:
    """What llama.cpp's log says went wrong."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if _names_a_fault(line)] or lines[-2:]
    told = "; ".join(dict.fromkeys(wrong[:3]))
    return f" ({told[:SAYS]})" if told else ""


def _names_a_fault(line: str) -> bool:
    return any(word in line.lower() for word in ("error", "fail", "invalid", "missing", "assert", "exceeds", "unknown"))
