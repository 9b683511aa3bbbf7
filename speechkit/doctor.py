"""What works on this machine, and what to do about what does not. In: nothing. Out: a list of findings, text, JSON.

Each check is a small function that returns one Finding; one that crashes becomes a finding itself. Packages that have
been seen to crash on import (torchaudio, torchcodec, torch with a broken driver) are imported in a child process.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from speechkit.terminal import Paint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Finding", "exit_status", "report", "run", "to_json"]

HUB_TIMEOUT_S = 2.5
IMPORT_TIMEOUT_S = 120.0  # a first import from a cold network disk can take a minute
SMALLEST_TORCHAO = (0, 16)  # peft 0.19 and later refuse to load beside an older one
ROOM_WANTED = 5 * 2**30  # bytes: a large model, its converted copy, and some results
_SIGNS = {"ok": ("✓", "OK", "green"), "warn": ("!", "warn", "yellow"), "fail": ("✗", "FAIL", "red")}
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `ok`, `warn` (a feature is missing) or `fail` (transcribing cannot work), and what to do."""

    name: str
    status: Status
    detail: str
    next_step: str = ""


def run() -> list[Finding]:
    """All checks, in the order in which one would read them. Never raises; takes a few seconds, most of it torch."""
    findings = []
    for name, check in CHECKS.items():
        try:
            findings.append(check(name))
        except Exception as error:  # a doctor that dies tells nothing about the rest
            detail = f"the check itself failed: {type(error).__name__}: {error}"
            findings.append(Finding(name, "warn", detail, "please report this line"))
    return findings


def exit_status(findings: Sequence[Finding]) -> int:
    """0 where nothing failed (warnings are allowed), 1 otherwise."""
    return 1 if any(finding.status == "fail" for finding in findings) else 0


def to_json(findings: Sequence[Finding]) -> str:
    """`{"ok": bool, "findings": [{"name", "status", "detail", "next_step"}, …]}`."""
    rows = [asdict(finding) for finding in findings]
    return json.dumps({"ok": exit_status(findings) == 0, "findings": rows}, ensure_ascii=False, indent=2)


def report(findings: Sequence[Finding], paint: Paint | None = None) -> str:
    """One aligned line per finding, the next step indented under it, and a sum."""
    paint = paint or Paint(False)
    size = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        sign, word, style = _SIGNS[finding.status]
        mark = paint(f"{sign} {word:<5}", style)
        lines.append(f"{mark} {finding.name.ljust(size)}  {finding.detail}")
        if finding.next_step:
            lines.append(f"        → {finding.next_step}")  # never wrapped: it may hold a command to copy
    counts = {status: sum(finding.status == status for finding in findings) for status in _SIGNS}
    verdict = "not ready" if counts["fail"] else "ready to transcribe"
    lines += ["", f"{verdict}: {counts['ok']} OK, {counts['warn']} warn, {counts['fail']} FAIL"]
    return "\n".join(lines)


def _python(name: str) -> Finding:
    detail = f"{sys.version.split()[0]} ({sys.executable})"
    numbers = tuple(sys.version_info[:2])
    if numbers < (3, 11):
        return Finding(name, "fail", detail, "speechkit needs Python 3.11, 3.12 or 3.13: make an environment with one")
    if numbers > (3, 13):
        return Finding(name, "warn", detail, "tested with Python 3.11 to 3.13 only")
    return Finding(name, "ok", detail)


_TORCH_PROBE = """
import json, torch
found = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
gpus = [[torch.cuda.get_device_name(n), *torch.cuda.get_device_capability(n)] for n in found]
mps = bool(getattr(torch.backends, "mps", None) and torch.backends.mps.is_available())
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": gpus,
                  "mps": mps, "archs": torch.cuda.get_arch_list() if gpus else [], "threads": torch.get_num_threads()}))
"""


def _torch(name: str) -> Finding:
    done = _child(_TORCH_PROBE)
    if done.returncode != 0:
        return Finding(
            name, "fail", f"does not import: {_last_line(done)}", 'pip install --upgrade "torch>=2.11,<2.15"'
        )
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    build = f"CUDA {seen['cuda']}" if seen["cuda"] else f"ROCm {seen['hip']}" if seen["hip"] else "CPU"
    head = f"{seen['version']} ({build} build)"
    numbers = tuple(int(part) for part in seen["version"].split("+")[0].split(".")[:2])
    if not (2, 11) <= numbers < (2, 15):
        return Finding(name, "fail", head, 'pip install "torch>=2.11,<2.15"')
    if seen["gpus"]:
        cards = ", ".join(f"{card} (compute capability {major}.{minor})" for card, major, minor in seen["gpus"])
        known = {arch.removeprefix("sm_") for arch in seen["archs"]}
        old = [card for card, major, minor in seen["gpus"] if known and not _serves(known, major, minor)]
        if old:
            step = f"this build has no code for {', '.join(old)}: install a torch build for it, or use --device cpu"
            return Finding(name, "warn", f"{head}, {cards}", step)
        return Finding(name, "ok", f"{head}, {cards}")
    device = "Apple GPU (mps)" if seen["mps"] else "no GPU: runs on the CPU"
    return Finding(name, "ok", f"{head}, {device}")


