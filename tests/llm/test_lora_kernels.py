"""The fused product in adapted layers: values and gradients of peft's own forward, in every state of a model."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import loss_and_gradients, tiny

from speechkit.llm import apply_kernels, undo_kernels
from speechkit.llm import lora_kernels as subject
from speechkit.llm.lora import add_lora, fuse, fused, unfuse
from speechkit.llm.lora_options import LoraOptions

IDS = torch.tensor([[5, 9, 13, 21, 34, 55], [7, 11, 8, 3, 44, 32]])
RANDOM = LoraOptions(rank=4, init="random", alpha=6)


@pytest.fixture(autouse=True)
def any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny batches take the fused product too, which on a CPU is otherwise for 128 rows and more."""
    monkeypatch.setattr(subject, "FEWEST", 0)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each fused product."""
    calls: list[int] = []
    plain = subject._product
    monkeypatch.setattr(subject, "_product", lambda layer, x: calls.append(1) or plain(layer, x))
    return calls


def adapted(options: LoraOptions = RANDOM, kind: str = "llama", *, kernels: bool, **more: Any) -> Any:
    model = tiny(kind, **more)
    torch.manual_seed(3)
    return add_lora(model, options, kernels=kernels)


def assert_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "mixtral", "gemma2"])
def test_logits_loss_and_gradients_are_pefts(kind: str, products: list[int]) -> None:
    expected, loss, gradients = loss_and_gradients(adapted(kind=kind, kernels=False).train())
    assert not products
    ours = adapted(kind=kind, kernels=True).train()
    found, our_loss, our_gradients = loss_and_gradients(ours)
    assert len(products) == fused(ours).fused == fused(ours).layers > 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(our_loss, loss, atol=1e-5, rtol=1e-5)
    assert_gradients(our_gradients, gradients)


def test_on_a_cpu_few_rows_go_pefts_way(products: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "FEWEST", 128)
    model = adapted(kernels=True)
    model(torch.ones(2, 63, dtype=torch.long))
    assert not products
    model(torch.ones(2, 64, dtype=torch.long))
    assert len(products) == 14


def test_of_several_processes_all_go_one_way_whatever_the_rows(
    products: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else gradients of A and B come in another order in one process than in the other, and ZeRO-2's buckets mix."""
    monkeypatch.setattr(subject, "FEWEST", 128)
    model = adapted(kernels=True)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model(torch.ones(1, 2, dtype=torch.long))
    finally:
        torch.distributed.destroy_process_group()
    assert len(products) == 14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_sixteen_bits_it_is_as_near_the_truth_as_peft(dtype: torch.dtype) -> None:
    """Under autocast, as trainers run; without it peft computes the update in float32, the kernel in 16 bits."""
    torch.manual_seed(0)
    layer = adapted(kernels=False).get_base_model().model.layers[0].mlp.up_proj
    layer.base_layer.to(dtype)
    x = torch.randn(3, 50, 32).to(dtype)
    truth = copy.deepcopy(layer).double()(x.double())
    with torch.autocast("cpu", dtype):
        theirs = layer(x)
        fuse(layer)
        ours = layer(x)
    assert ours.dtype == theirs.dtype == dtype
    errors = [float((y.double() - truth).square().mean().sqrt()) for y in (ours, theirs)]
    assert errors[0] <= 2 * errors[1]


def test_switched_off_it_is_the_base_and_switched_on_again_it_is_fused(products: list[int]) -> None:
    model = adapted(kernels=True)
    expected = model(IDS).logits
    products.clear()
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, tiny("llama")(IDS).logits)
        assert fused(model).left == {"the adapter is switched off": 14}
    assert not products
    assert torch.equal(model(IDS).logits, expected) and len(products) == 14


def test_merged_by_peft_it_is_pefts_and_unmerged_it_is_fused(products: list[int]) -> None:
    model = adapted(kernels=True)
    expected = model(IDS).logits
    model.merge_adapter()
    products.clear()
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    assert not products and fused(model).left == {"the adapter is merged": 14}
    model.unmerge_adapter()
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    assert len(products) == 14
    torch.testing.assert_close(model.merge_and_unload()(IDS).logits, expected, atol=1e-5, rtol=1e-4)


