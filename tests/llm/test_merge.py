"""Merging: peft's own merge as oracle, measured differences, refusals that leave the model as it was, the way back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.errors import ExportError, ModelError, PlanError
from speechkit.llm.lora import add_lora, fused
from speechkit.llm.lora_options import LoraOptions
from speechkit.llm.merge import merge, unmerge
from speechkit.llm.merge_check import compare, tolerance_of

IDS = torch.tensor([[5, 9, 13, 21, 34, 55], [7, 11, 8, 3, 44, 32]])
RANDOM = LoraOptions(rank=4, init="random")
TIED = {"tie_word_embeddings": True}


def adapted(options: LoraOptions = RANDOM, kind: str = "llama", dtype: Any = torch.float32, **more: Any) -> Any:
    torch.manual_seed(3)
    model = tiny(kind, **more).to(dtype)
    return add_lora(model, options)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert weight.dtype == other[name].dtype and torch.equal(weight, other[name]), name


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"rslora": True},
    "DoRA": {"dora": True},
    "head": {"targets": ("q_proj", "lm_head")},
    "embedding": {"targets": ("q_proj", "embed_tokens")},
}


@pytest.mark.parametrize("more", CASES.values(), ids=CASES.keys())
def test_the_merged_model_says_what_the_adapted_one_said_and_has_pefts_weights(more: dict[str, Any]) -> None:
    model = adapted(RANDOM.replace(**more), tie_word_embeddings=False)
    expected = logits(model)
    theirs = adapted(RANDOM.replace(**more), tie_word_embeddings=False).merge_and_unload()
    merged, report = merge(model)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)
    assert type(merged).__name__ == "LlamaForCausalLM" and not any("lora" in name for name in merged.state_dict())
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight, atol=1e-6, rtol=1e-5)
    assert report.dtype == "float32" and report.rounding < 1e-4 < report.delta_norm
    assert report.top1_agreement is not None and report.top1_agreement > 0.99
    assert report.agreement is not None and report.agreement.relative < 1e-5 < 1e-2 < report.agreement.effect


def test_merged_experts_say_what_adapted_ones_said() -> None:
    model = adapted(LoraOptions(rank=2, experts=True, init="random"), "mixtral")
    before, expected = weights(model), logits(model)
    merged, report = merge(model)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)
    assert report.layers == 12
    assert_same(weights(unmerge(merged)), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_sixteen_bits_the_sum_is_rounded_once(dtype: torch.dtype) -> None:
    model = adapted(dtype=dtype)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    exact = layer.base_layer.weight.double() + layer.scaling["default"] * (
        layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    )
    merged, report = merge(model)
    found = merged.model.layers[0].mlp.up_proj.weight
    assert found.dtype == dtype and (found.detach() == exact.to(dtype)).double().mean() > 0.999
    assert report.dtype == str(dtype).removeprefix("torch.") and 0 < report.rounding < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [{}, {"dora": True}, {"also_train": ("lm_head",)}], ids=["LoRA", "DoRA", "whole head"])
def test_unmerged_the_base_is_what_it_was_to_the_bit_and_the_adapter_goes_on(
    dtype: torch.dtype, more: dict[str, Any]
) -> None:
    model = adapted(RANDOM.replace(**more), dtype=dtype)
    before, expected, report = weights(model), logits(model), fused(model)
    merged, _ = merge(model)
    again = unmerge(merged)
    assert again is model and torch.equal(logits(again), expected) and fused(again) == report
    assert_same(weights(again), before)
    merged, _ = merge(again)
    with pytest.raises(PlanError, match="has no adapter to merge; give the model that add_lora returned"):
        merge(merged)
    model.get_base_model().train()
    assert_same(weights(unmerge(merged)), before)


def test_an_untrained_adapter_is_refused_and_the_model_stays() -> None:
    for more in ({}, {"dora": True}):
        model = adapted(LoraOptions(rank=4, **more))
        before = weights(model)
        with pytest.raises(ExportError, match="the adapter changes nothing: B is zero in all layers, as before"):
            merge(model)
        assert_same(weights(model), before)


def test_a_diverged_adapter_is_refused_with_the_layer() -> None:
    model = adapted()
    model.get_base_model().model.layers[1].mlp.up_proj.lora_B["default"].weight.data[0, 0] = float("nan")
    before = weights(model)
    with pytest.raises(ExportError, match=r"merging model.layers.1.mlp.up_proj gives weights that are not finite"):
        merge(model, check=False)
    after = weights(model)
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)


def test_an_update_that_rounding_eats_is_refused_in_bfloat16_and_merged_in_float32() -> None:
    """Steps of bfloat16 near 0.02 are 1e-4; the update is 1e-6."""
    model = adapted(dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.mul_(2e-6)
    before = weights(model)
    with pytest.raises(
        ExportError, match=r"merging in bfloat16 loses the adapter: rounding takes.*dtype=torch.float32"
    ):
        merge(model)
    assert_same(weights(model), before)
    _, report = merge(model, dtype=torch.float32, check=False)
    assert report.rounding < 0.01 and report.dtype == "float32"


def test_a_merged_model_that_is_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that forgets the scale, as peers' have done."""
    from speechkit.llm import merge_weights

    model = adapted(LoraOptions(rank=4, init="random", alpha=4.5))
    before, plain = weights(model), merge_weights._with
    monkeypatch.setattr(
        merge_weights, "_with", lambda layer, name, value: value + 1.2 * (plain(layer, name, value) - value)
    )
    with pytest.raises(ExportError, match=r"merged model is not the adapted one: logits differ by .* is allowed in"):
        merge(model)
    assert_same(weights(model), before)
    _, report = merge(model, check=False)
    assert report.agreement is None and "not checked against the adapter" in str(report)


