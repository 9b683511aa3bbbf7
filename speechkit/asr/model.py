"""A loaded CTC model that transcribes: audio in, `Transcript` or log-probabilities out. The seam where torch begins.

Every input, whatever its length, goes one way: blocks → windows (a short clip is one window) → length-sorted batches →
frames joined again per input. So a list may mix a command word with an hour-long recording, in constant memory.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speechkit import audio as audio_in
from speechkit.asr import batch, checkpoint, decode, hub, longform, masks, registry
from speechkit.asr.frames import FrameGrid
from speechkit.device import choose_device, choose_dtype
from speechkit.errors import AudioError, ModelError
from speechkit.types import FileResult, Transcript, Word

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.check import Check

    Samples = NDArray[np.float32]

__all__ = ["ENGINES", "Recognizer", "load_asr"]

ENGINES = ("auto", "torch")
SILENT_PEAK = 1e-4  # -80 dBFS, three steps of 16-bit audio: below it is dither, which normalisation would blow up
CLIPPED_LEVEL, CLIPPED_SHARE = 0.99, 0.01
SHORT_S = 0.3  # a syllable; below it there is hardly anything to hear a word in
POOL = 8  # budgets' worth of windows collected before sorting: enough to fill batches, little enough to hold


def load_asr(
    name: str | os.PathLike[str] = "demo/en", device: str = "auto", dtype: str = "auto", engine: str = "auto"
) -> Recognizer:
    """Load a CTC model by short name ("demo/en", "en", "zh", …), Hub id or folder.

    device: "auto", "cpu", "cuda", …; dtype: "auto", "float32", "float16", "bfloat16"; engine: "auto" or "torch".
    Raises ModelError (unknown name, Hub out of reach, no weights, wrong architecture, vocabulary ≠ head) or PlanError
    (no such device or dtype).
    """
    if engine not in ENGINES:
        raise ModelError(f"engine is {engine!r}; it can be {' or '.join(repr(known) for known in ENGINES)}")
    source = registry.resolve(name)
    where = choose_device(device).value
    kind = choose_dtype(where, dtype).value
    folder = hub.fetch(source.location) if source.kind == "hub" else Path(source.location)
    return Recognizer(checkpoint.read(folder, kind), source.name, source.language, where)


class Recognizer:
    """A CTC model with its tokenizer, ready to transcribe. Use :func:`load_asr` to get one.

    `hop_samples` and `field_samples` are the frame grid; `frame_budget` (padded frames per batch), `window_s` and
    `overlap_s` (per side of a seam) may be set. Calls from several threads take turns.
    """

    def __init__(
        self, parts: checkpoint.Checkpoint, name: str, language: str | None = None, device: str = "cpu"
    ) -> None:
        self.name, self.language, self.device = name, language, device
        self.identity = f"{name} {parts.identity}".strip()  # what a resumed batch compares
        self.model = parts.model.to(device)
        self.tokenizer, self.extractor, self.config = parts.tokenizer, parts.extractor, parts.config
        self.dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        self.grid = FrameGrid.from_config(self.config)
        self.alphabet = decode.Alphabet.from_tokenizer(self.tokenizer, int(self.config.vocab_size))
        ragged = checkpoint.ARCHITECTURES.get(self.config.model_type, False)
        slack = batch.default_slack(device, sum(weight.numel() for weight in self.model.parameters()))
        self.batcher = batch.Batcher(self.grid, batch.default_budget(device), ragged, slack)
        self.window_s, self.overlap_s = 30.0, 2.0
        self._lock = threading.Lock()  # the masked group norm is told the lengths of one batch at a time
        masks.attach(self.model)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        return (
            f"Recognizer({self.name!r}, {self.config.model_type}, {size:.1f} M weights, {self.dtype} on {self.device})"
        )

    @property
    def hop_samples(self) -> int:
        return self.grid.hop

    @property
    def field_samples(self) -> int:
        return self.grid.field

    @property
    def frame_budget(self) -> int:
        return self.batcher.frame_budget

    @frame_budget.setter
    def frame_budget(self, frames: int) -> None:
        self.batcher.frame_budget = frames

    @property
    def processor(self) -> Any:
        """Tokenizer and feature extractor as one transformers processor."""
        from transformers import Wav2Vec2Processor

        return Wav2Vec2Processor(feature_extractor=self.extractor, tokenizer=self.tokenizer)

    def transcribe(self, audio: Any, *, words: bool = True) -> Any:
        """Whatever `audio.load` takes → Transcript; a list of such → list of Transcripts in the same order.

        `words=False` leaves the words out (their mean confidence stays). Raises AudioError for audio that cannot be
        read or is shorter than one frame (in a list, with the item's number); silence is an empty transcript, not an
        error.
        """
        items = audio if isinstance(audio, list) else [audio]
        meters = [_Meter() for _ in items]
        paths = self._through(items, meters, self._best, self._blank)
        spoken = [self._transcript(self._joined(p), m, words) for p, m in zip(paths, meters, strict=True)]
        return spoken if isinstance(audio, list) else spoken[0]

    def log_probs(self, audio: Any) -> Any:
        """Whatever `audio.load` takes → (F, V) float32, natural log; a list of such → a list in the same order.

        Audio longer than `window_s` is computed in windows and joined; the array still grows with its length.
        """
        items = audio if isinstance(audio, list) else [audio]
        rows = self._through(items, [_Meter() for _ in items], self.forward)
        joined = [np.concatenate(parts) for parts in rows]
        return joined if isinstance(audio, list) else joined[0]

    def transcribe_files(
        self, paths: Any, out: str | os.PathLike[str] | None = None, resume: bool = True, **options: Any
    ) -> Iterator[FileResult]:
        """Many files → one `FileResult` each; see :func:`speechkit.asr.files.transcribe_files` for the options."""
        from speechkit.asr.files import transcribe_files

        return iter(transcribe_files(self, paths, out=out, resume=resume, **options))

    def self_check(self) -> Check:
        """Measure on this machine whether batched equals single; printing the result gives one line."""
        from speechkit.asr.check import batches_equal_singles

        return batches_equal_singles(self)

    def forward(self, clips: Sequence[Samples]) -> list[Samples]:
        """One padded batch, as given: (T_b,) float32 at 16 kHz → (F_b, V) float32, natural log."""
        log_probs = self._log_probs(clips).cpu().numpy()
        return [row[: self.grid.frames(len(clip))].copy() for row, clip in zip(log_probs, clips, strict=True)]

    def best_path(self, clips: Sequence[Samples], windows: longform.Windows | None) -> list[decode.BestPath]:
        """Winning token per frame of each clip (T,), in `windows`, or in one pass when they are None."""
        if windows is None:
            return self.batcher.run(clips, self._best)
        rows = self._through(clips, [_Meter() for _ in clips], self._best, windows=windows)
        return [self._joined(parts) for parts in rows]

    def words_of(self, path: decode.BestPath, samples: int) -> tuple[Word, ...]:
        """Best path of a clip of `samples` samples → words."""
        return decode.decode(path, self.alphabet, self.grid, samples / self.grid.rate)

    def _through(
        self,
        items: Sequence[Any],
        meters: Sequence[_Meter],
        forward: Callable[[list[Any]], Sequence[Any]],
        silence: Callable[[int], Any] | None = None,
        windows: longform.Windows | None = None,
    ) -> list[list[Any]]:
        """Items → per item the kept rows of its windows, in order. `silence` makes the rows of an inaudible window."""
        rows: list[list[Any]] = [[] for _ in items]
        pool: list[tuple[int, longform.Piece]] = []
        held = 0
        for index, piece in self._pieces(items, meters, windows):
            pool.append((index, piece))
            held += len(piece.samples)
            if held >= POOL * self.frame_budget * self.grid.hop:
                self._flush(pool, rows, forward, silence)
                pool, held = [], 0
        self._flush(pool, rows, forward, silence)
        return rows

    def _flush(
        self,
        pool: Sequence[tuple[int, longform.Piece]],
        rows: list[list[Any]],
        forward: Callable[[list[Any]], Sequence[Any]],
        silence: Callable[[int], Any] | None,
    ) -> None:
        quiet = [silence is not None and float(np.abs(piece.samples).max()) < SILENT_PEAK for _, piece in pool]
        heard = iter(
            self.batcher.run([piece.samples for (_, piece), mute in zip(pool, quiet, strict=True) if not mute], forward)
        )
        for (index, piece), mute in zip(pool, quiet, strict=True):
            row = silence(self.grid.frames(len(piece.samples))) if mute and silence else next(heard)
            rows[index].append(row[piece.first : piece.stop])

    def _pieces(
        self, items: Sequence[Any], meters: Sequence[_Meter], windows: longform.Windows | None
    ) -> Iterator[tuple[int, longform.Piece]]:
        windows = windows or longform.Windows.of(self.window_s, self.overlap_s, self.grid)
        for index, (item, meter) in enumerate(zip(items, meters, strict=True)):
            try:
                blocks = meter.watch(audio_in.blocks(item, self.window_s))
                for piece in longform.cut(blocks, windows, self.grid):
                    if not self.grid.frames(len(piece.samples)):
                        raise AudioError(self._too_short(len(piece.samples)))
                    yield index, piece
            except AudioError as error:
                if len(items) == 1:
                    raise
                raise AudioError(f"item {index + 1} of {len(items)}: {error}") from error

    def _too_short(self, samples: int) -> str:
        rate = self.grid.rate
        return (
            f"the audio is {samples / rate * 1000:.1f} ms ({samples} samples at {rate} Hz), shorter than one frame of "
            f"{self.name}: at least {self.grid.field / rate * 1000:.0f} ms ({self.grid.field} samples) are needed"
        )

    def _log_probs(self, clips: Sequence[Samples]) -> torch.Tensor:
        """(T_b,) each → (B, F, V) float32 natural log on the device; rows past a clip's own frames mean nothing."""
        samples = [len(clip) for clip in clips]
        ready = [batch.normalise(clip) if self.extractor.do_normalize else clip for clip in clips]
        # nothing to mask: no mask, so that the result is that of the plain model, bit for bit
        ragged = min(samples) < max(samples)
        values = torch.from_numpy(batch.pad(ready)).to(self.device, self.model.dtype)
        mask = _mask(samples).to(self.device) if ragged else None
        with self._lock, torch.inference_mode(), _exact(self.device, self.dtype):
            with masks.lengths_known(self.model, samples if ragged else None):
                logits = self.model(values, attention_mask=mask).logits
            return torch.as_tensor(logits.float().log_softmax(dim=-1))

    def _best(self, clips: Sequence[Samples]) -> list[decode.BestPath]:
        """(T_b,) each → winning tokens; only two numbers per frame leave the device."""
        scores, ids = self._log_probs(clips).max(dim=-1)  # (B, F) each
        winners, levels = ids.to("cpu", torch.int32).numpy(), scores.cpu().numpy()
        sizes = [self.grid.frames(len(clip)) for clip in clips]
        return [decode.BestPath(winners[b, :n].copy(), levels[b, :n].copy()) for b, n in enumerate(sizes)]

    def _blank(self, frames: int) -> decode.BestPath:
        return decode.BestPath(np.full(frames, self.alphabet.blank, np.int32), np.zeros(frames, np.float32))

    @staticmethod
    def _joined(parts: Sequence[decode.BestPath]) -> decode.BestPath:
        return decode.BestPath(np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts]))

    def _transcript(self, path: decode.BestPath, meter: _Meter, keep_words: bool) -> Transcript:
        words = self.words_of(path, meter.samples)
        return Transcript(
            text=decode.text_of(words),
            words=words if keep_words else (),
            language=self.language,
            duration_s=meter.samples / self.grid.rate,
            confidence=float(np.mean([word.confidence for word in words])) if words else 1.0,
            model=self.name,
            warnings=meter.warnings(self.grid.rate),
        )


