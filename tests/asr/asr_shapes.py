"""Tiny random-weight models in the shapes of published ones: true vocabulary sizes and flags, small width."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
)

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC),
    "hubert": (HubertConfig, HubertForCTC),
    "wavlm": (WavLMConfig, WavLMForCTC),
}


@dataclass(frozen=True)
class Shape:
    """What distinguishes the published checkpoints: tokens in id order, special token names, norms and flags."""

    tokens: tuple[str, ...]
    norm: str = "layer"
    stable: bool = True
    mask: bool = True
    pad: str = "<pad>"
    unk: str = "<unk>"
    family: str = "wav2vec2"
    seed: int = 0


def _han(count: int) -> tuple[str, ...]:
    return tuple(chr(0x4E00 + i) for i in range(count))


SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
LATIN = tuple("abcdefghijklmnopqrstuvwxyz")
# facebook/wav2vec2-base-960h: 32 upper-case tokens by frequency, group norm, trained without attention mask
BASE = Shape((*SPECIAL, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"), norm="group", stable=False, mask=False)
SHAPES = {
    "en": BASE,
    "zh": Shape((*SPECIAL, "'", *LATIN, *_han(3503 - 32))),
    # kresnik: delimiter in the middle, [UNK] and [PAD] last; transformers appends <s> and </s> beyond the head
    "ko": Shape((*(chr(0xAC00 + i) for i in range(1202)), "|", "[UNK]", "[PAD]"), pad="[PAD]", unk="[UNK]"),
    "pt": Shape((*SPECIAL, "'", "-", *LATIN, *"àáâãçéêíóôõúü")),
    "pl": Shape((*SPECIAL, "'", "-", *LATIN, *"óąćęłńśźż")),
}


def build(folder: Path, shape: Shape, **changes: object) -> Path:
    """Write a loadable CTC folder of `shape` with random weights; `changes` go into its config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(shape.tokens)}), encoding="utf-8")
    names = {"pad_token": shape.pad, "unk_token": shape.unk, "word_delimiter_token": "|"}
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **names).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=shape.mask).save_pretrained(folder)
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "conv_dim": (24,) * 7, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 4,
    }  # fmt: skip
    settings, family = FAMILIES[shape.family]
    torch.manual_seed(shape.seed)
    config = settings(
        **sizes, vocab_size=len(shape.tokens), feat_extract_norm=shape.norm, do_stable_layer_norm=shape.stable,
        pad_token_id=shape.tokens.index(shape.pad), conv_bias=shape.norm == "layer", initializer_range=0.15, **changes,
    )  # fmt: skip
    model = family(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # decisive outputs: runs, repeats and pauses instead of a flat distribution
    model.save_pretrained(folder)
    return folder


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """(T,) float32 at 16 kHz, loud and coloured enough that models answer differently from frame to frame."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.uniform(0.01, 0.4, int(seconds * 25) + 1), 640)[: round(seconds * 16_000)]
    return (np.cumsum(rng.standard_normal(len(level))) % 1.0 * level).astype(np.float32)
