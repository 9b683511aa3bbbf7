"""Models built once: the published shapes, a miniature. `asr_shapes` beside this is no module to importlib mode."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Short name of a published model → a folder of its shape with random weights. Do not write into them."""
    from asr_shapes import SHAPES, build

    root = tmp_path_factory.mktemp("published_shapes")
    return {name: build(root / name, shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="session")
def tiny_ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Wav2Vec2ForCTC in miniature, random weights: the text is nonsense, and always the same nonsense."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("tiny-ctc")
    letters = {token: index for index, token in enumerate(["<pad>", "<unk>", "|", *"abcdefghij"])}
    (folder / "vocab.json").write_text(json.dumps(letters))
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": None, "eos_token": None}
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **special)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    config = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, pad_token_id=0,
        feat_extract_norm="layer", do_stable_layer_norm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return folder
