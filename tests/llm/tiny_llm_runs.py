"""Language models' runs in miniature: chats about sums, a model folder, a script for runs in processes of their own.

No module to importlib mode: a test puts this folder on its path. Run as a script it is one run:
`python tiny_llm_runs.py CONFIG.json [--kill-at STEP] [--gone-at STEP] [--limit BYTES]`, under torchrun too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

from speechkit.llm.llm_config import LlmConfig

if TYPE_CHECKING:
    from collections.abc import Iterator


def chats(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions of several lengths, each with a short answer that follows from it."""
    made = []
    for number in range(first, first + count):
        a, b = number % 7, number * 3 % 5
        asked = f"{'please ' * (number % 4)}{a}+{b}?"
        made.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{a + b}."}]})
    return made


def model_folder(folder: Path, kind: str = "llama", **more: Any) -> Path:
    """A transformers folder with random weights and the tokenizer of the tests."""
    from tiny_llms import tiny
    from tiny_tokens import VOCABULARY, tokenizer

    tiny(kind, **{"vocab_size": VOCABULARY, "max_position_embeddings": 256, **more}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def small(folder: Path, model: Path, **changes: Any) -> LlmConfig:
    """Eight updates of 128 tokens each, in float32 on the CPU; `changes` win."""
    settings: dict[str, Any] = {
        "model": str(model), "folder": str(folder), "steps": 8, "batch_tokens": 128, "learning_rate": 1e-2, "rank": 4,
        "alpha": 8, "eval_every": 3, "log_every": 1, "precision": "float32", "device": "cpu",
    }  # fmt: skip
    return LlmConfig(**{**settings, **changes})


def no_kernels() -> Iterator[None]:
    """Kernels by their definitions, for fixtures that last longer than one test (see conftest.py)."""
    import pytest
    from speechkit_kernels import launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_triton", lambda: None)
        yield


def losses(folder: Path) -> list[float]:
    """The loss of every point of a run, step by step."""
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()[1:]]
    return [row["loss"] for row in rows if "loss" in row]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="bytes that a file may have, from the first checkpoint on")
    parser.add_argument("--gone-at", type=int, default=0, help="of two processes the second ends here, without a word")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from speechkit_kernels import launch

    launch._triton = lambda: None  # as tests/llm/conftest.py has it
    from speechkit.llm.finetune import finetune

    def watch(point: Any) -> None:
        if options.kill_at and point.step >= options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if options.limit and point.step >= 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (options.limit, resource.RLIM_INFINITY))

    steps = iter(range(1, 1000))

    def stop() -> bool:
        """Asked by every process after every update."""
        if next(steps) == options.gone_at and os.environ.get("RANK") == "1":
            os._exit(7)
        return False

    config = LlmConfig.load(options.config)
    print(finetune(config, chats(48), chats(8, first=100), on_point=watch, stop=stop))


if __name__ == "__main__":
    main()
