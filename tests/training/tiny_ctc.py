"""Small CTC models for the tests of training. No module to importlib mode: a test puts this folder on its path."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOKENS = ("<pad>", "<unk>", "|", *"abcdefghij")


def tiny(seed: int = 0, **changes: Any) -> Wav2Vec2ForCTC:
    """Two layers, 16 wide, 20 ms frames; `changes` go into the config."""
    torch.manual_seed(seed)
    return Wav2Vec2ForCTC(config(**changes)).eval()


def config(kind: type = Wav2Vec2Config, **changes: Any) -> Any:
    """The config of :func:`tiny`, of this kind."""
    settings: dict[str, Any] = {
        "vocab_size": len(TOKENS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2, "pad_token_id": 0, "feat_extract_norm": "layer",
        "do_stable_layer_norm": True, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True, "layerdrop": 0.0,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0,
        "final_dropout": 0.0, "apply_spec_augment": False, "mask_time_prob": 0.05, "initializer_range": 0.2,
    }  # fmt: skip
    return kind(**{**settings, **changes})


def sound(clips: int = 2, samples: int = 8000, seed: int = 0) -> torch.Tensor:
    """(B, T) noise."""
    return torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed))


def labels(clips: int = 2, count: int = 4, seed: int = 0) -> torch.Tensor:
    """(B, L) letters."""
    return torch.randint(3, len(TOKENS), (clips, count), generator=torch.Generator().manual_seed(seed))


def tokenizer(folder: Path, tokens: Sequence[str] = TOKENS) -> Wav2Vec2CTCTokenizer:
    """A tokenizer of these tokens, whose vocab.json is written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}), encoding="utf-8")
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": None, "eos_token": None}
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **special)


def written(model: Any, folder: Path) -> Path:
    """A folder that `load_asr` opens."""
    tokenizer(folder).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
