"""Language models from a Hub that a server on this machine plays: what is fetched, what is said where it cannot be."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

LOAD = """
import sys
from pathlib import Path
from speechkit.errors import ModelError
from speechkit.llm import hub
from speechkit.llm.files import _check_kind

try:
    print(hub.fetch(sys.argv[1], sys.argv[2] or None, _check_kind))
except ModelError as error:
    print("ModelError:", error)
"""
LLAMA = json.dumps({"model_type": "llama"}).encode()


def _server() -> Any:
    """The Hub of the speech half's tests."""
    place = Path(__file__).parents[1] / "asr" / "test_hub.py"
    spec = importlib.util.spec_from_file_location("speech_hub", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speech_hub"] = module
    spec.loader.exec_module(module)
    return module.Hub


def fetch(endpoint: str, cache: Path, repo: str = "owner/model", revision: str = "", **variables: str) -> str:
    """In its own process, because huggingface_hub reads its settings once."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    settings = {**inherited, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "*", **variables}
    command = [sys.executable, "-c", LOAD, repo, revision]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.strip()


@pytest.fixture
def hub() -> Iterator[tuple[str, Any]]:
    handler = type("OneHub", (_server(),), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def test_weights_of_one_kind_are_fetched_and_the_cache_serves_without_a_network(
    hub: tuple[str, Any], tmp_path: Path
) -> None:
    endpoint, server = hub
    kept = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    more = ["pytorch_model.bin", "consolidated.safetensors", "model.gguf", "code.py"]
    server.files = {name: LLAMA if name == "config.json" else name.encode() for name in kept + more}
    said = fetch(endpoint, tmp_path)
    assert sorted(path.name for path in Path(said).iterdir()) == kept
    assert fetch("http://127.0.0.1:9", tmp_path) == said
    assert fetch("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1") == said


def test_a_repository_that_wants_its_code_run_is_refused_before_its_weights_are_fetched(
    hub: tuple[str, Any], tmp_path: Path
) -> None:
    endpoint, server = hub
    config = json.dumps({"model_type": "acme", "auto_map": {"AutoConfig": "code.C"}}).encode()
    server.files = {"config.json": config, "model.safetensors": b"gigabytes", "code.py": b""}
    assert "wants to run code of its own (auto_map in config.json)" in fetch(endpoint, tmp_path)
    assert not [path for path in server.asked if "safetensors" in path or "code.py" in path]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["pytorch_model.bin"], "owner/model holds pickled weights only, which can run code when they are read; ch"),
        (["q4.gguf"], "owner/model holds GGUF files only, which are for llama.cpp; choose the repository they were m"),
        (["README.md"], "owner/model holds no weights; choose a repository or a revision with model.safetensors"),
    ],
    ids=["pickled", "GGUF", "nothing"],
)
def test_a_repository_without_safetensors_says_what_it_holds(
    files: list[str], said: str, hub: tuple[str, Any], tmp_path: Path
) -> None:
    endpoint, server = hub
    server.files = {"config.json": LLAMA} | dict.fromkeys(files, b"x")
    assert said in fetch(endpoint, tmp_path)


def test_a_name_that_the_hub_does_not_know_names_the_nearest(hub: tuple[str, Any], tmp_path: Path) -> None:
    said = fetch(hub[0], tmp_path, "Qwen/Qwen3-0.6")
    assert "the Hub has no public model 'Qwen/Qwen3-0.6': check the spelling (nearest known: " in said
    assert "Qwen/Qwen3-0.6B" in said and "hf auth login" in said


def test_a_hub_that_cannot_be_reached_is_told_with_the_ways_around(tmp_path: Path) -> None:
    said = fetch("http://127.0.0.1:9", tmp_path)
    assert "the Hub at http://127.0.0.1:9 cannot be reached" in said and "owner/model is not in the local cache" in said
    assert "`hf download owner/model --local-dir FOLDER`" in said
