"""Chat templates of the families as llama.cpp renders them, beside transformers: byte for byte, through real files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "llm"))
import templates

from speechkit.export.gguf import export_gguf

WIDTHS = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize("family", templates.SHAPES)
def test_a_familys_template_and_stops_are_the_same_in_llama_cpp(family: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, generation = templates.of(family)
    ids = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **WIDTHS, **ids))
    model.generation_config = generation
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    proof = export_gguf(tmp_path / "m", tmp_path / "m.gguf", "F32", prompts=["Hello there"], pre="gpt-2").proof
    assert proof is not None and proof.passed, proof
    assert proof.template is not None and proof.template.of >= 4
    assert proof.stops is not None and proof.stops.same == proof.stops.of
    assert proof.max_logprob_difference is not None and proof.max_logprob_difference <= 2e-3