@pytest.mark.parametrize(
    "more",
    [{"targets": ("q_proj", "lm_head")}, {"targets": ("q_proj", "embed_tokens")}, {"also_train": ("lm_head",)}],
    ids=["head adapted", "embedding adapted", "head trained whole"],
)
def test_tied_weights_that_part_are_saved_as_two(more: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = adapted(RANDOM.replace(**more), **TIED)
    if "also_train" in more:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.5)
    before, expected = weights(model), logits(model)
    merged, report = merge(model)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)
    assert "head and embedding are two weights now" in str(report)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(merged))
    assert unmerge(merged).config.tie_word_embeddings
    assert_same(weights(model), before)


def test_tied_weights_that_no_adapter_touches_stay_tied() -> None:
    merged, report = merge(adapted(**TIED))
    assert merged.lm_head.weight is merged.model.embed_tokens.weight and merged.config.tie_word_embeddings
    assert "two weights" not in str(report)


def test_two_active_adapters_are_added_up() -> None:
    model = adapted()
    add_lora(model, RANDOM.replace(rank=2, targets=("q_proj",)), name="second")
    model.base_model.set_adapter(["default", "second"])
    expected = logits(model)
    merged, _ = merge(model)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)
    assert unmerge(merged).active_adapters == ["default", "second"]


def four_bits(folder: Path, dtype: Any = torch.bfloat16) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny("llama", hidden_size=64, intermediate_size=128).to(dtype).save_pretrained(folder)
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four, device_map={"": "cpu"}, dtype=dtype)
    torch.manual_seed(3)
    return add_lora(base, RANDOM.replace(alpha=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_four_bit_base_is_written_out_and_says_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = four_bits(tmp_path / "base", dtype)
    expected, report = logits(model), fused(model)
    before = weights(model)
    assert report.fused == 14 and report.bases == {"NF4": 14}
    merged, told = merge(model)
    assert {weight.dtype for weight in merged.parameters()} == {dtype}
    assert told.agreement is not None and told.agreement.relative < told.tolerance
    assert "its quantised base written out" in str(told)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype)
    assert torch.equal(logits(again), logits(merged)) and not hasattr(again.config, "quantization_config")
    back = unmerge(merged)
    assert torch.equal(logits(back), expected) and fused(back) == report
    assert_same(weights(back), before)


def test_an_eight_bit_base_is_written_out_within_what_rounding_activations_does(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    eight = BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=eight, device_map={"": "cpu"})
    torch.manual_seed(3)
    model = add_lora(base, RANDOM.replace(alpha=4))
    expected = logits(model)
    assert list(fused(model).left) == ["no kernel for peft's Linear8bitLt"]
    merged, report = merge(model, dtype=torch.float32)
    assert report.agreement is not None and 1e-4 < report.agreement.relative < report.tolerance < 0.1
    assert {weight.dtype for weight in merged.parameters()} == {torch.float32}
    assert torch.equal(logits(unmerge(merged)), expected)


def test_onto_a_base_loaded_anew_in_sixteen_bits(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = four_bits(tmp_path / "base")
    expected = logits(model)
    merged, report = merge(model, base=tmp_path / "base")
    assert torch.equal(logits(model), expected), "the model that was given is as it was"
    assert "base loaded anew; the adapter as it was trained, on the other base, is" in str(report)
    model.save_pretrained(str(tmp_path / "adapter"))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16), str(tmp_path / "adapter")
    )
    far, near = ((logits(merged) - logits(x)).float().square().mean().sqrt() for x in (model, theirs))
    assert near < far / 3, "it is the adapter on the base itself, not on its 4-bit copy"
    with pytest.raises(ModelError, match=r"was made for .*base.*, not for 'LlamaForCausalLM': .*A is 4 x 64"):
        merge(model, base=tiny("llama"))