def _serves(archs: set[str], major: int, minor: int) -> bool:
    """Code for compute capability x.y runs on every x.z with z ≥ y (CUDA C++ Programming Guide, 3.1.2)."""
    codes = [arch for arch in archs if arch.isdigit()]
    return any(int(code[:-1]) == major and int(code[-1]) <= minor for code in codes)


def _transformers(name: str) -> Finding:
    found = _version_of("transformers")
    if found is None:
        return Finding(name, "fail", "not installed", 'pip install "transformers>=5.15,<6"')
    if not (5, 15) <= _numbers(found) < (6, 0):
        return Finding(name, "fail", found, 'pip install "transformers>=5.15,<6"')
    return Finding(name, "ok", found)


def _torchaudio(name: str) -> Finding:
    step = "pip uninstall torchaudio, or install the build that matches your torch: beside it transformers cannot load"
    return _import_probe(name, "torchaudio", "fail", step)


def _torchcodec(name: str) -> Finding:
    step = "speechkit does not need it; pip uninstall torchcodec if another package fails to import"
    return _import_probe(name, "torchcodec", "warn", step)


def _import_probe(name: str, module: str, broken: Status, step: str) -> Finding:
    """Installed and importable are two things: a package built for another torch is found, then dies on import."""
    found = _version_of(module)
    if found is None:
        return Finding(name, "ok", "not installed (optional)")
    done = _child(f"import {module}")
    if done.returncode == 0:
        return Finding(name, "ok", f"{found}, imports")
    return Finding(name, broken, f"{found} is installed but does not import: {_last_line(done)}", step)


def _torchao(name: str) -> Finding:
    torchao, peft = _version_of("torchao"), _version_of("peft")
    if torchao is None:
        return Finding(name, "ok", "not installed (optional)")
    beside = f"{torchao}, peft {peft or 'not installed'}"
    if _numbers(torchao) < SMALLEST_TORCHAO and (peft is None or _numbers(peft) >= (0, 19)):
        step = 'peft 0.19 and later refuse it: pip install --no-deps -U "torchao>=0.16", or uninstall torchao'
        return Finding(name, "warn", beside, step)
    return Finding(name, "ok", beside)


def _triton(name: str) -> Finding:
    found = _version_of("triton")
    if found is None:
        return Finding(name, "warn", "not installed", "only the kernels need it (Linux: pip install triton)")
    return Finding(name, "ok", found)


def _ipywidgets(name: str) -> Finding:
    found = _version_of("ipywidgets")
    if found is None:
        return Finding(name, "warn", "not installed", "the notebooks need it: pip install ipywidgets")
    if _numbers(found) < (7, 7):
        return Finding(name, "warn", found, "the player needs 7.7 or 8: pip install -U ipywidgets")
    return Finding(name, "ok", f"{found} (7.7 and 8 both work)")


def _decode(name: str) -> Finding:
    """Write and read half a second of a tone in memory, in each format, without ffmpeg."""
    import numpy as np
    import soundfile

    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    kinds = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "OPUS", "MP3": "MPEG_LAYER_III"}
    lost = []
    for kind, coding in kinds.items():
        try:
            buffer = io.BytesIO()
            soundfile.write(buffer, tone, 16000, format=kind, subtype=coding)
            back, _ = soundfile.read(io.BytesIO(buffer.getvalue()))
            if not len(back) or not 0.1 < np.abs(back).max() < 1.0:
                lost.append(f"{kind} (decodes to something else)")
        except (RuntimeError, TypeError, ValueError) as error:
            lost.append(f"{kind} ({error})")
    library = soundfile.__libsndfile_version__
    if lost:
        status: Status = "fail" if any(entry.startswith("WAV") for entry in lost) else "warn"
        return Finding(name, status, f"libsndfile {library} cannot do {', '.join(lost)}", "pip install -U soundfile")
    m4a = "m4a, aac, webm too" if importlib.util.find_spec("av") else 'm4a, aac, webm: pip install "speechkit[av]"'
    return Finding(name, "ok", f"WAV, FLAC, Opus, MP3 without ffmpeg (libsndfile {library}); {m4a}")


