"""`speechkit.doctor`: on this machine, and on machines made worse through fake packages and closed doors."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from speechkit import doctor
from speechkit.doctor import Finding
from speechkit.terminal import Paint

HERE = Path(__file__).parents[1]


def look(name: str, **environment: str) -> Finding:
    """One check in a fresh interpreter; `environment` is set there, "" removes."""
    code = f"from speechkit import doctor; print(doctor.to_json([doctor.CHECKS[{name!r}]({name!r})]))"
    fresh = {key: value for key, value in {**os.environ, **environment}.items() if value}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=fresh, cwd=HERE, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return Finding(**json.loads(done.stdout)["findings"][0])


def fake(folder: Path, package: str, number: str, source: str = "") -> str:
    """Put a package of this name and version in front of the installed one → PYTHONPATH."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(textwrap.dedent(source))
    info = folder / f"{package}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


def test_this_machine_is_looked_at_whole_and_can_transcribe():
    findings = doctor.run()
    assert [finding.name for finding in findings] == list(doctor.CHECKS)
    failed = [finding for finding in findings if finding.status == "fail"]
    assert not failed, doctor.report(findings)
    assert not [finding for finding in findings if "the check itself failed" in finding.detail]
    assert all(finding.next_step for finding in findings if finding.status != "ok")


def test_versions_are_those_of_the_running_packages():
    import torch
    import transformers

    found = {name: doctor.CHECKS[name](name).detail for name in ("Python", "torch", "transformers")}
    assert found["Python"].startswith(sys.version.split()[0])
    assert found["torch"].startswith(torch.__version__)
    assert found["transformers"] == transformers.__version__


@pytest.mark.parametrize(
    ("source", "told"),
    [
        pytest.param("raise OSError('libcudart.so.13: cannot open')", "libcudart.so.13: cannot open", id="raises"),
        pytest.param("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11", id="crashes"),
        pytest.param("import sys; sys.exit(3)", "exit status 3", id="exits"),
    ],
)
@pytest.mark.parametrize(("package", "status"), [("torchaudio", "fail"), ("torchcodec", "warn")])
def test_a_package_that_dies_on_import_is_a_finding(tmp_path, package, status, source, told):
    found = look(package, PYTHONPATH=fake(tmp_path, package, "2.11.0", source))
    assert found.status == status
    assert found.detail.startswith("2.11.0 is installed but does not import") and told in found.detail
    assert "pip uninstall" in found.next_step


def test_a_torch_that_does_not_import_fails_with_the_reason(tmp_path):
    found = look("torch", PYTHONPATH=fake(tmp_path, "torch", "2.12.0", "raise ImportError('no libcuda here')"))
    assert (found.status, "no libcuda here" in found.detail) == ("fail", True)
    assert found.next_step == 'pip install --upgrade "torch>=2.11,<2.15"'


@pytest.mark.parametrize(
    ("package", "number", "name", "status", "step"),
    [
        pytest.param(
            "torchao", "0.10.0", "torchao", "warn", 'pip install --no-deps -U "torchao>=0.16"', id="torchao before 0.16"
        ),
        pytest.param("torchao", "0.16.0", "torchao", "ok", "", id="torchao from 0.16"),
        pytest.param("ipywidgets", "7.7.1", "ipywidgets", "ok", "", id="Colab's ipywidgets"),
        pytest.param(
            "ipywidgets", "7.5.0", "ipywidgets", "warn", "pip install -U ipywidgets", id="ipywidgets before 7.7"
        ),
        pytest.param(
            "transformers", "4.57.0", "transformers", "fail", 'pip install "transformers>=5.15,<6"', id="transformers 4"
        ),
        pytest.param(
            "transformers", "6.0.0", "transformers", "fail", 'pip install "transformers>=5.15,<6"', id="transformers 6"
        ),
    ],
)
def test_a_version_is_judged(tmp_path, package, number, name, status, step):
    found = look(name, PYTHONPATH=fake(tmp_path, package, number))
    assert found.status == status and number in found.detail
    assert step in found.next_step


def test_decoding_works_without_ffmpeg():
    found = look("audio decoding", PATH=str(Path(sys.executable).parent))  # no ffmpeg on this path
    assert found.status == "ok", found
    assert "WAV, FLAC, Opus, MP3 without ffmpeg" in found.detail


def _local_server() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.listen()
    return server


NO_PROXY = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"), "")


