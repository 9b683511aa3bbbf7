"""A loaded CTC model that transcribes: audio in, `Transcript` or log-probabilities out. The seam where torch begins.

Every input, whatever its length, goes one way: blocks → windows (a short clip is one window) → length-sorted batches →
frames joined again per input. So a list may mix a command word with an hour-long recording, in constant memory.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from speechkit import audio as audio_in
from speechkit.asr import batch, checkpoint, decode, hub, longform, masks, registry
from speechkit.asr.frames import FrameGrid
from speechkit.asr.meter import SILENT_PEAK, Meter
from speechkit.device import choose_device, choose_dtype
from speechkit.errors import AudioError, DataError, ModelError, PlanError
from speechkit.types import FileResult, Transcript, Word

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.beam import BeamDecoder
    from speechkit.asr.check import Check
    from speechkit.asr.stream import Stream

    Samples = NDArray[np.float32]

Options = TypeVar("Options")
Result = TypeVar("Result")

__all__ = ["ENGINES", "Recognizer", "load_asr"]

ENGINES = ("auto", "torch")
MOST_PAD_S = 2.0
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

    def transcribe(
        self,
        audio: Any,
        *,
        words: bool = True,
        decoder: Any = None,
        lm: Any = None,
        hotwords: Sequence[str] | None = None,
        pad_s: float = 0.0,
    ) -> Any:
        """Whatever `audio.load` takes → Transcript; a list of such → list of Transcripts in the same order.

        `words=False` leaves the words out (their mean confidence stays). decoder: "greedy" (the default), "beam",
        `BeamOptions` or what :meth:`decoder` made; `lm`, an `NGram` or an ARPA file, and `hotwords` need no more than
        their name: they take the beam search. For many calls make the decoder once. pad_s: seconds of silence to put
        before and after each input, for recordings cut tightly at their words (0.05 to 0.15 helps); times stay those
        of the input.

        Raises AudioError for audio that cannot be read or is shorter than one frame (in a list, with the item's
        number), DataError and PlanError for a language model, hotwords, decoder or pad_s that cannot be used; silence
        is an empty transcript, not an error.
        """
        from speechkit.asr.beam import choose

        beam = choose(self.alphabet, decoder, lm, hotwords)
        items = audio if isinstance(audio, list) else [audio]
        pad = _pad(pad_s, self.grid.rate)
        meters = [Meter(pad) for _ in items]
        if beam is None:
            paths = [self._joined(parts) for parts in self._through(items, meters, self._best, self._blank)]
        else:
            paths = self._searched(items, meters, beam)
        spoken = [self._transcript(path, meter, words) for path, meter in zip(paths, meters, strict=True)]
        return spoken if isinstance(audio, list) else spoken[0]

    def decoder(self, lm: Any = None, hotwords: Sequence[str] | None = None, **options: Any) -> BeamDecoder:
        """A beam search for `transcribe(…, decoder=…)`, made once; `options` are those of `BeamOptions`.

        Raises DataError for a language model or hotwords that cannot be used, PlanError for an option out of range.
        """
        from speechkit.asr.beam import BeamDecoder, BeamOptions

        return BeamDecoder(self.alphabet, _made(BeamOptions, "a beam search", options), lm, hotwords)

    def align(self, audio: Any, text: Any) -> Any:
        """Audio and the text spoken in it → Transcript whose words are the text's, with times; two lists → a list.

        Exact for any length of audio. Words that the alphabet cannot spell are placed by what is around them, with
        confidence 0, and named in `warnings`. Raises AudioError as :meth:`transcribe` does, and DataError for text that
        is empty, outside the alphabet, or longer than its audio (in a list, with the item's number).
        """
        from speechkit.asr.align import place, prepare

        items, texts = (audio, text) if isinstance(audio, list) else ([audio], [text])
        if isinstance(audio, list) and (not isinstance(text, list) or len(text) != len(audio)):
            given = f"{len(text)} texts" if isinstance(text, list) else "one text"
            raise DataError(f"{len(audio)} audio inputs and {given}: give a list with one text for each")
        spellings, columns = prepare(texts, self.alphabet, self.language)
        meters = [Meter() for _ in items]
        # of each frame only the columns of these texts are kept: an hour under 3,500 ideographs would be 2.5 GB
        rows = self._through(items, meters, lambda clips: [columns.take(row) for row in self.forward(clips)])
        durations = [meter.samples / self.grid.rate for meter in meters]
        placed = place([np.concatenate(parts) for parts in rows], spellings, columns, self.grid, durations)
        told = [
            self._told(spelt.text, words, meter, spelt.warnings)
            for spelt, words, meter in zip(spellings, placed, meters, strict=True)
        ]
        return told if isinstance(audio, list) else told[0]

    def log_probs(self, audio: Any) -> Any:
        """Whatever `audio.load` takes → (F, V) float32, natural log; a list of such → a list in the same order.

        Audio longer than `window_s` is computed in windows and joined; the array still grows with its length.
        """
        items = audio if isinstance(audio, list) else [audio]
        rows = self._through(items, [Meter() for _ in items], self.forward)
        joined = [np.concatenate(parts) for parts in rows]
        return joined if isinstance(audio, list) else joined[0]

    def embed(
        self, audio: Any, layer: Any = -1, pool: Any = None, *, speech_only: bool = True, dtype: str = "float32"
    ) -> Any:
        """Whatever `audio.load` takes → Embedding, the frames of a hidden layer; a list of such → a list.

        layer: a number (0 enters the first block, -1 is the last), "all" or a list (a layer axis comes first), or a
        dict of layers and weights. pool: None, "mean", "mean+std" or "max", over the frames that are not pauses, or
        over all with `speech_only=False`. dtype: "float32" or "float16", of the result.

        Raises PlanError for a layer that the model does not have or another pool or dtype, AudioError as
        :meth:`transcribe` does.
        """
        from speechkit.asr import embed

        embed.check(pool, dtype)
        layers = embed.Layers.of(layer, int(self.config.num_hidden_layers))
        items = audio if isinstance(audio, list) else [audio]
        meters = [Meter() for _ in items]

        def forward(clips: list[Samples]) -> list[embed.Rows]:
            states = [layers.take(rows) for rows in self._states(clips, layers.ids)]
            return [embed.rows(*pair, self.grid, pool, speech_only, dtype) for pair in zip(states, clips, strict=True)]

        found = [
            embed.joined(parts, layers, pool, dtype, self.grid, meter.samples, self.name)
            for parts, meter in zip(self._through(items, meters, forward), meters, strict=True)
        ]
        return found if isinstance(audio, list) else found[0]

    def transcribe_files(
        self,
        paths: Any,
        out: str | os.PathLike[str] | None = None,
        resume: bool = True,
        *,
        decoder: Any = None,
        lm: Any = None,
        hotwords: Sequence[str] | None = None,
        pad_s: float = 0.0,
        **options: Any,
    ) -> Iterator[FileResult]:
        """Many files → one `FileResult` each; see :func:`speechkit.asr.files.transcribe_files` for the options.

        decoder, lm, hotwords and pad_s are those of :meth:`transcribe`.
        """
        from speechkit.asr.beam import choose
        from speechkit.asr.files import transcribe_files

        beam = choose(self.alphabet, decoder, lm, hotwords)
        _pad(pad_s, self.grid.rate)
        how = _Decoding(self, beam, pad_s) if beam or pad_s else self
        return iter(transcribe_files(how, paths, out, resume, **options))

    def stream(self, **options: Any) -> Stream:
        """Live audio in, words out: see :class:`speechkit.asr.stream.Stream`; `options` are those of `StreamOptions`.

        Raises PlanError for lengths that leave nothing to transcribe, or an option that does not exist.
        """
        from speechkit.asr.stream import Stream, StreamOptions

        return Stream(self, _made(StreamOptions, "a stream", options))

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
        rows = self._through(clips, [Meter() for _ in clips], self._best, windows=windows)
        return [self._joined(parts) for parts in rows]

    def words_of(self, path: decode.BestPath, samples: int) -> tuple[Word, ...]:
        """Best path of a clip of `samples` samples → words."""
        return decode.decode(path, self.alphabet, self.grid, samples / self.grid.rate)

    def _through(
        self,
        items: Sequence[Any],
        meters: Sequence[Meter],
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

    def _searched(self, items: Sequence[Any], meters: Sequence[Meter], beam: BeamDecoder) -> list[decode.BestPath]:
        """The best path of each item under a beam search; of the frames only what it looks at is held."""
        from speechkit.asr.emissions import Emissions

        def forward(clips: list[Samples]) -> list[Emissions]:
            return [beam.emissions(rows) for rows in self.forward(clips)]

        rows = self._through(items, meters, forward, Emissions.silence)
        return [found[0].path for found in beam.decode([Emissions.join(parts) for parts in rows])]

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
        self, items: Sequence[Any], meters: Sequence[Meter], windows: longform.Windows | None
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

        def run(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            logits = self.model(values, attention_mask=mask).logits
            return torch.as_tensor(logits.float().log_softmax(dim=-1))

        return self._run(clips, run)

    def _states(self, clips: Sequence[Samples], layers: Sequence[int]) -> list[list[Samples]]:
        """(T_b,) each → per clip the hidden states (F_b, D) float32 of `layers`."""

        def run(values: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
            base = getattr(self.model, self.model.base_model_prefix)
            states = base(values, attention_mask=mask, output_hidden_states=True).hidden_states
            return [states[layer].float().cpu() for layer in layers]

        states = self._run(clips, run)
        sizes = [self.grid.frames(len(clip)) for clip in clips]
        return [[state[b, :size].numpy() for state in states] for b, size in enumerate(sizes)]

    def _run(self, clips: Sequence[Samples], model: Callable[[torch.Tensor, torch.Tensor | None], Result]) -> Result:
        """Normalise and pad, tell the norms the lengths, and hand values and mask to `model`."""
        samples = [len(clip) for clip in clips]
        ready = [batch.normalise(clip) if self.extractor.do_normalize else clip for clip in clips]
        # nothing to mask: no mask, so that the result is that of the plain model, bit for bit
        ragged = min(samples) < max(samples)
        values = torch.from_numpy(batch.pad(ready)).to(self.device, self.model.dtype)
        mask = _mask(samples).to(self.device) if ragged else None
        with (
            self._lock,
            torch.inference_mode(),
            _exact(self.device, self.dtype),
            masks.lengths_known(self.model, samples if ragged else None),
        ):
            return model(values, mask)

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

    def _transcript(self, path: decode.BestPath, meter: Meter, keep_words: bool) -> Transcript:
        words = self.words_of(path, meter.samples + 2 * meter.pad)
        if meter.pad:
            words = decode.without_pad(words, meter.pad / self.grid.rate, meter.samples / self.grid.rate)
        told = self._told(decode.text_of(words), words, meter)
        return told if keep_words else replace(told, words=())

    def _told(self, text: str, words: tuple[Word, ...], meter: Meter, notes: tuple[str, ...] = ()) -> Transcript:
        return Transcript(
            text=text,
            words=words,
            language=self.language,
            duration_s=meter.samples / self.grid.rate,
            confidence=float(np.mean([word.confidence for word in words])) if words else 1.0,
            model=self.name,
            warnings=(*meter.warnings(self.grid.rate), *notes),
        )


class _Decoding:
    """A recogniser with settings, as `transcribe_files` wants one: other settings are another model to it."""

    def __init__(self, recognizer: Recognizer, decoder: BeamDecoder | None, pad_s: float) -> None:
        self.recognizer, self.decoder, self.pad_s = recognizer, decoder, pad_s
        self.name, self.device = recognizer.name, recognizer.device
        settings = [decoder.identity] if decoder else []
        settings += [f"pad {pad_s:g} s"] if pad_s else []
        self.identity = " ".join([recognizer.identity, *settings])

    def transcribe(self, audio: Any) -> Any:
        return self.recognizer.transcribe(audio, decoder=self.decoder, pad_s=self.pad_s)


def _pad(pad_s: float, rate: int) -> int:
    """Seconds of silence → samples; PlanError for what is none."""
    if not 0 <= pad_s <= MOST_PAD_S:
        raise PlanError(f"pad_s is {pad_s}; it can be 0 to {MOST_PAD_S:g} seconds of silence on each side")
    return round(pad_s * rate)


def _made(kind: type[Options], what: str, given: Mapping[str, Any]) -> Options:
    """Options by name → their dataclass. Raises PlanError for a name that it does not have."""
    known = [option.name for option in fields(cast("Any", kind))]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise PlanError(f"{what} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return kind(**given)


def _mask(samples: Sequence[int]) -> torch.Tensor:
    """(B, max T) int64: 1 for the clip's own samples, 0 for padding."""
    return (torch.arange(max(samples))[None, :] < torch.tensor(samples)[:, None]).long()


def _exact(device: str, dtype: str) -> AbstractContextManager[Any]:
    """float32 means float32 on a GPU too: cuDNN convolutions round to TF32 (10 bits) unless told otherwise."""
    if device.startswith("cuda") and dtype == "float32":
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return nullcontext()
