"""`speechkit demo`: the embedded clips, transcribed now, beside what was really said. Prints text or JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit import demo, terminal
from speechkit.evaluation.metrics import wer

if TYPE_CHECKING:
    from collections.abc import Callable

    from speechkit.types import Transcript

__all__ = ["Heard", "next_steps", "run"]


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip: what was said, what the model heard, and how long that took."""

    clip: demo.DemoClip
    transcript: Transcript
    wall_s: float

    @property
    def wer(self) -> float:
        return wer(self.clip.text, self.transcript.text, self.clip.language)


def run(language: str, load: Callable[[], Any], as_json: bool = False, me: str = "speechkit") -> int:
    """Transcribe the clips of `language` with the recogniser that `load` returns, print, and return the exit status 0.

    The real-time factor leaves out the first pass over the first clip: that one also pays for torch's own set-up.
    Raises DataError for a language without clips, ModelError for a model that cannot be loaded.
    """
    paint = terminal.Paint.of(sys.stdout)
    clips = demo.clips(language)
    started = time.perf_counter()
    recognizer = load()
    loaded_s = time.perf_counter() - started
    recognizer.transcribe(clips[0].path)
    if not as_json:
        print(paint(f"speechkit demo: {len(clips)} embedded clips, model {recognizer.name}", "bold"))
        print(
            paint("synthetic voices that the model did not hear in training; loaded in " + f"{loaded_s:.1f} s\n", "dim")
        )
    heard = []
    for number, clip in enumerate(clips, 1):
        begun = time.perf_counter()
        transcript = recognizer.transcribe(clip.path)
        heard.append(Heard(clip, transcript, time.perf_counter() - begun))
        print(_row(heard[-1]) if as_json else _block(number, heard[-1], paint))
    print(_total_json(heard, loaded_s) if as_json else _total(heard, paint) + "\n" + next_steps(me, heard[0], paint))
    return 0


def next_steps(me: str, first: Heard, paint: terminal.Paint) -> str:
    """Three commands to try next, ready to paste; `me` is how this program is called from this shell."""
    steps = [
        ("your own recording, with subtitles", f"{me} transcribe YOUR.wav --format txt,srt --out transcripts"),
        ("a model for real speech (downloads 378 MB once)", f"{me} transcribe YOUR.wav --model en"),
        ("hear it and see it: the first notebook", f"{_beside(me, 'jupyter-lab')} notebooks/00_start.ipynb"),
    ]
    lines = [f"  {number}. {what}\n     {paint(command, 'cyan')}" for number, (what, command) in enumerate(steps, 1)]
    return "\n".join([paint("Next, try", "bold"), *lines])


def _beside(me: str, program: str) -> str:
    """Another program of the same environment."""
    head, slash, _ = me.partition(" ")[0].rpartition("/")
    return f"{head}{slash}{program}"


def _block(number: int, heard: Heard, paint: terminal.Paint) -> str:
    clip, transcript = heard.clip, heard.transcript
    title = f"{number}  {clip.path.name}  {clip.seconds:.1f} s  voice {clip.voice}"
    rate = paint(f"{100 * heard.wer:.1f} %", "green" if heard.wer == 0 else "yellow" if heard.wer < 0.2 else "red")
    lines = [
        terminal.heading(title, paint),
        terminal.wrap("heard", transcript.text or "(no speech)", paint),
        terminal.wrap("reference", clip.text, paint),
        terminal.words(transcript.words, paint),
        f"  {paint('WER'.ljust(12), 'dim')}{rate}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _figures(heard: list[Heard]) -> tuple[float, float, float]:
    """Total word error rate, seconds of audio, real-time factor."""
    sound = sum(row.transcript.duration_s for row in heard)
    rate = wer([row.clip.text for row in heard], [row.transcript.text for row in heard], heard[0].clip.language)
    return rate, sound, sum(row.wall_s for row in heard) / sound if sound else 0.0


def _total(heard: list[Heard], paint: terminal.Paint) -> str:
    rate, sound, factor = _figures(heard)
    faster = f", {1 / factor:.0f} times faster than the speech" if 0 < factor < 1 else ""
    return "\n".join(
        [
            terminal.heading("Total", paint),
            f"  {paint('WER'.ljust(20), 'dim')}{100 * rate:.1f} % over {len(heard)} clips, {sound:.1f} s",
            f"  {paint('real-time factor'.ljust(20), 'dim')}{factor:.3f}{faster}",
            "",
        ]
    )


def _row(heard: Heard) -> str:
    clip = heard.clip
    fixed = {"clip": clip.path.name, "voice": clip.voice, "reference": clip.text, "wer": round(heard.wer, 4)}
    return json.dumps({**fixed, "wall_s": heard.wall_s, "transcript": heard.transcript.to_dict()}, ensure_ascii=False)


def _total_json(heard: list[Heard], loaded_s: float) -> str:
    rate, sound, factor = _figures(heard)
    total = {"clips": len(heard), "audio_s": sound, "wer": rate, "real_time_factor": factor, "load_s": loaded_s}
    return json.dumps({"total": total})
