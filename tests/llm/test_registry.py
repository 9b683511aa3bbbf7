"""Names, folders and configurations lead to the right row, and the rows agree with gguf, peft and transformers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT
from transformers import CONFIG_MAPPING, AutoConfig

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import config_of, tiny
from tiny_vision import KINDS, tiny_vision

from speechkit import demo
from speechkit.errors import ModelError
from speechkit.llm.families import ENCODER, TEXT
from speechkit.llm.profiles import PROFILES
from speechkit.llm.registry import (
    ENCODERS,
    FAMILIES,
    KNOWN,
    family_named,
    family_of,
    features_of,
    lora_choice,
    lora_targets,
    nearest,
    resolve,
)

LANGUAGE = [kind for profile in PROFILES for kind in profile.model_types]

PUBLISHED = {
    "meta-llama/Llama-2-7b-chat-hf": "Llama 2 and its likes",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "Llama 2 and its likes",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "Llama 2 and its likes",
    "meta-llama/Meta-Llama-3-8B": "Llama 3",
    "meta-llama/Llama-3.3-70B-Instruct": "Llama 3",
    "unsloth/llama-3-8b-Instruct": "Llama 3",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "Llama 3.2 Vision",
    "mistralai/Mistral-7B-Instruct-v0.3": "Mistral",
    "mistralai/Mixtral-8x7B-v0.1": "Mixtral",
    "Qwen/Qwen2-0.5B": "Qwen 2 and 2.5",
    "Qwen/Qwen2.5-7B-Instruct": "Qwen 2 and 2.5",
    "Qwen/Qwen2.5-VL-3B-Instruct": "Qwen 2 and 2.5 VL",
    "Qwen/Qwen2-VL-2B-Instruct": "Qwen 2 and 2.5 VL",
    "Qwen/Qwen1.5-MoE-A2.7B": "Qwen 2 MoE",
    "Qwen/Qwen2-57B-A14B": "Qwen 2 MoE",
    "Qwen/Qwen3-8B": "Qwen 3",
    "Qwen/Qwen3-30B-A3B": "Qwen 3 MoE",
    "google/gemma-2-2b-it": "Gemma 2",
    "google/gemma-3-4b-it": "Gemma 3",
    "deepseek-ai/DeepSeek-V2-Lite": "DeepSeek V2",
    "deepseek-ai/DeepSeek-V3": "DeepSeek V3 and R1",
    "deepseek-ai/DeepSeek-R1": "DeepSeek V3 and R1",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "DeepSeek R1 distilled",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "DeepSeek R1 distilled",
    "microsoft/Phi-3-mini-4k-instruct": "Phi 3 and 4",
    "microsoft/phi-4": "Phi 3 and 4",
    "llava-hf/llava-v1.6-mistral-7b-hf": "Llava",
    "HuggingFaceTB/SmolVLM-256M-Instruct": "Idefics 3 and SmolVLM",
    "HuggingFaceM4/Idefics3-8B-Llama3": "Idefics 3 and SmolVLM",
    "google-bert/bert-base-uncased": "BERT",
    "sentence-transformers/all-MiniLM-L6-v2": "BERT",
    "BAAI/bge-small-en-v1.5": "BERT",
    "BAAI/bge-m3": "RoBERTa and XLM-R",
    "FacebookAI/xlm-roberta-base": "RoBERTa and XLM-R",
    "intfloat/multilingual-e5-small": "BERT",
    "sentence-transformers/all-mpnet-base-v2": "MPNet",
    "answerdotai/ModernBERT-base": "ModernBERT",
}


@pytest.mark.parametrize(("name", "family"), PUBLISHED.items(), ids=PUBLISHED)
def test_a_published_name_tells_its_family(name: str, family: str) -> None:
    found = family_named(name)
    assert found is not None and found.name == family
    assert resolve(name).family is found and resolve(name).kind == "hub" and resolve(name).reason == "by its name"


@pytest.mark.parametrize("name", ["openai-community/gpt2", "acme/my-model", "microsoft/Phi-3.5-MoE-instruct"])
def test_a_name_that_tells_nothing_has_no_family_yet(name: str) -> None:
    found = resolve(name)
    assert found.family is None and found.reason == "its name tells no family; its config.json will"


@pytest.mark.parametrize("kind", LANGUAGE)
def test_a_folder_with_no_telling_name_resolves_by_its_config(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run7"
    config_of(kind).save_pretrained(folder)
    found = resolve(folder)
    assert found.kind == "folder" and found.family is not None and kind in found.family.model_types
    assert found.reason == f"by its config.json: model_type {kind}"
    assert found.family is family_of(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize(("size", "name"), [(32_000, "Llama 2 and its likes"), (128_256, "Llama 3")])
def test_llama_2_and_3_are_told_apart_by_their_vocabulary(size: int, name: str) -> None:
    found = family_of({"model_type": "llama", "vocab_size": size})
    assert found is not None and found.name == name


def test_the_family_of_a_wrapper_is_that_of_its_text_tower() -> None:
    for text, name in (("llama", "Llama 2 and its likes"), ("qwen2", "Qwen 2 and 2.5"), ("mistral", "Mistral")):
        config = {"model_type": "llava", "text_config": {"model_type": text, "vocab_size": 32_000}}
        assert (found := family_of(config)) is not None and found.name == name
    gemma = config_of("gemma3")
    assert (found := family_of(gemma)) is not None and found.name == "Gemma 3" and found is family_of(gemma.to_dict())


def test_an_adapter_folder_resolves_by_the_name_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-0.6B"}))
    found = resolve(tmp_path)
    assert found.family is not None and found.family.name == "Qwen 3"
    assert found.reason == "an adapter for Qwen/Qwen3-0.6B"


def test_an_existing_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_of("phi3").save_pretrained(tmp_path / "acme" / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve("acme/model").kind == "folder" and resolve("acme/other").kind == "hub"


def test_short_names_lead_to_the_hub_and_tell_their_family() -> None:
    for name, repo in (KNOWN | ENCODERS).items():
        found = resolve(name)
        assert (found.name, found.location, found.kind) == (name, repo, "hub") and found.family is not None, name
        assert str(found).startswith(f"{name}: {found.family.name} (by its name), hub ")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3-0.6", "nearest known names: qwen3-0.6b"),
        ("gema-3-1b", "nearest known names: gemma-3-1b"),
        ("lama-3.2-1b", "nearest known names: llama-3.2-1b"),
        ("Mistral-7B-Instruct-v0.2", "nearest known names: mistralai/Mistral-7B-Instruct-v0.3"),
        ("zzzz", "unknown model 'zzzz'; known names: "),
        ("", "unknown model ''; known names: "),
        ("./nowhere", "model folder ./nowhere does not exist, or this user may not enter it"),
        ("demo/en", "demo/en is an embedded speech model: load_asr('demo/en') loads it"),
        ("demo/chta", "unknown embedded language model 'demo/chta'; embedded: "),
        (7, "a model is named by a string or a path, not by int"),
    ],
    ids=str,
)
def test_a_name_that_leads_nowhere_says_what_would(name: Any, said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)) as caught:
        resolve(name)
    assert name == "demo/en" or "a Hub id such as owner/model" in str(caught.value)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ModelError, match="is a file; give the folder that holds config"):
        resolve(file)


def test_nearest_finds_hub_ids_without_and_with_their_owner() -> None:
    assert nearest("Qwen/Qwen3-0.6") == ["qwen3-0.6b", "Qwen/Qwen3-0.6B"] or "Qwen/Qwen3-0.6B" in nearest(
        "Qwen/Qwen3-0.6"
    )
    assert nearest("nothing like it at all") == []


def test_embedded_chat_models_are_no_speech_models() -> None:
    assert not set(demo.chat_models()) & set(demo.models())
    assert set(demo.languages()) <= set(demo.models())


def test_a_folder_with_a_tokenizer_of_texts_is_an_embedded_chat_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "HERE", tmp_path)
    for name, files in {
        "en": ["vocab.json"],
        "encoder": [],
        "chat": ["chat_template.jinja"],
        "small": ["tokenizer.json"],
    }.items():
        folder = tmp_path / "models" / name
        config_of("llama").save_pretrained(folder)
        for file in files:
            (folder / file).touch()
    assert demo.chat_models() == ["chat", "small"] and demo.models() == ["en", "encoder"]
    found = resolve("demo/chat")
    assert found.kind == "demo" and found.family is not None and found.family.name == "Llama 2 and its likes"
    with pytest.raises(
        ModelError, match="unknown embedded language model 'demo/chatt'; embedded: demo/chat, demo/small"
    ):
        resolve("demo/chatt")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_gguf_and_transformers_know_the_names_of_a_row(family: Any) -> None:
    architectures = set(gguf.MODEL_ARCH_NAMES.values())
    assert family.gguf_architecture is None or family.gguf_architecture in architectures
    for kind in family.model_types:
        assert kind in CONFIG_MAPPING, kind
    for pattern in family.patterns:
        re.compile(pattern)
    assert family.profile is None or set(family.model_types) & set(family.profile.model_types)


def test_every_profile_belongs_to_a_row_and_no_type_to_two_that_nothing_tells_apart() -> None:
    for kind in LANGUAGE:
        assert any(kind in family.model_types for family in FAMILIES), kind
    told = [(kind, family.vocabulary_from) for family in FAMILIES for kind in family.model_types]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("kind", LANGUAGE)
def test_lora_targets_are_linear_layers_that_the_model_has(kind: str) -> None:
    from torch import nn

    model = tiny(kind)
    found = lora_choice(model)
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(found.names) <= linear and found.names == lora_targets(model)
    left = linear - set(found.names) - {"lm_head", "gate", "shared_expert_gate", "weights_proj"}
    assert not {name for name in left if not name.startswith(("fc", "out_proj", "proj"))}, left
    assert ("target_parameters" in found.left_out) == bool(features_of(model.config).experts)
    deep = [name for name, weight in model.named_parameters() if "experts" in name and weight.ndim == 3]
    assert bool(found.left_out) == bool(deep)


@pytest.mark.parametrize("kind", [kind for kind in LANGUAGE if kind in PEFT])
def test_lora_targets_hold_those_of_peft(kind: str) -> None:
    mine = set(lora_targets(tiny(kind)))
    assert {name for name in PEFT[kind] if not name.startswith("mlp.")} <= mine | {"gate"}


def test_of_an_unknown_architecture_all_linear_layers_but_the_head_are_adapted() -> None:
    found = lora_choice(tiny("gpt2"))
    assert found.names == ("c_attn", "c_proj", "c_fc")
    assert str(found) == "c_attn, c_proj, c_fc (gpt2 is not in the table: all linear layers but the head)"


def test_a_model_without_linear_layers_takes_no_adapter() -> None:
    from torch import nn

    with pytest.raises(ModelError, match="Embedding has no linear layer that an adapter could go to"):
        lora_targets(nn.Embedding(2, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_tower_of_a_wrapper_has_the_targets_of_its_family(kind: str) -> None:
    model = tiny_vision(kind)
    tower = {
        name.rpartition(".")[2] for name, _ in model.named_modules() if "language_model" in name or "text_model" in name
    }
    assert set(lora_targets(model)) <= tower


def test_features_are_read_off_the_configuration() -> None:
    gemma = features_of(config_of("gemma2"))
    assert (gemma.sliding_window, gemma.softcap, gemma.qk_norm) == (4, 50.0, False)
    assert features_of(config_of("gemma3")) == features_of(config_of("gemma3").get_text_config())
    qwen = features_of(config_of("qwen3"))
    assert (qwen.heads, qwen.kv_heads, qwen.qk_norm, qwen.sliding_window) == (4, 2, True, None)
    deep = features_of(config_of("deepseek_v3"))
    assert (deep.latent, deep.experts, deep.softcap) == (8, 4, None)
    assert features_of(config_of("gpt2")).scaling == ""
    assert str(gemma) == ("4 heads, 2 of keys and values, context 64, sliding window 4, scores capped at 50")


def test_features_of_an_old_config_json_are_read_too() -> None:
    llama = {"model_type": "llama", "num_attention_heads": 32, "rope_scaling": {"type": "llama3", "factor": 8.0}}
    assert features_of(llama).scaling == "llama3" and features_of(llama).kv_heads == 32
    assert features_of({"model_type": "llama", "rope_theta": 10000.0}).scaling == "default"


def test_the_kinds_of_rows_are_three() -> None:
    kinds = {family.kind for family in FAMILIES}
    assert kinds == {TEXT, ENCODER, "vision and text"}
