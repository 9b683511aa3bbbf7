"""What `import speechkit` gives and costs."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module

import pytest

import speechkit


def python(code: str) -> str:
    """Run `code` in a fresh interpreter; its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fastest(code: str, runs: int = 7) -> float:
    """Seconds of the fastest of several fresh interpreters: what the code costs when nothing else disturbs."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        python(code)
        times.append(time.perf_counter() - start)
    return min(times)


def test_the_public_names_are_these_and_at_most_ten() -> None:
    assert speechkit.__all__ == [
        "FileResult",
        "Recognizer",
        "SpeechkitError",
        "Transcript",
        "Word",
        "__version__",
        "load_asr",
        "load_llm",
    ]
    assert len(speechkit.__all__) <= 10


def test_every_public_name_can_be_had() -> None:
    for name in speechkit.__all__:
        assert getattr(speechkit, name) is not None


def test_submodules_are_there_after_a_plain_import() -> None:
    code = "import speechkit; print(speechkit.audio.SAMPLE_RATE, speechkit.text.normalize('A!'))"
    assert python(code) == "16000 a"


def test_every_submodule_that_dir_lists_can_be_imported() -> None:
    modules = sorted(set(dir(speechkit)) - set(speechkit.__all__))
    assert modules
    for name in modules:
        assert getattr(speechkit, name) is import_module(f"speechkit.{name}")


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'transcribe'; it has .*load_asr"):
        _ = speechkit.transcribe


def test_the_version_is_the_installed_one() -> None:
    assert speechkit.__version__.split(".")[0].isdecimal()


def test_import_takes_under_300_ms_beyond_the_interpreter() -> None:
    assert fastest("import speechkit") - fastest("pass") < 0.3


def test_import_and_the_light_modules_bring_no_torch() -> None:
    code = """
import sys
import speechkit
from speechkit import Transcript, SpeechkitError, audio, text, device, extras, subtitles
print(sorted(name for name in ("torch", "transformers", "triton", "ipywidgets") if name in sys.modules))
"""
    assert python(code) == "[]"


def test_evaluation_and_widgets_bring_no_torch() -> None:
    code = """
import pkgutil, sys
from importlib import import_module
for package in ("speechkit.evaluation", "speechkit.widgets"):
    for module in pkgutil.iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")
print("torch" in sys.modules)
"""
    assert python(code) == "False"


def test_the_table_of_language_models_brings_no_torch() -> None:
    code = """
import sys
import speechkit.llm
from speechkit.llm import context, files, hub, precision, quant, registry, repairs
registry.resolve("qwen3-0.6b")
print(sorted(name for name in ("torch", "transformers", "triton") if name in sys.modules))
"""
    assert python(code) == "[]"


def test_import_prints_nothing_and_leaves_the_environment_alone() -> None:
    code = "import os; before = dict(os.environ); import speechkit.audio; assert dict(os.environ) == before"
    assert python(code) == ""


def test_the_speech_half_imports_without_triton_and_bitsandbytes() -> None:
    code = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("triton", "bitsandbytes"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from speechkit import load_asr, Recognizer
import speechkit.asr.model, speechkit.audio, speechkit.cli, speechkit.evaluation.metrics
recognizer = load_asr("demo/en", device="cpu")
clip = speechkit.demo.clips("en")[0]
print(len(recognizer.transcribe(clip.path).words) > 0)
"""
    assert python(code) == "True"
