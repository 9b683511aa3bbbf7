"""The model that a run starts from: a name → a CTC model with the head, vocabulary and settings that training needs.

A checkpoint without CTC head (pretraining, embeddings) gets one; a model whose alphabet lacks characters of the texts
gets rows for them. Whatever was made or changed is said in `notes`. Knows no loop and no strategy.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speechkit.asr import checkpoint, hub, masks, registry
from speechkit.asr.frames import FrameGrid
from speechkit.errors import ModelError, PlanError
from speechkit.training.scripts import described, scripts
from speechkit.training.vocabulary import Vocabulary, build_vocabulary, extend_vocabulary, resize_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.training.config import FinetuneConfig

__all__ = ["Base", "open_base"]

FOREIGN = 0.5  # share of the letters that the model lacks, above which "auto" takes a new vocabulary


@dataclass
class Base:
    """A CTC model ready to be trained, and what belongs to it. `spell` gives it its final vocabulary."""

    name: str
    model: Any = field(repr=False)
    extractor: Any = field(repr=False)
    identity: str  # changes with the weights
    vocabulary: Vocabulary | None  # None: the checkpoint has no head
    language: str | None
    licence: str = ""  # as the checkpoint's own card states it
    notes: list[str] = field(default_factory=list)

    @property
    def grid(self) -> FrameGrid:
        return FrameGrid.from_config(self.model.config)

    @property
    def ragged(self) -> bool:
        """Whether padded batches equal single runs; see `asr.checkpoint`."""
        return checkpoint.ARCHITECTURES.get(self.model.config.model_type, False)

    @property
    def processor(self) -> Any:
        from transformers import Wav2Vec2Processor

        assert self.vocabulary is not None, "spell() comes first"
        return Wav2Vec2Processor(feature_extractor=self.extractor, tokenizer=self.vocabulary.tokenizer())

    def spell(self, texts: Sequence[str], how: str, seed: int = 0) -> Vocabulary:
        """Choose the vocabulary for `texts` ("auto", "keep", "extend", "new") and fit the head to it.

        Raises PlanError for "keep" and "extend" where there is no head, DataError where the texts hold no letters.
        """
        old = self.vocabulary
        if old is None and how in ("keep", "extend"):
            raise PlanError(f'vocabulary is {how!r}, but {self.name} has no CTC head; take "auto" or "new"')
        torch.manual_seed(seed)  # new rows are random
        if old is None or how == "new" or (how == "auto" and self._foreign(old, texts)):
            self.vocabulary = build_vocabulary(texts, self.language)
            made = "a new head" if old is None else "a new head in place of the old one"
            resize_head(self.model, None, self.vocabulary)
            self.notes += [f"{made}: {len(self.vocabulary)} outputs, random at first", *self.vocabulary.notes]
        elif how != "keep":
            self.vocabulary = extend_vocabulary(old, texts)
            if len(self.vocabulary) > len(old):
                self.notes.append(str(resize_head(self.model, old, self.vocabulary)))
                self.notes += _scripts_added(old, self.vocabulary, texts)
        assert self.vocabulary is not None
        return self.vocabulary

    def configure(self, config: FinetuneConfig, device: str) -> None:
        """Set what decides a training step: CTC in nats per label without infinities, masking, attention, norms."""
        model, settings = self.model, self.model.config
        settings.ctc_zero_infinity = True
        settings.ctc_loss_reduction = "mean"  # the only one whose size does not follow the batch
        settings.layerdrop = config.layerdrop
        if config.spec_augment is not None:
            settings.apply_spec_augment = config.spec_augment > 0
            settings.mask_time_prob = config.spec_augment
            settings.mask_time_min_masks = 0  # transformers' two of every clip would hide most of a short word
        inner = getattr(model, model.base_model_prefix)
        masked = getattr(settings, "mask_time_prob", 0) > 0 or getattr(settings, "mask_feature_prob", 0) > 0
        if settings.apply_spec_augment and masked and not hasattr(inner, "masked_spec_embed"):
            inner.masked_spec_embed = torch.nn.Parameter(torch.zeros(settings.hidden_size))
        if device == "cpu":
            model.set_attn_implementation("eager")  # at these lengths a third faster to train there than SDPA
        masks.attach(model)

    def _foreign(self, old: Vocabulary, texts: Sequence[str]) -> bool:
        lacking = sum(sum(old.missing(text).values()) for text in texts)
        letters = sum(len(old.prepare(text).replace(" ", "")) for text in texts)
        if lacking <= FOREIGN * letters:
            return False
        self.notes.append(f"{self.name} cannot write {lacking / letters:.0%} of the letters in the texts")
        return True


def _scripts_added(old: Vocabulary, new: Vocabulary, texts: Sequence[str]) -> list[str]:
    """What to say of letters in scripts that the model did not write: wanted, or rows that do not belong here."""
    added = scripts(new.tokens[len(old) :]).keys() - scripts(old.letters).keys()
    if not added:
        return []
    return [
        f"the texts are {described(scripts(texts))}, and {' and '.join(sorted(added))} is new to the model: if that is "
        "not meant, correct the rows, or take vocabulary='keep', which leaves them out"
    ]


def open_base(name: str, language: str | None = None) -> Base:
    """Short name, Hub id or folder → its model in float32 on the CPU.

    Raises ModelError as `load_asr` does, but not for a checkpoint that merely lacks the CTC head.
    """
    source = registry.resolve(name)
    folder = hub.fetch(source.location) if source.kind == "hub" else Path(source.location)
    language = language or source.language
    if _has_head(folder):
        parts = checkpoint.read(folder)
        vocabulary = Vocabulary.load(parts.tokenizer, language)
        return Base(source.name, parts.model, parts.extractor, parts.identity, vocabulary, language, _licence(folder))
    model = _with_head(folder)
    note = f"{source.name} has no CTC head (a pretrained checkpoint)"
    extractor, identity = _extractor(folder, model), checkpoint.identity_of(folder)
    return Base(source.name, model, extractor, identity, None, language, _licence(folder), [note])


def _licence(folder: Path) -> str:
    """From the front matter of the folder's card; "" where it has none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.match(r"---\n(?:.*\n)*?license: *([\w.-]+)", text.partition("\n---")[0])
    return found[1] if found else ""


