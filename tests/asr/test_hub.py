"""The Hub, played by sockets on this machine: refusing, silent, and answering like the real one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

LOAD = """
import sys
from speechkit.asr.hub import fetch
from speechkit.errors import ModelError
try:
    print(fetch(sys.argv[1]))
except ModelError as error:
    print("ModelError:", error)
"""


def fetch(endpoint: str, cache: Path, repo: str = "owner/model", **variables: str) -> str:
    """In its own process, because huggingface_hub reads its settings once. What it said; a minute is the limit."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    settings = {**inherited, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "*", **variables}
    command = [sys.executable, "-c", LOAD, repo]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_a_hub_that_refuses_is_reported_at_once_with_the_ways_to_work_offline(tmp_path: Path) -> None:
    said = fetch("http://127.0.0.1:9", tmp_path)
    assert "cannot be reached" in said and "owner/model is not in the local cache" in said
    assert 'load_asr("demo/en")' in said and "HF_HUB_OFFLINE=1" in said and "hf download owner/model" in said


def test_a_hub_that_accepts_and_says_nothing_is_given_up_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = fetch(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
    assert "cannot be reached" in said


def test_a_hub_that_answers_with_an_error_is_not_called_out_of_reach(tmp_path: Path) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503, "Service Unavailable")

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = fetch(f"http://127.0.0.1:{server.server_port}", tmp_path)
        server.shutdown()
    assert "answered with an error" in said and "503" in said and "cannot be reached" not in said


def test_offline_mode_says_so(tmp_path: Path) -> None:
    said = fetch("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith("ModelError: HF_HUB_OFFLINE is set, and owner/model is not in the local cache")


SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The calls that a download makes: what is in the repository, and each file."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        if not self.path.startswith(("/api/models/owner/model", "/owner/model/")):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if "/tree/" in self.path:
            rows = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.files.items()]
            data = json.dumps(rows).encode()
        elif self.path.startswith("/api"):
            siblings = [{"rfilename": name} for name in self.files]
            data = json.dumps({"id": "owner/model", "sha": SHA, "siblings": siblings}).encode()
        else:
            data = self.files[self.path.rpartition("/")[2]]
        self.send_response(200)
        for name, value in {"X-Repo-Commit": SHA, "ETag": f'"{hash(data):x}"', "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def test_only_what_is_needed_is_fetched_and_the_cache_serves_without_a_network(
    hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    endpoint, server = hub
    server.files = {
        name: name.encode()
        for name in ("config.json", "vocab.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
    }
    said = fetch(endpoint, tmp_path)
    assert sorted(path.name for path in Path(said).iterdir()) == ["config.json", "model.safetensors", "vocab.json"]
    assert fetch("http://127.0.0.1:9", tmp_path) == said
    assert fetch("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1") == said


def test_a_cache_that_cannot_be_written_is_not_called_a_hub_out_of_reach(
    hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    endpoint, server = hub
    server.files = {"config.json": b"{}", "model.safetensors": b"weights"}
    (tmp_path / "home").write_text("a file where the cache should be")
    said = fetch(endpoint, tmp_path / "home")
    assert said.startswith("ModelError: owner/model cannot be kept in the local cache") and "set HF_HOME" in said
    assert "cannot be reached" not in said


def test_old_weights_are_fetched_where_there_are_no_others(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, server = hub
    server.files = {"config.json": b"{}", "pytorch_model.bin": b"old"}
    assert (Path(fetch(endpoint, tmp_path)) / "pytorch_model.bin").read_bytes() == b"old"


def test_a_repository_without_weights_and_one_that_does_not_exist(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, server = hub
    server.files = {"README.md": b"soon"}
    assert "owner/model holds no model.safetensors" in fetch(endpoint, tmp_path)
    assert "the Hub has no public model 'owner/gone': check the spelling" in fetch(endpoint, tmp_path, "owner/gone")
