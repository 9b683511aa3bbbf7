"""Start-up, speed and memory of the speech half on this machine; each figure is measured now, in fresh processes.

    python kernels/bench/speech_cli.py            about a minute and a half
    python kernels/bench/speech_cli.py --quick    without the hour of audio
    python kernels/bench/speech_cli.py --json     for a table elsewhere

Whole-process times are the best of a few runs, so with files in the page cache; the very first run after an
installation also reads about 2 GB of torch from disk, which is printed where this script happens to see it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RATE = 16000

# the steps of `speechkit transcribe CLIP`, in its own order, each with a clock around it
STEPS = """
import sys, time
clock = time.perf_counter
marks = [("", clock())]
def mark(name): marks.append((name, clock()))
import speechkit, speechkit.cli, speechkit.asr.files;   mark("import speechkit, command line")
import torch;                                           mark("import torch")
from speechkit.asr.model import load_asr;               mark("import transformers' parts")
recognizer = load_asr("demo/en", device="cpu");         mark("load model")
from speechkit import audio
samples = audio.load(sys.argv[1]);                      mark("read audio")
transcript = recognizer.transcribe(samples);            mark("first forward, decode")
recognizer.transcribe(samples);                         mark("(second forward, decode)")
import pathlib
pathlib.Path(sys.argv[2]).write_text(transcript.text);  mark("write")
import json
print(json.dumps([[name, end - start] for (_, start), (name, end) in zip(marks, marks[1:])]))
"""

# the real command line in this process, then the most memory it ever held (VmHWM, kB → MiB)
PEAK = """
import sys
from speechkit.cli import main
status = main(["transcribe", sys.argv[1], "--out", sys.argv[2], "--device", "cpu"])
line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(status, int(line.split()[1]) / 1024)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the hour of audio")
    parser.add_argument("--runs", type=int, default=3, help="runs per whole-process figure (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    say = (lambda *_: None) if options.json else print
    figures: dict[str, Any] = {"machine": _machine()}
    say(f"{figures['machine']}\n")
    with tempfile.TemporaryDirectory() as folder:
        figures["start"] = start_up(Path(folder), options.runs)
        say(_start_text(figures["start"]))
        figures["speed"] = speed()
        say(_speed_text(figures["speed"]))
        if Path("/proc/self/status").exists():
            figures["memory"] = memory(Path(folder), quick=options.quick)
            say(_memory_text(figures["memory"]))
    if options.json:
        print(json.dumps(figures, indent=2))
    return 0


def start_up(folder: Path, runs: int) -> dict[str, Any]:
    """Whole-process seconds of small commands, and where those of `transcribe` go."""
    clip = _clip()
    whole = {
        "python -c pass": ["-c", "pass"],
        "import speechkit": ["-c", "import speechkit"],
        "speechkit --help": ["-m", "speechkit", "--help"],
        "speechkit transcribe CLIP": ["-m", "speechkit", "transcribe", str(clip), "--device", "cpu"],
    }
    times = {name: [_run(command)[0] for _ in range(runs)] for name, command in whole.items()}
    steps: list[list[Any]] = json.loads(_run(["-c", STEPS, str(clip), str(folder / "out.txt")])[1].splitlines()[-1])
    return {"clip": clip.name, "seconds": times, "steps": steps}


def speed() -> dict[str, float]:
    """Real-time factor of demo/en over all its clips, one by one, after a warm-up."""
    code = (
        "import json, time; from speechkit import demo, load_asr\n"
        "clips = demo.clips('en'); r = load_asr('demo/en', device='cpu'); r.transcribe(clips[0].path)\n"
        "begun = time.perf_counter(); found = [r.transcribe(clip.path) for clip in clips]\n"
        "wall = time.perf_counter() - begun; sound = sum(t.duration_s for t in found)\n"
        "import torch; print(json.dumps(dict(audio_s=sound, wall_s=wall, factor=wall / sound,"
        " threads=torch.get_num_threads())))"
    )
    result: dict[str, float] = json.loads(_run(["-c", code])[1].splitlines()[-1])
    return result


def memory(folder: Path, quick: bool) -> dict[str, Any]:
    """Peak MiB of the process for one minute and for one hour of the same speech, and the seconds each took."""
    rows = {}
    for name, seconds in {"one minute": 60, "one hour": 3600}.items():
        if quick and seconds > 60:
            continue
        audio = _speech(folder / f"{seconds}.wav", seconds)
        wall, out = _run(["-c", PEAK, str(audio), str(folder / f"out-{seconds}")])
        status, peak = out.splitlines()[-1].split()
        if status != "0":
            raise SystemExit(f"transcribing {name} ended with status {status}")
        rows[name] = {"audio_s": seconds, "wall_s": wall, "peak_mib": float(peak)}
    return rows


def _run(arguments: list[str]) -> tuple[float, str]:
    """Seconds and output of a fresh interpreter with these arguments."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    wall = time.perf_counter() - begun
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)[:200]} failed:\n{done.stderr[-2000:]}")
    return wall, done.stdout


def _clip() -> Path:
    from speechkit import demo

    return demo.clips("en")[0].path


def _speech(path: Path, seconds: int) -> Path:
    """A 16-bit file of this length: the embedded clips with half a second between them, over and over."""
    import numpy as np
    import soundfile

    from speechkit import audio, demo

    pause = np.zeros(RATE // 2, np.float32)
    round_of_clips = np.concatenate([part for clip in demo.clips("en") for part in (audio.load(clip.path), pause)])
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        left = seconds * RATE
        while left > 0:
            file.write(round_of_clips[:left])
            left -= len(round_of_clips)
    return path


def _machine() -> str:
    import importlib.metadata as metadata

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    python, today = platform.python_version(), time.strftime("%Y-%m-%d")
    return f"{cores} cores ({platform.machine()}), Python {python}, {versions}, {today}"


def _start_text(figures: dict[str, Any]) -> str:
    lines = ["whole process, seconds (best of the runs; first in brackets)"]
    lines += [f"  {name:<28} {min(t):6.2f}  ({t[0]:.2f})" for name, t in figures["seconds"].items()]
    interpreter = min(figures["seconds"]["python -c pass"])
    lines += ["", "where `speechkit transcribe` spends it", f"  {'interpreter':<32} {interpreter:6.2f}"]
    lines += [f"  {name:<32} {seconds:6.2f}" for name, seconds in figures["steps"]]
    return "\n".join([*lines, ""])


def _speed_text(figures: dict[str, float]) -> str:
    factor = figures["factor"]
    return (
        f"demo/en on the CPU, {figures['threads']} threads: {figures['audio_s']:.1f} s of speech in "
        f"{figures['wall_s']:.2f} s, real-time factor {factor:.4f} ({1 / factor:.0f} times faster)\n"
    )


def _memory_text(rows: dict[str, Any]) -> str:
    lines = ["peak memory of `speechkit transcribe FILE --out DIR`"]
    lines += [f"  {name:<12} {row['peak_mib']:7.0f} MiB in {row['wall_s']:6.1f} s" for name, row in rows.items()]
    if len(rows) == 2:
        grown = rows["one hour"]["peak_mib"] - rows["one minute"]["peak_mib"]
        lines.append(f"  one hour takes {grown:.0f} MiB more than one minute (wanted: at most 1024)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
