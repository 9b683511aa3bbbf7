"""Where adapters go, and that what is made is peft's own, to the bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import config_of, loss_and_gradients, tiny

from speechkit.errors import PlanError
from speechkit.llm.lora import adapter_report, add_lora, fused, options_of
from speechkit.llm.lora_options import LoraOptions
from speechkit.llm.lora_targets import experts_of, names_of

IDS = torch.tensor([[5, 9, 13, 21, 34, 55], [7, 11, 8, 3, 44, 32]])


def adapted(model: Any) -> set[str]:
    from peft.tuners.lora import LoraLayer

    inner = model.get_base_model()
    return {name for name, module in inner.named_modules() if isinstance(module, LoraLayer)}


def seeing() -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers.AutoModelForImageTextToText.from_config(config_of("gemma3")).eval()


@pytest.mark.parametrize(
    ("kind", "ends", "each"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, 14),
        ("gemma2", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, 14),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, 8),
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj"}, 8),
    ],
)
def test_auto_adapts_what_the_registry_names_for_the_family(kind: str, ends: set[str], each: int) -> None:
    model = add_lora(tiny(kind), LoraOptions(rank=4))
    assert {name.rpartition(".")[2] for name in adapted(model)} == ends
    assert len(adapted(model)) == each
    assert set(model.peft_config["default"].target_modules) == ends, "short names, which any tool reads"


def test_an_unknown_family_adapts_all_linear_layers_but_the_head() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    made = add_lora(model, LoraOptions(rank=4))
    assert {name.rpartition(".")[2] for name in adapted(made)} == {"c_attn", "c_proj", "c_fc"}


def test_all_linear_leaves_the_head_alone() -> None:
    model = add_lora(tiny("llama", tie_word_embeddings=False), LoraOptions(rank=4, targets=("all-linear",)))
    assert len(adapted(model)) == 14 and "lm_head" not in adapted(model)


def test_the_head_is_adapted_when_it_is_named() -> None:
    model = add_lora(tiny("llama", tie_word_embeddings=False), LoraOptions(rank=4, targets=("q_proj", "lm_head")))
    assert adapted(model) == {"lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}


def test_one_layer_is_adapted_by_its_whole_name() -> None:
    model = add_lora(tiny("llama"), LoraOptions(rank=4, targets=("layers.1.self_attn.q_proj",)))
    assert adapted(model) == {"model.layers.1.self_attn.q_proj"}


def test_a_layer_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"no layer 'q_prj' to adapt; meant is 'q_proj', perhaps. It has down_proj, "):
        add_lora(tiny("llama"), LoraOptions(targets=("q_prj",)))
    with pytest.raises(PlanError, match=r"also_train names 'lm_heat', which the model has not; near are lm_head"):
        add_lora(tiny("llama"), LoraOptions(also_train=("lm_heat",)))


@pytest.mark.parametrize("part", ["text", "vision", "both"])
def test_of_a_model_that_sees_only_the_chosen_part_is_adapted(part: str) -> None:
    model = seeing()
    text, vision = names_of(model, "text"), names_of(model, "vision")
    assert len(text) == 14 and all(".language_model." in name for name in text)
    assert vision and not any(".language_model." in name for name in vision)
    expected = {"text": set(text), "vision": set(vision), "both": {*text, *vision}}[part]
    made = add_lora(model, LoraOptions(rank=4, part=part))
    assert adapted(made) == expected
    assert len(fused(made).left) == 0 and fused(made).fused == len(expected)


def test_names_that_both_towers_have_reach_the_chosen_one_alone() -> None:
    made = add_lora(seeing(), LoraOptions(rank=4, targets=("q_proj",)))
    assert len(adapted(made)) == 2 and all("language_model" in name for name in adapted(made))
    assert any("vision layers stay as they are" in line for line in adapter_report(made).notes)
    both = add_lora(seeing(), LoraOptions(rank=4, targets=("q_proj",), part="both"))
    assert len(adapted(both)) == 3


def test_a_model_without_eyes_has_no_vision_to_adapt() -> None:
    with pytest.raises(PlanError, match=r"part is 'vision', and LlamaForCausalLM has no tower that sees; part='text'"):
        add_lora(tiny("llama"), LoraOptions(part="vision"))


@pytest.mark.parametrize("more", [{}, {"rslora": True}, {"dora": True}, {"alpha": 5.5}], ids=str)
def test_values_and_gradients_are_those_of_peft_by_itself(more: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    options = LoraOptions(rank=4, init="random", **more)
    torch.manual_seed(1)
    ours = add_lora(tiny("llama"), options, kernels=False).train()
    torch.manual_seed(1)
    theirs = get_peft_model(
        tiny("llama"),
        LoraConfig(r=4, lora_alpha=options.alpha, use_rslora=options.rslora, use_dora=options.dora,
                   init_lora_weights=False, target_modules="all-linear"),
    ).train()  # fmt: skip
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    (logits, loss, gradients), (expected, _, others) = loss_and_gradients(ours), loss_and_gradients(theirs)
    assert torch.equal(logits, expected) and torch.isfinite(loss) and gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in others)


def test_before_training_the_adapted_model_is_the_base() -> None:
    expected = tiny("llama")(IDS).logits
    assert torch.equal(add_lora(tiny("llama"), LoraOptions(rank=4))(IDS).logits, expected)


def test_the_adapter_is_in_float32_over_a_base_that_stays_in_sixteen_bits() -> None:
    model = add_lora(tiny("llama").bfloat16(), LoraOptions(rank=4))
    kinds = {("lora" in name, weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()}
    assert kinds == {(True, torch.float32, True), (False, torch.bfloat16, False)}


def test_a_second_adapter_takes_another_name() -> None:
    model = add_lora(tiny("llama"), LoraOptions(rank=4, init="random"))
    with pytest.raises(PlanError, match="has an adapter 'default' already; give this one another name"):
        add_lora(model, LoraOptions(rank=8))
    add_lora(model, LoraOptions(rank=8, targets=("q_proj",)), name="second")
    assert model.active_adapters == ["second"]
    assert options_of(model, "second").rank == 8 and options_of(model).rank == 4
    assert adapter_report(model, "second").layers == {"q_proj": 2}


def test_experts_are_named_as_left_out_or_adapted_when_asked_for() -> None:
    plain = add_lora(tiny("mixtral"), LoraOptions(rank=4))
    assert any(
        "4 tensors of experts stay as they are, such as model.layers.0.mlp.experts.gate_up_proj" in line
        for line in adapter_report(plain).notes
    )
    model = add_lora(tiny("mixtral"), LoraOptions(rank=2, experts=True, init="random")).train()
    assert set(model.peft_config["default"].target_parameters) == {"experts.gate_up_proj", "experts.down_proj"}
    _, _, gradients = loss_and_gradients(model)
    assert sum("experts" in name for name in gradients) == 8
    assert not torch.equal(model(IDS).logits, tiny("mixtral")(IDS).logits)
    with pytest.raises(PlanError, match="experts=True, and the model has no experts"):
        add_lora(tiny("llama"), LoraOptions(experts=True))


def test_expert_tensors_are_known_by_their_three_dimensions() -> None:
    assert len(experts_of(tiny("mixtral"))) == 4 and not experts_of(tiny("llama"))


def test_what_an_adapter_is_prints_in_two_lines() -> None:
    model = add_lora(tiny("llama"), LoraOptions(rank=4, targets=("q_proj", "up_proj")))
    lines = str(adapter_report(model)).splitlines()
    assert lines[0] == "default: LoRA of rank 4, alpha 32, on q_proj, up_proj"
    trained = 2 * (4 * (32 + 32) + 4 * (32 + 48))
    assert lines[1].startswith(f"  {trained:,} of ") and lines[1].endswith(": 2 q_proj, 2 up_proj")
    with pytest.raises(PlanError, match="no adapter 'other'; it has 'default'"):
        adapter_report(model, "other")


@pytest.mark.parametrize(
    ("given", "said"),
    [({"name": "a.b"}, "name is 'a.b'; an adapter's name is a word without dots"), ({"name": ""}, "name is ''"),
     ({"options": {"rank": 4}}, "options is a dict; give LoraOptions")],
)  # fmt: skip
def test_names_and_options_that_are_none_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        add_lora(tiny("llama"), **given)
