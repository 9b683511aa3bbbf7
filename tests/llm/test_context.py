"""How long a row may be: the model's own length, more by YaRN where positions rotate, and a refusal that names it."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import config_of

from speechkit.errors import PlanError
from speechkit.llm import apply_kernels
from speechkit.llm.context import stretch
from speechkit.llm.registry import family_of

TEXT = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "deepseek_v2",
    "deepseek_v3", "phi3",
)  # fmt: skip


def made(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_without_a_wish_the_models_own_length_holds() -> None:
    config = config_of("llama")
    found = stretch(config, None)
    assert (found.tokens, found.factor) == (64, 1.0) and str(found) == "64 tokens (what the model was made for)"
    assert str(stretch(config, 16)) == "16 tokens (asked for; the model was made for 64)"
    assert config.to_dict() == config_of("llama").to_dict(), "nothing is changed for a shorter row"


@pytest.mark.parametrize("kind", TEXT)
def test_a_longer_row_is_read_with_positions_stretched_by_yarn(kind: str) -> None:
    more = {"num_hidden_layers": 6} if kind == "gemma3_text" else {}
    config, old = config_of(kind, **more), config_of(kind, **more)
    found = stretch(config, 256, family_of(config))
    assert (found.tokens, found.of_model, found.factor) == (256, 64, 4.0)
    assert str(found).startswith("256 tokens (positions stretched by YaRN, factor 4: the model was made for 64, and")
    assert config.max_position_embeddings == 256
    longer, before = made(config), made(old)
    ids = torch.arange(200)[None] % 60 + 3
    with torch.no_grad():
        logits = longer(input_ids=ids).logits
        assert logits.isfinite().all() and not torch.equal(logits, before(input_ids=ids).logits)
        apply_kernels(longer)
        torch.testing.assert_close(longer(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-5)


def test_the_frequencies_are_those_of_the_paper() -> None:
    """YaRN (arXiv:2309.00071), eq. 23 to 25: theta' = (1 - g) theta / s + g theta, g a ramp over rotations."""
    head, own, s, base = 32, 2048, 4.0, 10000.0
    config = config_of("llama", hidden_size=64, num_attention_heads=2, num_key_value_heads=2, head_dim=head,
                       max_position_embeddings=own)  # fmt: skip
    stretch(config, int(own * s))
    rotary = made(config).model.rotary_emb
    theta = [base ** (-2 * i / head) for i in range(head // 2)]
    rotations = [own * frequency / (2 * math.pi) for frequency in theta]
    for frequency, turns, got in zip(theta, rotations, rotary.inv_freq.tolist(), strict=True):
        if turns > 32 * 1.3:  # beta_fast: many rotations, left alone; a margin, for the ramp runs over whole dimensions
            assert got == pytest.approx(frequency)
        elif turns < 1 / 1.8:  # beta_slow: less than one rotation, stretched wholly
            assert got == pytest.approx(frequency / s)
        else:
            assert frequency / s * 0.999 <= got <= frequency * 1.001
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(s) + 1)


def test_layers_of_gemma_that_look_back_a_window_keep_their_positions() -> None:
    config = config_of("gemma3_text", num_hidden_layers=6)
    stretch(config, 256, family_of(config))
    assert config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert config.rope_parameters["full_attention"]["rope_type"] == "yarn"


def test_a_stretched_configuration_is_saved_and_read_again(tmp_path: Path) -> None:
    config = config_of("qwen3")
    stretch(config, 100)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.rope_parameters["factor"] == 100 / 64 and again.max_position_embeddings == 100


@pytest.mark.parametrize(
    ("config", "max_len", "said"),
    [
        (config_of("llama"), 513, "is 513, the model's own is 64; positions are stretched up to 8 times: at most 512"),
        (config_of("gpt2"), 65, "max_len is 65, above the 64 that gpt2 was made for, and its positions are learned "
                                "ones, which cannot be stretched: at most 64"),
        (config_of("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), 65,
         "the 64 that Llama 2 and its likes was made for, and its positions are stretched already (linear): at most"),
        (config_of("llama"), 0, "max_len is 0; it can be None (the model's own) or a whole number from 1"),
        (config_of("llama"), 1.5, "max_len is 1.5; it can be None"),
        (config_of("llama"), True, "max_len is True; it can be None"),
    ],
    ids=["too far", "learned positions", "stretched already", "nothing", "no whole number", "a flag"],
)  # fmt: skip
def test_a_length_that_cannot_be_names_the_models_limit(config: Any, max_len: Any, said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        stretch(config, max_len, family_of(config))