def test_without_the_old_weights_there_is_no_way_back() -> None:
    merged, _ = merge(adapted(), keep=False)
    with pytest.raises(PlanError, match="merged with keep=False, so that the base's weights are gone"):
        unmerge(merged)
    with pytest.raises(PlanError, match="LlamaForCausalLM was not merged here"):
        unmerge(tiny("llama"))


def test_the_report_is_one_line_of_measured_figures() -> None:
    model = adapted(dtype=torch.bfloat16)
    expected = logits(model).float()
    merged, report = merge(model, probe={"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    line = str(report)
    assert "\n" not in line and line.startswith("merged 14 weights in bfloat16, updates up to ")
    assert f"of {IDS.numel()} tokens" in line
    assert report.max_logit_difference == pytest.approx(float((logits(merged).float() - expected).abs().max()))


def test_positions_of_padding_are_not_compared() -> None:
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    _, report = merge(adapted(), probe={"input_ids": IDS, "attention_mask": mask})
    assert report.agreement is not None and report.agreement.tokens == 8


def test_agreement_is_torchs_own_divergence() -> None:
    torch.manual_seed(0)
    first, second, bare = torch.randn(3, 50, 17)
    found = compare(first, second, bare)
    expected = torch.nn.functional.kl_div(
        second.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert found.kl == pytest.approx(float(expected), rel=1e-5)
    assert found.top1 == pytest.approx(float((first.argmax(-1) == second.argmax(-1)).float().mean()))
    assert compare(first, first, bare).relative == 0 == compare(first, first, first).effect


def test_coarser_numbers_and_deeper_models_are_allowed_more() -> None:
    assert tolerance_of(torch.float32, 2) < tolerance_of(torch.float16, 2) < tolerance_of(torch.bfloat16, 2)
    assert tolerance_of(torch.bfloat16, 32) == pytest.approx(4 * tolerance_of(torch.bfloat16, 2))
    assert tolerance_of(torch.bfloat16, 32) < 0.1


def test_merging_twice_without_an_adapter_or_in_no_dtype_is_refused() -> None:
    model = adapted()
    given: dict[str, Any]
    for given, said in (
        ({"dtype": "float16"}, "dtype is 'float16'; it can be"),
        ({"probe": torch.tensor([[1.5]])}, r"probe is float32 of shape \(1, 1\); it is tokens"),
        ({"probe": torch.tensor([1, 2])}, r"probe is int64 of shape \(2,\)"),
    ):
        with pytest.raises(PlanError, match=said):
            merge(model, **given)
    model.base_model.disable_adapter_layers()
    with pytest.raises(PlanError, match="no adapter is active"):
        merge(model)
    model.base_model.enable_adapter_layers()
    merged, _ = merge(model)
    with pytest.raises(PlanError, match="merged already; give merge what unmerge returns"):
        merge(model)
    again, _ = merge(add_lora(merged, RANDOM))
    assert again is merged, "a second adapter on a merged model is merged as the first was"
    with pytest.raises(PlanError, match="NoneType was not merged here"):
        unmerge(None)


def test_training_after_merging_is_lost_where_merging_wrote_and_stays_elsewhere() -> None:
    before = weights(tiny("llama"))
    merged, _ = merge(adapted())
    with torch.no_grad():
        merged.model.layers[0].self_attn.q_proj.weight.add_(1)
        merged.model.norm.weight.add_(1)
    back = unmerge(merged).get_base_model()
    written = back.model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(written, before["model.layers.0.self_attn.q_proj.weight"])
    assert torch.equal(back.model.norm.weight, before["model.norm.weight"] + 1)


def test_a_base_to_merge_onto_is_read_as_load_llm_reads_it(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(tiny("llama").state_dict(), tmp_path / "base" / "pytorch_model.bin")
    for base, said in (
        (tmp_path / "base", "holds pickled weights only, which can run code"),
        ("demo/chatt", "unknown embedded language model 'demo/chatt'"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        with pytest.raises(ModelError, match=said):
            merge(adapted(), base=base)