def test_of_several_adapters_the_chosen_one_is_fused_and_two_at_once_are_pefts(products: list[int]) -> None:
    models = []
    for kernels in (True, False):
        model = adapted(kernels=kernels)
        torch.manual_seed(4)
        models.append(add_lora(model, RANDOM.replace(rank=2, targets=("q_proj", "up_proj")), name="b", kernels=kernels))
    ours, theirs = models
    assert fused(ours).fused == 4 and fused(ours).left == {"no adapter of it is active": 10}
    for chosen, count in (("b", 4), ("default", 14), (["default", "b"], 10)):
        for model in models:
            model.base_model.set_adapter(chosen)
        products.clear()
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-4)
        assert len(products) == count
    assert fused(ours).left == {"2 adapters are active, the kernel has one": 4}
    ours.delete_adapter("b")
    assert fused(ours).fused == 14


def test_rows_that_name_their_own_adapters_are_pefts(products: list[int]) -> None:
    ours, theirs = (adapted(kernels=kernels).eval() for kernels in (True, False))
    named = {"adapter_names": ["default", "__base__"]}
    torch.testing.assert_close(ours(IDS, **named).logits, theirs(IDS, **named).logits)
    assert not products


def test_with_dropout_it_is_pefts_in_training_and_fused_in_answering(products: list[int]) -> None:
    ours, theirs = (adapted(RANDOM.replace(dropout=0.5), kernels=kernels).train() for kernels in (True, False))
    torch.manual_seed(5)
    expected = theirs(IDS).logits
    torch.manual_seed(5)
    assert torch.equal(ours(IDS).logits, expected) and not products
    assert fused(ours).left == {"dropout in training, whose mask the kernel does not draw": 14}
    torch.testing.assert_close(ours.eval()(IDS).logits, theirs.eval()(IDS).logits, atol=1e-5, rtol=1e-4)
    assert len(products) == 14


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"dora": True}, "DoRA's norms are not in the kernel"),
        ({"targets": ("embed_tokens",)}, "no kernel for peft's Embedding"),
    ],
    ids=["DoRA", "embedding"],
)
def test_what_no_kernel_has_is_left_with_the_reason(more: dict[str, Any], reason: str, products: list[int]) -> None:
    model = adapted(RANDOM.replace(**more), kernels=True)
    assert list(fused(model).left) == [reason] and fused(model).fused == 0
    assert torch.equal(model(IDS).logits, adapted(RANDOM.replace(**more), kernels=False)(IDS).logits) and not products
    assert reason in str(fused(model))


def test_hooks_within_a_layer_are_called_by_pefts_forward(products: list[int]) -> None:
    model = adapted(kernels=True)
    seen: list[int] = []
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    handle = layer.lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
    model(IDS)
    assert len(seen) == 1 and len(products) == 13
    assert fused(model).left == {"hooks within it would not be called (offload, ZeRO-3)": 1}
    handle.remove()
    assert fused(model).fused == 14


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing_gradients_are_the_same(reentrant: bool, products: list[int]) -> None:
    _, _, gradients = loss_and_gradients(adapted(kernels=False).train())
    model = tiny("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    torch.manual_seed(3)
    ours = add_lora(model, RANDOM).train()
    _, _, found = loss_and_gradients(ours)
    assert_gradients(found, gradients)
    assert len(products) == 28, "each layer twice"


def test_under_autocast_it_has_autocasts_dtype_and_values(products: list[int]) -> None:
    ours, theirs = (adapted(kernels=kernels) for kernels in (True, False))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(IDS).logits, theirs(IDS).logits
    assert len(products) == 14 and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_under_torch_compile_it_is_one_graph() -> None:
    torch._dynamo.reset()
    model = adapted(kernels=True).get_base_model()
    found = torch._dynamo.explain(model)(input_ids=IDS)
    assert found.graph_count == 1, found.break_reasons
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(IDS).logits, adapted(kernels=False)(IDS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],  # noqa: S301 - our own bytes
                         ids=["copied", "pickled"])  # fmt: skip