def _has_head(folder: Path) -> bool:
    """Whether there is a vocabulary and, as far as safetensors tell, an output layer; True for a broken folder."""
    if not (folder / "config.json").is_file():
        return True
    if not (folder / "vocab.json").is_file():
        return False
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        return True
    from safetensors import SafetensorError, safe_open

    try:
        for file in files:
            with safe_open(file, framework="pt") as weights:
                if any(name.startswith("lm_head.") for name in weights.keys()):  # noqa: SIM118 (not a mapping)
                    return True
    except (OSError, SafetensorError):
        return True  # the reader says what is wrong
    return False


def _with_head(folder: Path) -> Any:
    """The encoder of a pretrained checkpoint under a head that knows nothing."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from transformers import AutoModelForCTC

    kind = _model_type(folder)
    if kind not in checkpoint.ARCHITECTURES:
        raise ModelError(
            f"{folder} holds a {kind or 'nameless'} model, which cannot be given a CTC head here; speechkit trains "
            f"these types: {', '.join(checkpoint.ARCHITECTURES)}"
        )
    safe = any(folder.glob("model*.safetensors"))
    if not safe and not any(folder.glob("pytorch_model*.bin")):
        raise ModelError(f"{folder} has no weights: model.safetensors is missing; fetch the whole checkpoint")
    if not safe:  # as `asr.checkpoint` reads those that have a head
        warnings.warn(
            f"{folder} has no safetensors: reading pytorch_model.bin with PyTorch's restricted unpickler", stacklevel=3
        )
    try:
        with checkpoint.quiet():
            model, report = AutoModelForCTC.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=safe, weights_only=True, local_files_only=True,
                output_loading_info=True, ignore_mismatched_sizes=True, add_adapter=False,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ModelError(f"the weights of {folder} cannot be loaded: {error}") from error
    lost = [name for name in sorted(report["missing_keys"]) if not name.startswith("lm_head.")]
    lost = [name for name in lost if not name.endswith(checkpoint.UNUSED)]
    if lost or report["mismatched_keys"]:
        first = lost[0] if lost else sorted(report["mismatched_keys"])[0][0]
        raise ModelError(f"the weights of {folder} do not fit its config.json ({first}); take both from one model")
    return model.eval().requires_grad_(False)


def _model_type(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read as JSON: {error}") from error
    return config.get("model_type") if isinstance(config, dict) else None


def _extractor(folder: Path, model: Any) -> Any:
    """The checkpoint's own, or the usual one for its kind of norm."""
    from transformers import Wav2Vec2FeatureExtractor

    if any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        with checkpoint.quiet():
            found = Wav2Vec2FeatureExtractor.from_pretrained(folder)
        if found.sampling_rate != 16_000:
            raise ModelError(f"{folder} wants audio at {found.sampling_rate} Hz; speechkit feeds models of 16000 Hz")
        return found
    mask = getattr(model.config, "feat_extract_norm", "group") == "layer"
    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=mask)
