"""What a pretraining run begins from. In: a config, and an architecture or the name of a checkpoint. Out: the network.

A checkpoint may be a pretraining one (its quantiser is kept) or any other wav2vec 2.0, such as a CTC model: then the
encoder is taken and the quantiser is fresh, for fine-tuning has dropped it.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

from speechkit.asr import checkpoint, hub, registry
from speechkit.errors import ModelError, PlanError

if TYPE_CHECKING:
    from transformers import Wav2Vec2Config

    from speechkit.training.pretrain_config import PretrainConfig

__all__ = ["begin", "save_model"]


def begin(
    config: PretrainConfig, architecture: Wav2Vec2Config | None
) -> tuple[Wav2Vec2ForPreTraining, Wav2Vec2FeatureExtractor, str]:
    """(network in float32, its feature extractor, what it was before in words).

    Raises PlanError unless exactly one of `config.start` and `architecture` is given; ModelError for a checkpoint that
    is no wav2vec 2.0 or cannot be loaded.
    """
    if bool(config.start) == (architecture is not None):
        given = "both were" if config.start else "neither was"
        raise PlanError(
            f"{given} given: continue from a checkpoint with PretrainConfig(start=...), or begin from random weights "
            "with architecture=Wav2Vec2Config(...)"
        )
    if architecture is not None:
        net = Wav2Vec2ForPreTraining._from_config(_with_quantiser(architecture, config), attn_implementation="eager")
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
        return _fresh(net.float(), config), extractor, "from random weights"
    source = registry.resolve(config.start)
    folder = hub.fetch(source.location) if source.kind == "hub" else Path(source.location)
    return _continued(folder, source.name, config)


def save_model(net: Wav2Vec2ForPreTraining, extractor: Wav2Vec2FeatureExtractor, folder: Path) -> None:
    """Weights as safetensors, config and feature extractor."""
    net.save_pretrained(folder)
    extractor.save_pretrained(folder)


def _continued(
    folder: Path, name: str, config: PretrainConfig
) -> tuple[Wav2Vec2ForPreTraining, Wav2Vec2FeatureExtractor, str]:
    import torch
    from safetensors import SafetensorError
    from transformers import Wav2Vec2Config

    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} has no readable config.json: {error}") from error
    if record.get("model_type") != "wav2vec2":
        raise ModelError(
            f"{name} is of type {record.get('model_type')!r}; only wav2vec2 has this pretraining objective"
        )
    trained_so = "Wav2Vec2ForPreTraining" in (record.get("architectures") or ())
    settings = Wav2Vec2Config.from_pretrained(folder)
    settings = settings if trained_so else _with_quantiser(settings, config)
    try:
        with checkpoint.quiet():
            loaded: Any = Wav2Vec2ForPreTraining.from_pretrained(
                folder,
                config=settings,
                dtype=torch.float32,
                attn_implementation="eager",  # on a CPU a third faster to train than SDPA at these lengths
                use_safetensors=any(folder.glob("model*.safetensors")),
                weights_only=True,
                local_files_only=True,
                output_loading_info=True,
            )
            has_own = (folder / "preprocessor_config.json").is_file()
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder) if has_own else Wav2Vec2FeatureExtractor()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the checkpoint {name} cannot be loaded: {error}") from error
    net, report = loaded
    missing = set(report["missing_keys"])
    lost = sorted(key for key in missing if key.startswith("wav2vec2.") and "masked_spec_embed" not in key)
    if lost:
        raise ModelError(f"{name} lacks weights of its encoder, among them {lost[0]}: fetch it again")
    fresh = any(key.startswith("quantizer") for key in missing)
    if fresh:
        _fresh(net, config)
    return net, extractor, f"from {name}, with {'a fresh' if fresh else 'its own'} quantiser"


def _fresh(net: Wav2Vec2ForPreTraining, config: PretrainConfig) -> Wav2Vec2ForPreTraining:
    """`net`, its new quantiser's weights spread as wished: transformers draws them with a standard deviation of 1."""
    net.quantizer.weight_proj.weight.data.mul_(config.code_spread)
    return net


def _with_quantiser(architecture: Wav2Vec2Config, config: PretrainConfig) -> Wav2Vec2Config:
    """A copy with the quantiser of `config`, and with the vector that stands for masked frames."""
    settings = deepcopy(architecture)
    values: dict[str, Any] = {
        "num_codevector_groups": config.codebooks,
        "num_codevectors_per_group": config.codes,
        "codevector_dim": config.code_width,
        "proj_codevector_dim": config.projection,
        "num_negatives": config.negatives,
        "contrastive_logits_temperature": config.logit_temperature,
        "diversity_loss_weight": config.diversity_weight,
        "feat_quantizer_dropout": 0.0,
        "apply_spec_augment": True,  # transformers makes the masked frames' vector only then
        "mask_time_prob": 0.05,
    }
    for key, value in values.items():
        setattr(settings, key, value)
    return settings