def test_a_hub_that_answers_is_ok():
    with _local_server() as server:
        found = look("Hugging Face Hub", **NO_PROXY, HF_ENDPOINT=f"http://127.0.0.1:{server.getsockname()[1]}")
    assert (found.status, found.detail) == ("ok", "127.0.0.1 can be reached")


def test_a_hub_that_does_not_answer_is_a_warning_with_the_way_offline():
    with _local_server() as server:
        port = server.getsockname()[1]
    found = look("Hugging Face Hub", **NO_PROXY, HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert found.status == "warn" and "cannot be reached: ConnectionRefusedError" in found.detail
    assert "set HF_HUB_OFFLINE=1" in found.next_step


def test_offline_by_choice_is_no_warning():
    found = look("Hugging Face Hub", HF_HUB_OFFLINE="1")
    assert found.status == "ok" and "offline by choice" in found.detail


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_is_named_by_its_source_and_never_shown(tmp_path, variable):
    blank = {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "", "HF_HOME": str(tmp_path)}
    found = look("Hub token", **{**blank, variable: "hf_verysecret"})
    assert found.detail == f"from the environment variable {variable}"
    assert "verysecret" not in repr(found)


def test_a_token_file_is_named_and_never_shown(tmp_path):
    (tmp_path / "token").write_text("hf_verysecret\n")
    found = look("Hub token", HF_TOKEN="", HUGGING_FACE_HUB_TOKEN="", HF_TOKEN_PATH="", HF_HOME=str(tmp_path))
    assert found.detail == f"from the file {tmp_path / 'token'}"
    assert "verysecret" not in repr(found)


def test_in_colab_its_secrets_are_the_last_source_and_are_not_opened(tmp_path, monkeypatch):
    from huggingface_hub import constants, utils

    for variable in ("HF_OIDC_RESOURCE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(utils, "is_google_colab", lambda: True)
    monkeypatch.setattr(utils, "get_token", None, raising=False)  # asking would open Colab's dialogue
    assert "the secret HF_TOKEN of Colab" in doctor._token("Hub token").detail
    (tmp_path / "token").write_text("hf_verysecret")
    assert doctor._token("Hub token").detail == f"from the file {tmp_path / 'token'}"


def test_no_token_is_fine(tmp_path):
    found = look("Hub token", HF_TOKEN="", HUGGING_FACE_HUB_TOKEN="", HF_TOKEN_PATH="", HF_HOME=str(tmp_path))
    assert found.status == "ok" and found.detail.startswith("none: public models need none")


def test_a_check_that_breaks_is_a_warning_and_the_others_go_on(monkeypatch):
    def broken(name: str) -> Finding:
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "CHECKS", {"first": broken, "second": lambda name: Finding(name, "ok", "fine")})
    first, second = doctor.run()
    assert (first.status, first.detail) == ("warn", "the check itself failed: RuntimeError: boom")
    assert second.status == "ok"


@pytest.mark.parametrize(
    ("statuses", "expected"), [(("ok", "ok"), 0), (("ok", "warn"), 0), (("warn", "fail"), 1), ((), 0)]
)
def test_only_a_failure_changes_the_exit_status(statuses, expected):
    assert doctor.exit_status([Finding("x", status, "") for status in statuses]) == expected


def test_the_report_is_aligned_and_says_more_than_colour():
    findings = [Finding("a", "ok", "fine"), Finding("longer", "warn", "hm", "do this"), Finding("b", "fail", "no")]
    lines = doctor.report(findings).splitlines()
    assert lines[0].index("fine") == lines[1].index("hm") == lines[3].index("no")
    assert [lines[0][:4], lines[1][:6], lines[3][:6]] == ["✓ OK", "! warn", "✗ FAIL"]
    assert lines[2].strip() == "→ do this" and lines[2].startswith("     ")
    assert lines[-1] == "not ready: 1 OK, 1 warn, 1 FAIL"
    assert "\x1b[31m✗ FAIL" in doctor.report(findings, Paint(True))


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ({"75", "80", "90"}, (7, 5), True),
        ({"75", "80", "90"}, (8, 9), True),
        ({"75", "80", "90"}, (7, 0), False),
        ({"75", "80", "90"}, (10, 0), False),
        ({"90", "100", "120"}, (12, 0), True),
    ],
)
def test_a_build_serves_its_own_major_generation_from_its_minor_on(archs, capability, runs):
    assert doctor._serves(archs, *capability) is runs