class _Meter:
    """Counts what passes: length, peak and clipped samples of one input, for its transcript's warnings."""

    def __init__(self) -> None:
        self.samples = self.clipped = 0
        self.peak = 0.0

    def watch(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            size = np.abs(block)
            self.samples += len(block)
            self.peak = max(self.peak, float(size.max(initial=0.0)))
            self.clipped += int((size >= CLIPPED_LEVEL).sum())
            yield block

    def warnings(self, rate: int) -> tuple[str, ...]:
        notes = []
        if self.peak < SILENT_PEAK:
            notes.append(f"silent: the loudest sample is {self.peak:.1e} of full scale")
        if self.samples < SHORT_S * rate:
            notes.append(f"very short: {self.samples / rate:.2f} s, less than a syllable")
        if self.clipped > CLIPPED_SHARE * self.samples:
            notes.append(f"clipped: {self.clipped / self.samples:.0%} of the samples are at full scale")
        return tuple(notes)


def _mask(samples: Sequence[int]) -> torch.Tensor:
    """(B, max T) int64: 1 for the clip's own samples, 0 for padding."""
    return (torch.arange(max(samples))[None, :] < torch.tensor(samples)[:, None]).long()


def _exact(device: str, dtype: str) -> AbstractContextManager[Any]:
    """float32 means float32 on a GPU too: cuDNN convolutions round to TF32 (10 bits) unless told otherwise."""
    if device.startswith("cuda") and dtype == "float32":
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return nullcontext()
