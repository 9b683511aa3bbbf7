"""`load_llm`: what comes out, what `explain` says of it, and what each wrong name, folder or wish is answered with."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

sys.path.insert(0, str(Path(__file__).parent))

from padless import without_pads
from tiny_llms import tiny
from tiny_tokens import VOCABULARY, tokenizer
from tiny_vision import tiny_vision

import speechkit
from speechkit.errors import ModelError, PlanError
from speechkit.llm import apply_kernels, explain, load_llm, undo_kernels
from speechkit.llm.load import loaded


def saved(folder: Path, kind: str = "llama", **tokens: Any) -> Path:
    """A tiny model of this kind with its tokenizer, in a folder whose name tells nothing."""
    tiny(kind, vocab_size=VOCABULARY).save_pretrained(folder)
    tokenizer(**tokens).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("load") / "run7", pad_token="<|end|>")  # noqa: S106


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "mixtral", "qwen3", "gemma2", "gemma3", "deepseek_v3", "phi3", "gpt2"]
)
def test_a_folder_with_no_telling_name_loads_with_the_logits_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "run7", kind)
    model, tokens = load_llm(folder, device="cpu")
    ids = tokens("hello there", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            model(**ids).logits, tiny(kind, vocab_size=VOCABULARY)(**ids).logits, rtol=1e-4, atol=1e-5
        )
    assert not model.training and model.dtype == torch.float32
    assert (kind != "gpt2") == bool(explain(model).counts), "kernels are in where there are any"
    assert explain(model).loaded is loaded(model)


def test_explain_lists_what_loading_did_and_then_the_kernels(llama: Path) -> None:
    model, tokens = speechkit.load_llm(llama, max_len=128, device="cpu")
    lines = str(explain(model)).splitlines()
    assert lines[:7] == [
        str(llama),
        "      family     Llama 2 and its likes: 4 heads, 2 of keys and values, context 64",
        "      device     cpu (asked for)",
        "      dtype      float32 (half precision is not faster on cpu)",
        "      weights    not quantised, 0.1 MiB (as float32; not asked for)",
        "      context    128 tokens (positions stretched by YaRN, factor 2: the model was made for 64, and needs some "
        "training at this length)",
        "      repaired   the pad token was <|end|>, which ends a text: <|pad|> (0), which the vocabulary has, pads "
        "now",
    ]
    assert lines[7] == "Llama on cpu, float32" and "norms" in lines[8]
    assert tokens.pad_token == "<|pad|>" and tokens.model_max_length == 128  # noqa: S105
    undo_kernels(model)
    assert str(explain(model)).splitlines()[:8] == lines[:8] and "      no kernel in" in str(explain(model))


def test_an_unknown_architecture_works_unpatched_with_one_sentence_on_what_it_goes_without(tmp_path: Path) -> None:
    model, tokens = load_llm(saved(tmp_path, "gpt2"), device="cpu")
    said = str(explain(model))
    assert "      family     not in the table (model type 'gpt2'): 4 heads" in said
    assert said.endswith(
        "gpt2 on cpu, float32\n      no kernel in\n      as it was:\n      – no kernels are known for the model type "
        "'gpt2': it runs as transformers made it, and its LoRA targets are all linear layers but the head"
    )
    assert len(model.generate(**tokens("a", return_tensors="pt"), max_new_tokens=3, do_sample=False)[0]) >= 3
    with pytest.raises(ModelError, match="no kernels are known for the model type 'gpt2'"):
        apply_kernels(model)


def test_kernels_stay_out_when_they_are_not_wanted(llama: Path) -> None:
    model, _ = load_llm(llama, device="cpu", kernels=False)
    assert explain(model).counts == {} and explain(model).loaded is not None


@pytest.mark.parametrize("kind", ["llava", "idefics3", "qwen2_vl"])
def test_a_wrapper_with_a_vision_tower_loads_whole_and_its_text_tower_tells_the_family(
    kind: str, tmp_path: Path
) -> None:
    whole = tiny_vision(kind, vocab_size=VOCABULARY)
    whole.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model, tokens = load_llm(tmp_path, device="cpu")
    ids = tokens("what is seen", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**ids).logits, whole(**ids).logits, rtol=1e-4, atol=1e-5)
    told = loaded(model)
    assert type(model) is not type(whole) or not explain(model).counts
    assert told is not None and told.family is not None
    assert told.family.name == ("Qwen 2 and 2.5 VL" if kind == "qwen2_vl" else "Llama 2 and its likes")
    assert "it sees images too: transformers.AutoProcessor" in str(explain(model))
    if kind == "qwen2_vl":
        assert "no kernels are known for the family Qwen 2 and 2.5 VL" in str(explain(model))
    else:
        assert explain(model).counts["norms"] == 5, "of the text tower"


def test_stop_tokens_of_a_distilled_r1_are_told_by_its_name(tmp_path: Path) -> None:
    from speechkit.llm.load import _stops
    from speechkit.llm.registry import resolve

    source = resolve("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    assert _stops(source, None) == ("<｜end▁of▁sentence｜>",)


def with_adapter(base: Path, folder: Path) -> Any:
    from peft import LoraConfig, get_peft_model

    model, _ = load_llm(base, device="cpu", kernels=False)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def test_an_adapter_folder_loads_its_base_and_the_adapter_on_top(llama: Path, tmp_path: Path) -> None:
    trained = with_adapter(llama, tmp_path / "adapter")
    model, tokens = load_llm(tmp_path / "adapter", device="cpu")
    ids = tokens("hello", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**ids).logits, trained(**ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(**ids).logits, load_llm(llama, device="cpu")[0](**ids).logits, atol=1e-3)
    assert f"      adapter    {tmp_path / 'adapter'}" in str(explain(model)) and explain(model).counts["norms"] == 5


@pytest.mark.parametrize("quant", [None, "nf4"])
def test_an_adapter_of_a_base_that_got_a_pad_row_loads_onto_the_base_as_it_was(
    quant: str | None, tmp_path: Path
) -> None:
    from speechkit.llm.adapter_files import save_adapter
    from speechkit.llm.lora import add_lora
    from speechkit.llm.lora_options import LoraOptions

    tiny("llama", vocab_size=VOCABULARY).save_pretrained(tmp_path / "base")
    without_pads(tokenizer(pad_token=None)).save_pretrained(tmp_path / "base")
    model, tokens = load_llm(tmp_path / "base", quant, device="cpu")
    assert len(tokens) == VOCABULARY + 1
    adapted = add_lora(model, LoraOptions(rank=4)).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    save_adapter(adapted, tmp_path / "adapter")
    tokens.save_pretrained(tmp_path / "adapter")
    again, same = load_llm(tmp_path / "adapter", quant, device="cpu")
    ids = tokens("hello", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(again(**ids).logits, adapted(**ids).logits, rtol=1e-5, atol=1e-5)
    assert same.get_vocab() == tokens.get_vocab() and same.pad_token_id == tokens.pad_token_id
    assert "the tokenizer has 264 tokens, the model had rows for 263: rows added" in str(explain(again))


def test_an_adapter_whose_base_is_gone_says_so(llama: Path, tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(llama, base)
    with_adapter(base, folder)
    shutil.rmtree(base)
    with pytest.raises(
        ModelError, match=re.escape(f"{folder} is an adapter for '{base}', which cannot be had: model fol")
    ):
        load_llm(folder, device="cpu")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model: set base_model_name_or_path in it"):
        load_llm(folder, device="cpu")
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(folder)}))
    with pytest.raises(ModelError, match="is an adapter again; merge those first"):
        load_llm(folder, device="cpu")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors \(it holds: README.md"):
        load_llm(folder, device="cpu")


def edited(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy with other settings in config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_code_of_a_repository_is_not_run(llama: Path, tmp_path: Path) -> None:
    trap = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    folder = edited(llama, tmp_path / "own", model_type="acme", auto_map=trap)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    said = r"\(acme\) wants to run code of its own \(auto_map in config.json\), and speechkit runs none"
    with pytest.raises(ModelError, match=said):
        load_llm(folder, device="cpu")
    native = edited(llama, tmp_path / "native", auto_map=trap)
    shutil.copy(folder / "code.py", native / "code.py")
    assert type(load_llm(native, device="cpu", kernels=False)[0]).__module__.startswith("transformers.")
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_read(llama: Path, tmp_path: Path) -> None:
    folder = edited(llama, tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match="pickled weights only, which can run code when they are read; speechkit reads"
    ):
        load_llm(folder, device="cpu")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"holds no weights: model.safetensors \(there are: chat_template.jinja"):
        load_llm(folder, device="cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model_type": "acme9"},
            "does not know the architecture of .*its model_type is 'acme9'.*a newer transformers",
        ),
        ({"model_type": None}, "config.json names no model_type"),
        ({"model_type": "wav2vec2"}, r"holds a speech model \(wav2vec2\): load_asr loads it"),
        ({"model_type": "bert"}, r"an encoder of sentences \(BERT\), which generates no text: speechkit.llm.embedding"),
        ({"model_type": "vit"}, "holds a vit model, which is no causal language model: it cannot continue a text"),
        (
            {"hidden_size": 64, "head_dim": 8},
            "do not fit its config.json: .* the config says .*take both from the same",
        ),
        ({"num_hidden_layers": 3}, "lacks 9 of the model's weights, among them model.layers.2.input_layernorm.weight"),
    ],
    ids=["unknown to transformers", "no type", "speech", "encoder", "images alone", "other sizes", "more layers"],
)
def test_a_folder_that_holds_something_else_says_what(
    changes: dict[str, Any], said: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        load_llm(edited(llama, tmp_path / "m", **changes), device="cpu")


def test_an_unreadable_or_absent_file_is_named(llama: Path, tmp_path: Path) -> None:
    folder = edited(llama, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer that can be read \(it holds: .*config.json"):
        load_llm(folder, device="cpu")
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"the weights of .* cannot be loaded|no tokenizer that can be read"):
        load_llm(folder, device="cpu")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_llm(folder, device="cpu")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds a list, not an object of settings"):
        load_llm(folder, device="cpu")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config.json .*; give the folder of a language model, or of a PEFT"):
        load_llm(folder, device="cpu")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quant": "fp8"}, "quant is 'fp8', but float8 products need a GPU from sm_89 on, and this is a CPU"),
        (
            {"max_len": 1000},
            "max_len is 1,000, the model's own is 64; positions are stretched up to 8 times: at most 512",
        ),
        ({"max_len": -1}, "max_len is -1; it can be None (the model's own) or a whole number from 1"),
        ({"dtype": "half"}, "dtype is 'half'; it can be"),
        ({"device": "gpu"}, "device is 'gpu'; it can be"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_wish_that_cannot_be_is_refused(given: dict[str, Any], said: str, llama: Path) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        load_llm(llama, **{"device": "cpu", **given})


def test_a_revision_of_a_folder_is_refused(llama: Path) -> None:
    with pytest.raises(PlanError, match=r"revision is 'v2', and .* is a folder: only repositories on the Hub have any"):
        load_llm(llama, revision="v2")


def test_a_device_without_room_says_what_would_fit(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", full)
    with pytest.raises(
        PlanError, match=r"do not fit cpu in float32: load them in fewer bits \(quant='nf4'.*Tried to all"
    ):
        load_llm(llama, device="cpu")


def test_gemma_in_float16_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"of Gemma 2 its hidden states leave the range of float16 .*; use \"bfloat16\""
    ):
        load_llm(saved(tmp_path, "gemma2"), device="cpu", dtype="float16")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load_llm("Qwen/Qwen3-0.6")
    said = str(caught.value)
    assert said.startswith("HF_HUB_OFFLINE is set, and Qwen/Qwen3-0.6 is not in the local cache (")
    assert "(nearest known: " in said and "Qwen/Qwen3-0.6B" in said
    assert "`hf download Qwen/Qwen3-0.6 --local-dir FOLDER`" in said


def test_a_misspelt_name_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'qwen-3-0.6b'; nearest known names: qwen3-0.6b"):
        load_llm("qwen-3-0.6b")


def test_a_model_of_another_kind_is_told_apart_by_its_files(tmp_path: Path) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    AutoModel.from_config(AutoConfig.for_model("bert", **size, vocab_size=9)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="load_encoder loads it"):
        load_llm(tmp_path)


def test_the_embedded_model_is_the_default_and_needs_no_repair() -> None:
    model, tokens = load_llm(device="cpu")
    told = loaded(model)
    assert told is not None and told.source.name == "demo/chat" and told.repairs == ()
    assert tokens.chat_template and explain(model).counts["norms"] > 0
    asked = [{"role": "user", "content": "What is 3 plus 4?"}]
    ids = tokens.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokens.decode(said, skip_special_tokens=True).strip() and int(said[-1]) == tokens.eos_token_id, "it ends"


@pytest.mark.parametrize(
    "wrong",
    [{"vocab_size": "x"}, {"num_attention_heads": 0}, {"text_config": {"model_type": "llama"}},
     {"quantization_config": {"quant_method": "torchao", "quant_type": "int4_weight_only"}}],
    ids=str,
)  # fmt: skip
def test_settings_that_transformers_stumbles_over_are_a_model_error(
    wrong: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama, tmp_path / "wrong")
    path = tmp_path / "wrong" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(ModelError, match=r"(configuration|weights) of .*wrong cannot be (read|loaded): "):
        load_llm(tmp_path / "wrong", device="cpu")
