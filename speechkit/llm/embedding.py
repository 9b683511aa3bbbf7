"""Encoders of sentences: load one, and teach it from pairs that mean the same. Through sentence-transformers.

In: a name as `load_llm` takes it, pairs of texts. Out: a `SentenceTransformer`; a folder that it opens again, and how
often the right partner is found before and after. The loss pulls a pair together and the others of its batch apart
(MultipleNegativesRankingLoss; Henderson et al. 2017, arXiv:1705.00652). No code of a repository runs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.device import choose_device
from speechkit.errors import DataError, ModelError, OutputError, PlanError
from speechkit.llm import hub, registry
from speechkit.llm.families import ENCODER
from speechkit.llm.files import need_weights, read_json
from speechkit.llm.quiet import quiet

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["EncoderConfig", "EncoderResult", "Retrieval", "finetune_pairs", "load_encoder", "retrieval"]

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Settings of one run. Raises PlanError, naming the setting, for a value that cannot be."""

    model: str  # a name of `speechkit models`, a Hub id or a folder
    folder: str = "runs/encoder"  # the trained encoder; made, or an earlier one there replaced
    epochs: float = 1.0  # passes over the pairs
    batch: int = 32  # pairs at a time: each is told from the others of its batch, so that more teach more
    learning_rate: float = 2e-5  # highest
    warmup: float = 0.1  # share of the run in which the learning rate rises from nothing
    temperature: float = 0.05  # cosines are divided by it before the softmax over a batch
    max_len: int | None = None  # tokens of a text that are read; None: as the encoder has it
    seed: int = 0  # of the order of the pairs
    device: str = "auto"  # "cpu", "cuda", …

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("learning_rate", 0), ("temperature", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < float("inf"):
                raise PlanError(f"{name} is {value!r}; it is a number above {least}")
        if not isinstance(self.batch, int) or self.batch < 2:
            raise PlanError(f"batch is {self.batch!r}; it is a whole number from 2: a pair is told from the others")
        if not 0 <= self.warmup < 1:
            raise PlanError(f"warmup is {self.warmup!r}; it is a share from 0 to less than 1")


@dataclass(frozen=True)
class Retrieval:
    """How well the partner of each first text is found among all second texts, by cosine."""

    accuracy_at_1: float  # share whose nearest text is the partner, or spelt as it
    mean_reciprocal_rank: float  # 1: always first, 0.5: as if always second
    pairs: int

    def __str__(self) -> str:
        rank = f"mean reciprocal rank {self.mean_reciprocal_rank:.3f}"
        return f"{self.accuracy_at_1:.1%} found first of {self.pairs:,} ({rank})"


@dataclass(frozen=True)
class EncoderResult:
    """What came of a run; `SentenceTransformer(str(result.folder))` opens the encoder."""

    folder: Path
    before: Retrieval
    after: Retrieval
    held_out: bool  # measured on pairs that were not trained on
    steps: int  # updates of the weights
    seconds: float  # of training
    loss: float  # mean over the run
    model: Any  # the trained SentenceTransformer

    def __str__(self) -> str:
        where = "held-out pairs" if self.held_out else "the training pairs themselves: give dev_pairs for a fair figure"
        return (
            f"{self.folder}: {self.steps:,} updates in {self.seconds:.1f} s, mean loss {self.loss:.3f}, on {where}\n"
            f"  before  {self.before}\n  after   {self.after}"
        )


def load_encoder(
    name: str | os.PathLike[str], *, device: str = "auto", max_len: int | None = None, revision: str | None = None
) -> Any:
    """An encoder of sentences as a SentenceTransformer, in float32.

    A folder with modules.json is taken as it is; a plain encoder (BERT, RoBERTa, MPNet, ModernBERT) gets the mean over
    its tokens. Raises ModelError for an unknown name, no safetensors, code of its own, or a model that is no encoder;
    PlanError for a `max_len` above the encoder's positions.
    """
    package = extras.require("sentence_transformers", extra="llm", purpose="an encoder of sentences")
    source = registry.resolve(name)
    folder = hub.fetch(source.location, revision, _check) if source.kind == "hub" else Path(source.location)
    _check(folder)
    place = choose_device(device).value
    given: dict[str, Any] = {"device": place, "local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            if (folder / "modules.json").is_file():
                kwargs = {"use_safetensors": True, "dtype": "float32"}
                model = package.SentenceTransformer(str(folder), model_kwargs=kwargs, **given)
            else:
                model = package.SentenceTransformer(modules=_plain(folder), device=place)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        raise ModelError(f"the encoder in {folder} cannot be loaded: {error}") from error
    if max_len is not None:
        _cut(model, max_len)
    return model


def retrieval(model: Any, pairs: Sequence[Pair]) -> Retrieval:
    """Rank all second texts by cosine for each first one."""
    import torch

    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    with quiet():
        left, right = (model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
                       for texts in (first, second))  # fmt: skip
    scores = left.float() @ right.float().T  # (N, N)
    own = scores.diagonal()[:, None]
    same = torch.tensor([[a == b for b in second] for a in second], device=scores.device)
    ranks = ((scores > own) & ~same).sum(1) + 1  # a text spelt as the partner is the partner
    return Retrieval(float((ranks == 1).float().mean()), float((1 / ranks).mean()), len(first))


def finetune_pairs(config: EncoderConfig, pairs: Sequence[Pair], dev_pairs: Sequence[Pair] = ()) -> EncoderResult:
    """Train on pairs of texts that belong together, and measure on `dev_pairs` before and after.

    `config.folder` afterwards holds the encoder and `encoder.json` with settings, versions and figures; an encoder that
    was there is replaced when the new one is whole. Raises DataError for a pair that is none (with its number),
    PlanError and ModelError as :func:`load_encoder`, OutputError for a folder that cannot be written.
    """
    extras.require("datasets", extra="llm", purpose="training an encoder")
    extras.require("accelerate", extra="llm", purpose="training an encoder")
    train = _checked(pairs, "pairs")
    held = _checked(dev_pairs, "dev_pairs") if dev_pairs else []
    place = _free(Path(config.folder).expanduser())
    model = load_encoder(config.model, device=config.device, max_len=config.max_len)
    before = retrieval(model, held or train)
    started = time.perf_counter()
    steps, loss = _train(model, config, train)
    seconds = time.perf_counter() - started
    model.eval()
    result = EncoderResult(
        place, before, retrieval(model, held or train), bool(held), steps, round(seconds, 2), loss, model
    )
    _save(result, config)
    return result


def _train(model: Any, config: EncoderConfig, pairs: list[Pair]) -> tuple[int, float]:
    """Updates made, and their mean loss."""
    import datasets
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback

    rows = datasets.Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
    with tempfile.TemporaryDirectory() as scratch, quiet():
        settings = SentenceTransformerTrainingArguments(
            output_dir=scratch, num_train_epochs=config.epochs, per_device_train_batch_size=config.batch,
            learning_rate=config.learning_rate, warmup_steps=config.warmup, seed=config.seed, save_strategy="no",
            report_to=[], disable_tqdm=True, logging_strategy="no", batch_sampler="no_duplicates",
            use_cpu=model.device.type == "cpu",
        )  # fmt: skip
        loss = MultipleNegativesRankingLoss(model, scale=1 / config.temperature)
        trainer = SentenceTransformerTrainer(model=model, args=settings, train_dataset=rows, loss=loss)
        trainer.remove_callback(PrinterCallback)
        done = trainer.train()
    return int(done.global_step), round(float(done.training_loss), 4)


def _plain(folder: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    own = {"trust_remote_code": False, "local_files_only": True}
    encoder: Any = Transformer(
        str(folder), model_kwargs={"use_safetensors": True, "dtype": "float32", **own}, config_kwargs=own,
        processor_kwargs=own,
    )  # fmt: skip
    return [encoder, Pooling(encoder.get_embedding_dimension(), "mean")]


def _check(folder: Path) -> None:
    """Raise ModelError unless `folder` may hold an encoder of sentences."""
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ModelError(
            f"{folder} has neither config.json nor modules.json; give the folder of an encoder of sentences"
        )
    modules = folder / "modules.json"
    if modules.is_file():
        if foreign := [kind for kind in _module_types(modules) if not kind.startswith("sentence_transformers.")]:
            raise ModelError(
                f"{folder} wants to run code of its own ({foreign[0]} in modules.json), and speechkit runs none from "
                "repositories: choose an encoder made of sentence-transformers' own modules"
            )
        return
    config = read_json(folder / "config.json")
    family = registry.family_of(config)
    if family is None or family.kind != ENCODER:
        known = ", ".join(row.name for row in registry.FAMILIES if row.kind == ENCODER)
        raise ModelError(
            f"{folder} holds a {config.get('model_type') or 'nameless'} model, which is no encoder of sentences known "
            f"here ({known}), and it has no modules.json that would tell how its tokens become one vector"
        )
    need_weights(folder)


def _module_types(path: Path) -> list[str]:
    try:
        return [str(row["type"]) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} cannot be read as a list of modules: {error!r}") from error


def _cut(model: Any, max_len: int) -> None:
    most = model.get_max_seq_length()
    if isinstance(max_len, bool) or not isinstance(max_len, int) or max_len < 1:
        raise PlanError(f"max_len is {max_len!r}; it can be None (the encoder's own) or a whole number from 1")
    if most is not None and max_len > most:
        raise PlanError(f"max_len is {max_len:,}, and the encoder was made for texts of at most {most:,} tokens")
    model.max_seq_length = max_len


def _checked(pairs: Sequence[Pair], what: str) -> list[Pair]:
    found: list[Pair] = []
    for number, pair in enumerate(pairs, 1):
        texts = list(pair) if isinstance(pair, (tuple, list)) else []
        if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{what}, number {number}, is {pair!r}; a pair is two texts that are not empty")
        found.append((texts[0], texts[1]))
    if len(found) < 2:
        raise DataError(f"{what} holds {len(found)}; at least two are needed, for a pair is told from the others")
    return found


def _free(folder: Path) -> Path:
    """The folder, which is absent, empty, or that of an earlier run. Raises OutputError where it is another's."""
    if folder.is_file():
        raise OutputError(f"{folder} is a file; name a folder for the encoder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "encoder.json").is_file():
        raise OutputError(f"{folder} holds something that is no encoder of an earlier run; name another folder")
    return folder


def _save(result: EncoderResult, config: EncoderConfig) -> None:
    """Beside its place first, so that what was there stays until the new one is whole."""
    fresh = result.folder.with_name(f"{result.folder.name}.new")
    figures = {
        "config": asdict(config),
        "result": {field.name: getattr(result, field.name) for field in fields(result)
                   if field.name in ("held_out", "steps", "seconds", "loss")},
        "before": asdict(result.before), "after": asdict(result.after),
        "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
    }  # fmt: skip
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        with quiet():
            result.model.save_pretrained(str(fresh), safe_serialization=True)
        (fresh / "encoder.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if result.folder.exists():
            shutil.rmtree(result.folder)
        fresh.rename(result.folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        why = f"{error}; make room, or name another folder"
        raise OutputError(f"the encoder cannot be written to {result.folder}: {why}") from error
