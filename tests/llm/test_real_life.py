"""Kernels in models as people have them: adapted, compiled, checkpointed, hooked, in half precision, saved, copied."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import loss_and_gradients, tiny
from transformers import AutoModelForCausalLM

from speechkit.errors import ModelError
from speechkit.llm import apply_kernels, explain, undo_kernels
from speechkit.llm.exchange import taken_in
from speechkit.llm.profiles import PROFILES

TYPES = [kind for profile in PROFILES for kind in profile.model_types]
IDS = torch.tensor([[5, 9, 13, 21, 34, 55], [7, 11, 8, 3, 44, 32]])
ALL = {"norms": 5, "gated units": 2, "rotary positions": 2, "attention": 1, "loss": 1}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def lora(model: Any, **more: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "up_proj", "down_proj"], init_lora_weights=False, **more)
    )
    return wrapped.eval()


@pytest.mark.parametrize("first", ["kernels", "adapters"])
def test_adapters_around_or_within(first: str) -> None:
    expected, _, gradients = loss_and_gradients(lora(tiny("llama")))
    model = tiny("llama")
    if first == "kernels":
        apply_kernels(model)
        model = lora(model)
    else:
        model = lora(model)
        apply_kernels(model)
    assert explain(model).counts == ALL
    assert explain(model).left == ("6 low-rank updates by peft's own forward: not asked for",), "peft put them in"
    found, _, ours = loss_and_gradients(model)
    close(found, expected)
    assert ours.keys() == gradients.keys() and len(ours) == 12, "adapters alone are trained"
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3)
    assert undo_kernels(model) == 11
    assert torch.equal(loss_and_gradients(model)[0], expected)
    apply_kernels(model)
    close(model.merge_and_unload()(IDS).logits, lora(tiny("llama")).merge_and_unload()(IDS).logits)


def test_adapters_over_four_bits(tmp_path: Path) -> None:
    """bitsandbytes' layers on a CPU; the head is not quantised, so that its loss is the kernel's."""
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=four, device_map={"": "cpu"})
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    model = lora(model).train()
    _, loss, gradients = loss_and_gradients(model)
    assert apply_kernels(model).counts == ALL
    none, our_loss, ours = loss_and_gradients(model)
    torch.testing.assert_close(our_loss, loss, atol=1e-6, rtol=1e-5)
    assert none is None and ours.keys() == gradients.keys() and len(ours) == 12
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3)


def test_an_adapted_or_saved_head_computes_its_loss_as_transformers_does() -> None:
    for more in ({"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}):
        from peft import LoraConfig, get_peft_model

        plain, ours = (
            get_peft_model(
                tiny("llama", tie_word_embeddings=False),
                LoraConfig(r=4, **{"target_modules": ["q_proj"], **more}, init_lora_weights=True),
            ).train()
            for _ in range(2)
        )
        ours.load_state_dict(plain.state_dict())
        assert any("its head is a" in line for line in apply_kernels(ours).left)
        torch.testing.assert_close(ours(IDS, labels=IDS).loss, plain(IDS, labels=IDS).loss)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "deepseek_v3"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing_the_gradients_are_the_same(kind: str, reentrant: bool) -> None:
    model = tiny(kind).train()
    _, loss, gradients = loss_and_gradients(model)
    apply_kernels(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    _, our_loss, ours = loss_and_gradients(model)
    torch.testing.assert_close(our_loss, loss, atol=1e-6, rtol=1e-5)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("first", ["kernels", "compile"])
def test_under_torch_compile(first: str) -> None:
    torch._dynamo.reset()
    plain = tiny("llama").train()
    expected = plain(IDS, labels=IDS).loss
    model = tiny("llama").train()
    if first == "kernels":
        apply_kernels(model)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(IDS, labels=IDS).loss, expected, atol=1e-6, rtol=1e-5)
    apply_kernels(compiled)
    assert explain(compiled).counts == ALL
    found = compiled(IDS, labels=IDS)
    assert found.logits is None
    torch.testing.assert_close(found.loss, expected, atol=1e-6, rtol=1e-5)
    found.loss.backward()
    plain.zero_grad()
    expected.backward()
    close(model.model.norm.weight.grad, plain.model.norm.weight.grad)
    undo_kernels(compiled)
    assert torch.equal(compiled(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("triton", [True, False], ids=["with triton installed", "without"])
def test_torch_compile_makes_one_graph_of_a_model_with_all_kernels(
    triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechkit_kernels import launch

    if triton:
        monkeypatch.setattr(launch, "_triton", lambda: __import__("triton"))
        monkeypatch.setattr(__import__("triton").knobs.runtime, "interpret", False)
    torch._dynamo.reset()
    model = tiny("llama").train()
    apply_kernels(model)
    found = torch._dynamo.explain(model)(input_ids=IDS, labels=IDS)
    assert found.graph_count == 1, found.break_reasons


@pytest.mark.parametrize("first", ["kernels", "hooks"])
def test_accelerates_hooks_that_load_each_layer_when_it_is_needed(first: str) -> None:
    from accelerate import cpu_offload

    model, expected = tiny("llama"), tiny("llama")(IDS).logits
    if first == "kernels":
        apply_kernels(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.model.norm.weight.is_meta, "the weight is elsewhere until the hook brings it"
    applied = apply_kernels(model)
    assert {**applied.counts, "loss": 1} == ALL and applied.device == "cpu, float32"
    assert any("its head is" in line or "its head has hooks" in line for line in applied.left)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        from speechkit_kernels import rms_norm

        kernel = rms_norm.rms_norm
        patch.setattr(rms_norm, "rms_norm", lambda *args, **more: calls.append(1) or kernel(*args, **more))
        close(model(IDS).logits, expected)
    assert len(calls) == 5
    undo_kernels(model)
    assert torch.equal(model(IDS).logits, expected)


def test_a_forward_that_somebody_gave_an_instance_is_left_and_named() -> None:
    model = tiny("llama")
    model.model.norm.forward = lambda x: x
    applied = apply_kernels(model)
    assert applied.counts["norms"] == 4
    assert any("1 norms" in line and "model.norm: somebody gave" in line for line in applied.left)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", TYPES)
def test_in_half_precision_logits_are_as_near_the_truth_as_transformers(kind: str, dtype: torch.dtype) -> None:
    ids = torch.arange(4 * 24).reshape(4, 24) * 11 % 60 + 3
    plain = tiny(kind).to(dtype)
    truth = copy.deepcopy(plain).float()(ids).logits
    theirs = plain(ids).logits
    apply_kernels(plain)
    ours = plain(ids).logits
    assert ours.dtype == theirs.dtype == dtype
    errors = [(x.float() - truth).square().mean().sqrt().item() for x in (ours, theirs)]
    assert errors[0] <= 2 * errors[1], "of the whole"
    assert (ours.float() - truth).abs().max() <= 2 * (theirs.float() - truth).abs().max(), "of the worst"


def test_half_after_kernels_are_in_casts_what_they_compute_with() -> None:
    model, other = tiny("gemma2"), tiny("gemma2").half()
    apply_kernels(model)
    assert model.half()(IDS).logits.dtype == torch.float16
    apply_kernels(other)
    assert torch.equal(model(IDS).logits, other(IDS).logits)


def test_norms_kept_in_float32_within_a_bfloat16_model() -> None:
    model = tiny("llama").bfloat16()
    for name, module in model.named_modules():
        if "norm" in name:
            module.float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(IDS).logits
        apply_kernels(model)
        found = model(IDS).logits
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    x = torch.randn(2, 32).bfloat16()
    assert model.model.norm(x).dtype == type(tiny("llama").model.norm).forward(model.model.norm, x).dtype


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "deepseek_v2", "deepseek_v3", "qwen3_moe"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_rows_padded_on_the_left_are_continued_with_the_same_tokens(kind: str, cache: str) -> None:
    model = tiny(kind)
    ids = torch.tensor([[0, 0, 0, 5, 9, 13], [7, 11, 8, 21, 34, 55], [0, 44, 32, 10, 61, 12]])
    given = {"input_ids": ids, "attention_mask": (ids > 0).long(), "max_new_tokens": 9, "do_sample": False}
    given |= {"eos_token_id": None, "pad_token_id": 0, "cache_implementation": cache if cache == "static" else None}
    expected = model.generate(**given, disable_compile=True)
    apply_kernels(model)
    assert torch.equal(model.generate(**given, disable_compile=True), expected)


def test_files_of_a_saved_model_do_not_know_of_kernels(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path / "without")
    apply_kernels(model)
    model.save_pretrained(tmp_path / "with")
    names = sorted(path.name for path in (tmp_path / "without").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "with").iterdir()) and len(names) >= 2
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes(), name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "with")
    assert not explain(again).counts
    undo_kernels(model)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def copied(model: Any) -> Any:
    return copy.deepcopy(model)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("twin_of", [copied, pickled])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gemma3_text"])
def test_a_copy_has_kernels_of_its_own(kind: str, twin_of: Any) -> None:
    model = tiny(kind)
    plain = model(IDS).logits
    counts = apply_kernels(model).counts
    fused = model(IDS).logits
    twin = twin_of(model)
    assert explain(twin).counts == counts and torch.equal(twin(IDS).logits, fused)
    undo_kernels(model)
    assert explain(twin).counts == counts and torch.equal(twin(IDS).logits, fused)
    undo_kernels(twin)
    assert torch.equal(twin(IDS).logits, plain)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert torch.equal(model(IDS).logits, plain), "weights of its own too"


def test_a_pickled_model_is_loaded_by_a_process_that_has_not_heard_of_kernels(tmp_path: Path) -> None:
    model = tiny("llama")
    apply_kernels(model)
    torch.save(model, tmp_path / "model.pt")
    script = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False);"
        " print(float(m(torch.tensor([[5, 9, 13]])).logits.detach().double().sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.pt")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(float(model(IDS[:1, :3]).logits.detach().double().sum()), abs=1e-3)


def test_a_replica_on_another_device_computes_with_its_own_weights() -> None:
    """What DataParallel does: the replica is a shallow copy whose weights are set anew."""
    model = tiny("llama")
    apply_kernels(model)
    norm = model.model.norm
    replica = norm._replicate_for_data_parallel()
    replica.weight = torch.zeros(32)
    assert not replica(torch.ones(2, 32)).any() and norm(torch.ones(2, 32)).any()


def test_a_layer_replaced_since_goes_without_and_the_rest_is_undone() -> None:
    model, other = tiny("llama"), tiny("llama")
    apply_kernels(model)
    model.model.layers[1] = other.model.layers[1]
    assert explain(model).counts["norms"] == 3
    assert any("2 norms" in line and "model.layers.1.input_layernorm" in line for line in explain(model).left)
    assert undo_kernels(model) == 7
    assert not list(taken_in(model))
    assert torch.equal(model(IDS).logits, tiny("llama")(IDS).logits)


def test_a_class_put_over_ours_is_not_torn_out() -> None:
    model = tiny("llama")
    apply_kernels(model)
    layer = model.model.layers[0].mlp
    layer.__class__ = type("Wrapped", (type(layer),), {})
    with pytest.raises(ModelError, match="Wrapped was given another class after its kernel was put in"):
        undo_kernels(model)
    assert explain(model).counts == ALL, "nothing was taken out"


def test_a_wrapper_for_several_gpus_is_seen_through() -> None:
    wrapped = torch.nn.DataParallel(tiny("llama"))
    assert apply_kernels(wrapped).counts == ALL and explain(wrapped.module).counts == ALL
    assert undo_kernels(wrapped) == 11


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForSequenceClassification"])
def test_models_with_another_head_or_none_take_all_but_the_loss(kind: str) -> None:
    import transformers
    from tiny_llms import config_of

    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config_of("llama")).eval()
    before = model(IDS)[0]
    applied = apply_kernels(model)
    assert applied.counts == {name: count for name, count in ALL.items() if name != "loss"} and not applied.left
    close(model(IDS)[0], before)
    undo_kernels(model)
    assert torch.equal(model(IDS)[0], before)


def test_after_trl_has_given_a_model_its_own_head_the_loss_is_left_to_it() -> None:
    from trl.trainer.utils import add_fused_lm_head

    model = tiny("llama").train()
    add_fused_lm_head(model)
    applied = apply_kernels(model)
    assert "loss" not in applied.counts and any("loss by transformers' own: somebody gave" in x for x in applied.left)
    expected = tiny("llama").train()(IDS, labels=IDS).loss
    torch.testing.assert_close(model(IDS, labels=IDS, fused_lm_head=True).loss, expected)