def test_a_twin_is_fused_too_with_weights_of_its_own(twin_of: Any) -> None:
    model = adapted(kernels=True)
    twin = twin_of(model)
    assert fused(twin) == fused(model) and torch.equal(twin(IDS).logits, model(IDS).logits)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if "lora_B" in name:
                weight.zero_()
    assert torch.equal(twin(IDS).logits, tiny("llama")(IDS).logits)
    assert not torch.equal(model(IDS).logits, twin(IDS).logits)


def test_it_is_taken_out_and_put_in_again_beside_other_kernels(products: list[int]) -> None:
    model = adapted(kernels=True)
    expected = adapted(kernels=False)(IDS).logits
    applied = apply_kernels(model)
    assert unfuse(model) == 14 and fused(model).left == {"not asked for": 14}
    others = {kind: count for kind, count in applied.counts.items() if kind != "low-rank updates"}
    assert others and apply_kernels(model).counts == others, "the others stay"
    model(IDS)
    assert not products
    assert fuse(model).fused == 14 == fuse(model).fused
    undo_kernels(model)
    assert fused(model).fused == 0, "taken out with all kernels"
    assert torch.equal(model(IDS).logits, expected)


def four_bits(folder: Path, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    four = BitsAndBytesConfig(load_in_4bit=True, **{"bnb_4bit_quant_type": "nf4", **more})
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=four, device_map={"": "cpu"})


@pytest.mark.parametrize("nested", [False, True], ids=["float32 absmax", "nested absmax"])
def test_over_four_bits_values_and_gradients_are_pefts(nested: bool, tmp_path: Path, products: list[int]) -> None:
    results = []
    for kernels in (False, True):
        base = four_bits(tmp_path, bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=torch.float32)
        torch.manual_seed(3)
        model = add_lora(base.train(), RANDOM, kernels=kernels).train()
        results.append(loss_and_gradients(model))
    (expected, loss, gradients), (found, our_loss, ours) = results
    assert len(products) == 14 and fused(model).bases == {"NF4": 14}
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(our_loss, loss, atol=1e-5, rtol=1e-5)
    assert_gradients(ours, gradients)


def test_a_four_bit_model_that_answered_in_between_trains_on(tmp_path: Path) -> None:
    """bitsandbytes repacks weights at the first call in evaluation on some CPUs; what is repacked has no gradient."""
    model = add_lora(four_bits(tmp_path, bnb_4bit_compute_dtype=torch.float32), RANDOM).train()
    _, loss, gradients = loss_and_gradients(model)
    with torch.no_grad():
        model.eval()(IDS)
    _, again, ours = loss_and_gradients(model.train())
    assert torch.equal(loss, again)
    assert_gradients(ours, gradients)


def test_other_four_bit_formats_are_left_with_the_reason(tmp_path: Path, products: list[int]) -> None:
    model = add_lora(four_bits(tmp_path, bnb_4bit_quant_type="fp4"), RANDOM)
    assert list(fused(model).left) == ["4-bit weights as fp4 in blocks of 64; the kernel reads nf4 in 64"]
    model(IDS)
    assert not products


def test_a_weight_on_a_cpu_is_written_out_in_the_bits_of_the_definition(tmp_path: Path) -> None:
    from speechkit_kernels.reference.nf4 import NF4Weight, nf4_dequantise

    layer = four_bits(tmp_path).model.layers[0].mlp.up_proj
    held = subject.HeldWeight(layer.weight.detach(), layer.weight.quant_state)
    own = NF4Weight.from_bitsandbytes(layer.weight)
    assert held.shape == own.shape == (128, 64)
    assert torch.equal(held.dequantise(torch.float32), nf4_dequantise(own, torch.float32))
    x = torch.randn(5, 64, requires_grad=True)
    held.linear(x).sum().backward()
    torch.testing.assert_close(x.grad, nf4_dequantise(own, torch.float32).sum(0).expand(5, 64))


def test_the_report_prints_what_runs_and_why_not() -> None:
    model = adapted(RANDOM.replace(targets=("q_proj", "embed_tokens")), kernels=True)
    assert str(fused(model)).splitlines() == [
        "2 of 3 adapted layers run fused (2 over float32)",
        "  – 1 by peft's own forward: no kernel for peft's Embedding",
    ]
