"""A wav2vec 2.0 of a few thousand weights, and sound for it: what the tests of pretraining share."""

from __future__ import annotations

import numpy as np
from transformers import Wav2Vec2Config


def tiny(**changes: object) -> Wav2Vec2Config:
    """Four convolutions with the published hop of 320 samples, one transformer layer, no dropout."""
    settings = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": (8, 8, 8, 8), "conv_kernel": (20, 8, 8, 4), "conv_stride": (10, 4, 4, 2),
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
        "do_stable_layer_norm": True, "num_codevector_groups": 2, "num_codevectors_per_group": 5,
        "codevector_dim": 8, "proj_codevector_dim": 6, "hidden_dropout": 0.0, "attention_dropout": 0.0,
        "activation_dropout": 0.0, "feat_proj_dropout": 0.0, "feat_quantizer_dropout": 0.0, "layerdrop": 0.0,
    }  # fmt: skip
    return Wav2Vec2Config(**{**settings, **changes})


def tones(count: int, seconds: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    """`count` clips of `seconds`: eight tones a second, each frame's pitch known from its neighbours'."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(count):
        pitch = np.repeat(rng.choice([200, 500, 900, 1700, 3000], int(seconds * 8) + 1), 2000)[: int(seconds * 16_000)]
        wave = np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + 0.05 * rng.standard_normal(len(pitch))
        clips.append((0.3 * wave).astype(np.float32))
    return clips