def _model(name: str) -> Finding:
    from speechkit import demo

    step = "reinstall speechkit, or make it: python -m speechkit.demo.recipes.asr --language en"
    try:
        folder = demo.model_path("en")
    except Exception as error:
        return Finding(name, "fail", str(error), step)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    probe = "from speechkit.asr.model import load_asr; import numpy; load_asr('demo/en', device='cpu')"
    done = _child(f"{probe}.transcribe(numpy.zeros(16000, 'float32'))")
    if done.returncode != 0:
        return Finding(name, "fail", f"demo/en does not load: {_last_line(done)}", step)
    return Finding(name, "ok", f"demo/en loads and runs ({size / 1e6:.1f} MB)")


def _cpu(name: str) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    if limit and limit.isdigit() and int(limit) < cores:
        return Finding(name, "ok", f"{cores} usable cores, torch held to {limit} by OMP_NUM_THREADS")
    return Finding(name, "ok", f"{cores} usable cores")


def _disk(name: str) -> Finding:
    from huggingface_hub import constants

    places = {Path(constants.HF_HUB_CACHE): "models", Path.cwd(): "here"}
    parts, tight = [], False
    for place, what in places.items():
        there = next(folder for folder in [place, *place.parents] if folder.exists())
        free = shutil.disk_usage(there).free
        tight = tight or free < ROOM_WANTED
        parts.append(
            f"{free / 2**30:.1f} GiB free for {what} ({place})"
            if what == "models"
            else f"{free / 2**30:.1f} GiB {what}"
        )
    step = "large models take 1 to 5 GiB: free some space, or set HF_HOME to a larger disk" if tight else ""
    return Finding(name, "warn" if tight else "ok", ", ".join(parts), step)


def _hub(name: str) -> Finding:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding(name, "ok", "offline by choice (HF_HUB_OFFLINE is set): embedded and cached models only")
    address = urlsplit(constants.ENDPOINT)
    proxy = next((key for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(key)), None)
    target = urlsplit(os.environ[proxy]) if proxy else address
    host, port = target.hostname or "", target.port or (80 if target.scheme == "http" else 443)
    through = f" through the proxy of {proxy}" if proxy else ""
    try:
        socket.create_connection((host, port), timeout=HUB_TIMEOUT_S).close()
    except OSError as error:
        detail = f"{address.hostname} cannot be reached{through}: {error.__class__.__name__} ({error})"
        step = "embedded and cached models work without it; set HF_HUB_OFFLINE=1 to skip the attempts"
        return Finding(name, "warn", detail, step)
    return Finding(name, "ok", f"{address.hostname} can be reached{through}")


def _token(name: str) -> Finding:
    """Where a token would come from, in the order huggingface_hub looks; never the token."""
    from huggingface_hub import constants, utils

    file = Path(constants.HF_TOKEN_PATH)
    for variable in ("HF_OIDC_RESOURCE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable, "").strip():
            return Finding(name, "ok", f"from the environment variable {variable}")
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace").strip():
        return Finding(name, "ok", f"from the file {file}")
    # not looked into: Colab would ask the user for access there and then
    if utils.is_google_colab():  # type: ignore[attr-defined]
        return Finding(name, "ok", "from the secret HF_TOKEN of Colab, where there is one that this notebook may read")
    return Finding(name, "ok", "none: public models need none (for gated ones: hf auth login)")


CHECKS: dict[str, Callable[[str], Finding]] = {
    "Python": _python,
    "torch": _torch,
    "transformers": _transformers,
    "embedded model": _model,
    "audio decoding": _decode,
    "torchaudio": _torchaudio,
    "torchcodec": _torchcodec,
    "torchao": _torchao,
    "triton": _triton,
    "ipywidgets": _ipywidgets,
    "CPU": _cpu,
    "disk": _disk,
    "Hugging Face Hub": _hub,
    "Hub token": _token,
}


def _child(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter like this one; a crash or a hang there is a result here."""
    command = [sys.executable, "-c", code]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {IMPORT_TIMEOUT_S:.0f} s")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}" + (f" after: {lines[-1]}" if lines else "")
    return lines[-1] if lines else f"exit status {done.returncode}"


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, int]:
    """Major and minor version; (0, 0) for what is not numbers."""
    parts = text.split("+")[0].split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else (0, 0)
