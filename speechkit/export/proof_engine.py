"""llama.cpp asked in a process of its own: run as a script with the file of a task, it writes answers line by line.

In: a JSON file (`path`, `texts`, `chats`, `greedy`, `rows`, …; see `main`). Out: JSON lines, each written when it is
known, so that a reader sees how far it came. Stands alone (standard library and xllamacpp): a file that makes
llama.cpp abort or hang ends this process and not the one that asked.
"""

from __future__ import annotations

import http.client
import importlib
import json
import secrets
import sys
import time
from typing import Any

# not in every release of xllamacpp: no guessing of sizes, no pages, nothing kept of prompts that are not asked again,
# and sliding windows with the cache of all positions, so that a shorter prefix can be used again
OPTIONAL = {
    "fit_params": False, "ctx_shift": False, "ui": False, "endpoint_slots": False, "swa_full": True,
    "cache_ram_mib": 0, "n_ctx_checkpoints": 0,
}  # fmt: skip
FORCED = 1000.0  # added to the logit of the token that is to be drawn; the log-probabilities told are those before it


class Engine:
    """llama.cpp's server on one file, in this process: one slot, KV cache in float32, no flash attention, CPU."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._key = secrets.token_hex(16)  # other users of the machine can reach the loopback port too
        api = importlib.import_module("xllamacpp")
        params = api.CommonParams()
        params.model.path = task["path"]
        params.n_ctx, params.n_parallel, params.cpuparams.n_threads = task["context"], 1, task["threads"]
        params.cache_type_k = params.cache_type_v = api.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = api.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_gpu_layers, params.no_kv_offload, params.no_op_offload = 0, True, True
        params.warmup, params.use_jinja, params.api_keys, params.verbosity = False, True, [self._key], 1
        for name, value in OPTIONAL.items():
            if hasattr(params, name):
                setattr(params, name, value)
        if task.get("lora"):
            adapter = api.CommonAdapterLoraInfo(task["lora"], 1.0)
            params.lora_adapters = [adapter]
        self.server = api.Server(params)
        self._line = http.client.HTTPConnection(self.server.listening_address.split("//")[1])

    def ask(self, place: str, body: dict[str, Any] | None = None) -> Any:
        """POST, or GET without a body. Raises ValueError with what the server says."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        self._line.request("GET" if body is None else "POST", place, json.dumps(body) if body else None, headers)
        answer = self._line.getresponse()
        told = json.loads(answer.read())
        if answer.status != 200:
            raise ValueError(str(told.get("error", told))[:300])
        return told

    def tokens(self, text: str, special: bool) -> list[int]:
        return self.ask("/tokenize", {"content": text, "add_special": special, "parse_special": True})["tokens"]

    def chat(self, chat: dict[str, Any]) -> dict[str, Any]:
        body = {"messages": chat["messages"], "add_generation_prompt": True}
        try:
            text = self.ask("/apply-template", body | ({"tools": chat["tools"]} if chat["tools"] else {}))["prompt"]
            return {"text": text, "ids": self.tokens(text, True)}
        except ValueError as error:
            return {"error": str(error)}

    def greedy(self, ids: list[int], count: int, forced: int | None = None) -> dict[str, Any]:
        body = {
            "prompt": ids, "n_predict": count, "temperature": 0.0, "samplers": ["temperature"], "repeat_penalty": 1.0,
            "return_tokens": True, "cache_prompt": True, "logit_bias": [] if forced is None else [[forced, FORCED]],
        }  # fmt: skip
        told = self.ask("/completion", body)
        return {"ids": told["tokens"], "text": told["content"], "stop": told["stop_type"]}

    def following(self, ids: list[int], top: int, drawn: int) -> list[list[float]]:
        """[id, natural log of its probability] of the `top` likeliest tokens after `ids`.

        The server keeps back what is not whole UTF-8, log-probabilities and all; so a token that is gets drawn.
        """
        body = {
            "prompt": ids, "n_predict": 1, "n_probs": top, "temperature": 0.0, "samplers": ["temperature"],
            "cache_prompt": True, "logit_bias": [[drawn, FORCED]], "repeat_penalty": 1.0,
        }  # fmt: skip
        (told,) = self.ask("/completion", body)["completion_probabilities"]
        return [[one["id"], one["logprob"]] for one in told["top_logprobs"]]


def main(task_path: str, answer_path: str) -> None:
    """Stage after stage. `limits` holds seconds; log-probabilities stop by themselves there, what is left is left."""
    with open(task_path, encoding="utf-8") as file:
        task = json.load(file)
    with open(answer_path, "a", encoding="utf-8") as out:

        def say(**what: Any) -> None:
            out.write(json.dumps(what) + "\n")
            out.flush()

        say(stage="open")
        try:
            engine = Engine(task)
        except (RuntimeError, ValueError, OSError) as error:
            say(refused=str(error))
            return
        props = engine.ask("/props")
        say(props={name: props.get(name) for name in ("bos_token", "eos_token", "model_ftype", "build_info")})
        say(stage="tokens")
        for text, special in task["texts"]:
            say(tokens=engine.tokens(text, special))
        say(stage="template")
        for chat in task["chats"]:
            say(chat=engine.chat(chat))
        say(stage="greedy")
        for token in task["stops"]:
            say(stop=[token, engine.greedy(task["greedy"][0], 4, token)["stop"] == "eos"])
        _all(task, "greedy", lambda ids: say(greedy=engine.greedy(ids, task["count"])))
        say(stage="logprobs")
        _all(task, "rows", lambda row: say(logprobs=_row(engine, row, task)))
        say(stage="done")


def _all(task: dict[str, Any], what: str, do: Any) -> None:
    limit = time.monotonic() + task["limits"]["logprobs" if what == "rows" else what]
    for number, item in enumerate(task[what]):
        if number and time.monotonic() > limit:
            return
        do(item)


def _row(engine: Engine, row: dict[str, Any], task: dict[str, Any]) -> list[list[list[float]]]:
    ids = row["ids"]
    return [engine.following(ids[:length], task["top"], task["drawn"]) for length in range(row["first"], len(ids) + 1)]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
