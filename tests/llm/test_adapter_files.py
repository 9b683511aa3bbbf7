"""Adapters on disk: plain peft reads ours and we read its; another base, a full disk and a pickle are refused."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.errors import ModelError, OutputError, PlanError
from speechkit.llm.adapter_files import load_adapter, save_adapter
from speechkit.llm.lora import add_lora, fused, options_of
from speechkit.llm.lora_options import LoraOptions

IDS = torch.tensor([[5, 9, 13, 21, 34, 55], [7, 11, 8, 3, 44, 32]])
RANDOM = LoraOptions(rank=4, init="random")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def untied(**more: Any) -> Any:
    return tiny("llama", tie_word_embeddings=False, **more)


CASES = {
    "plain": {},
    "rsLoRA": {"rslora": True},
    "DoRA": {"dora": True},
    "head trained whole": {"also_train": ("lm_head",)},
    "head adapted": {"targets": ("q_proj", "lm_head")},
    "embedding adapted": {"targets": ("q_proj", "embed_tokens")},
}


@pytest.mark.parametrize("more", CASES.values(), ids=CASES.keys())
def test_plain_peft_loads_what_was_saved_and_computes_the_same(more: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    model = add_lora(untied(), RANDOM.replace(**more))
    if "also_train" in more:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.5)
    save_adapter(model, tmp_path / "adapter")
    expected = logits(model)
    assert not torch.equal(expected, logits(untied()))
    theirs = PeftModel.from_pretrained(untied(), str(tmp_path / "adapter"))
    assert torch.equal(logits(theirs), expected)
    ours = load_adapter(untied(), tmp_path / "adapter")
    assert torch.equal(logits(ours), expected)
    assert options_of(ours) == RANDOM.replace(**more)


def test_what_plain_peft_saved_is_loaded_and_runs_fused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours = load_adapter(tiny("llama"), tmp_path / "adapter")
    assert torch.equal(logits(ours), logits(theirs))
    assert fused(ours).fused == 14
    assert options_of(ours).rank == 4


def test_an_adapter_of_experts_is_saved_and_loaded(tmp_path: Path) -> None:
    model = add_lora(tiny("mixtral"), LoraOptions(rank=2, experts=True, init="random"))
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(tiny("mixtral"), tmp_path / "adapter")), logits(model))


def test_loaded_to_go_on_it_learns_and_loaded_to_answer_it_does_not(tmp_path: Path) -> None:
    save_adapter(add_lora(tiny("llama"), RANDOM), tmp_path / "adapter")
    for trainable in (True, False):
        model = load_adapter(tiny("llama"), tmp_path / "adapter", trainable=trainable)
        learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert len(learns) == (28 if trainable else 0) and all("lora_" in name for name in learns)


def test_several_adapters_in_one_model(tmp_path: Path) -> None:
    model = add_lora(tiny("llama"), RANDOM)
    add_lora(model, RANDOM.replace(rank=2, targets=("q_proj",)), name="second")
    save_adapter(model, tmp_path / "one")
    save_adapter(model, tmp_path / "two", name="second")
    assert (tmp_path / "two" / "adapter_config.json").is_file() and not (tmp_path / "two" / "second").exists()
    expected = {name: (model.set_adapter(name), logits(model))[1] for name in ("default", "second")}
    again = load_adapter(load_adapter(tiny("llama"), tmp_path / "one"), tmp_path / "two", name="second")
    assert again.active_adapters == ["second"] and torch.equal(logits(again), expected["second"])
    again.set_adapter("default")
    assert torch.equal(logits(again), expected["default"])
    with pytest.raises(PlanError, match="has an adapter 'second' already; give this one another name"):
        load_adapter(again, tmp_path / "two", name="second")


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"hidden_size": 48}, r"gate_proj: A is 4 x 32, the layer is 48 x 48 \(inputs 48\)"),
        ({"intermediate_size": 64}, r"gate_proj: B is 48 x 4, the layer is 64 x 32 \(outputs 64\)"),
        ({"num_hidden_layers": 1}, r"model.layers.1.mlp.down_proj is not there; .*; and 4 more"),
        ({"vocab_size": 71}, "its vocabulary had 67 tokens, this one has 71"),
    ],
    ids=str,
)
def test_an_adapter_for_another_base_is_refused_with_both_bases_and_shapes(
    other: dict[str, Any], text: str, tmp_path: Path
) -> None:
    tiny("llama").save_pretrained(tmp_path / "first-base")
    base = type(tiny("llama")).from_pretrained(tmp_path / "first-base")
    save_adapter(add_lora(base, RANDOM), tmp_path / "adapter")
    model = tiny("llama", **other)
    before = logits(model)
    with pytest.raises(ModelError, match=rf"was made for '.*first-base', not for 'LlamaForCausalLM': .*{text}"):
        load_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(model), before) and not hasattr(model, "peft_config")


def test_a_base_of_the_same_shapes_and_other_weights_is_refused_unless_meant(tmp_path: Path) -> None:
    save_adapter(add_lora(tiny("llama"), RANDOM), tmp_path / "adapter")
    other = tiny("llama")
    with torch.no_grad():
        for weight in other.parameters():
            weight.normal_()
    with pytest.raises(ModelError, match=r"shapes fit, but \d+% of the sampled base weights differ.*other_base=True"):
        load_adapter(other, tmp_path / "adapter")
    load_adapter(other, tmp_path / "adapter", other_base=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_base_in_sixteen_bits_is_known(dtype: torch.dtype, tmp_path: Path) -> None:
    save_adapter(add_lora(tiny("llama"), RANDOM), tmp_path / "adapter")
    load_adapter(tiny("llama").to(dtype), tmp_path / "adapter")


def test_a_plain_adapter_of_another_name_is_loaded_with_a_warning(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "here")
    model = type(tiny("llama")).from_pretrained(tmp_path / "here")
    add_lora(tiny("llama"), RANDOM).save_pretrained(str(tmp_path / "adapter"))
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "some/there"}))
    with pytest.warns(UserWarning, match="was made for 'some/there', the model is 'here'; shapes fit"):
        load_adapter(model, tmp_path / "adapter")


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    save_adapter(add_lora(tiny("llama"), RANDOM), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model.bin, a pickle, which can run any code when it is opened"):
        load_adapter(tiny("llama"), tmp_path)


def test_what_is_no_adapter_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere is no folder; an adapter is one"):
        load_adapter(tiny("llama"), tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"holds no adapter_config.json, so that it is no adapter of peft's"):
        load_adapter(tiny("llama"), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config.json cannot be read \(.*\); save the adapter again"):
        load_adapter(tiny("llama"), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelError, match="holds an adapter of type 'IA3'; only 'LORA' is known here"):
        load_adapter(tiny("llama"), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"holds no adapter_model.safetensors"):
        load_adapter(tiny("llama"), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"adapter_model.safetensors cannot be read"):
        load_adapter(tiny("llama"), tmp_path)


def test_a_file_in_which_weights_are_missing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_adapter(add_lora(tiny("llama"), RANDOM), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = tiny("llama")
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ModelError, match=r"holds no weights for base_model.model.model.layers.1.mlp.up_proj.lora_B"):
        load_adapter(model, tmp_path)
    assert [name for name, _ in model.named_modules()] == names and torch.equal(logits(model), logits(tiny("llama")))


@pytest.fixture
def little_room() -> Any:
    """Files beyond 4 KB fail to be written, as on a full disk, but that the reason is another number of errno."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, held)


def test_a_full_disk_leaves_the_adapter_that_was_there(little_room: Any, tmp_path: Path) -> None:
    place = tmp_path / "adapter"
    model = add_lora(tiny("llama"), RANDOM)
    save_adapter(model, place)
    files = {path.name: path.read_bytes() for path in place.iterdir()}
    add_lora(model, RANDOM.replace(rank=8), name="larger")
    little_room()
    with pytest.raises(OutputError, match=r"cannot be written: .*What survives: the adapter that was in .* is whole"):
        save_adapter(model, place, name="larger")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "nothing is left over"


def test_a_kill_between_the_renames_is_made_good(tmp_path: Path) -> None:
    place = tmp_path / "adapter"
    model = add_lora(tiny("llama"), RANDOM)
    save_adapter(model, place)
    place.rename(tmp_path / "adapter.old")
    (tmp_path / "adapter.new").mkdir()
    assert torch.equal(logits(load_adapter(tiny("llama"), place)), logits(model))
    save_adapter(model, place)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    model = add_lora(tiny("llama"), RANDOM)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    save_adapter(model, tmp_path / "adapter")
    save_adapter(model, tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "speechkit_adapter.json", "tokenizer.json",
    }  # fmt: skip


def test_a_place_that_is_a_file_and_a_model_without_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is a file; an adapter is a folder, name another place"):
        save_adapter(add_lora(tiny("llama"), RANDOM), tmp_path / "file")
    with pytest.raises(PlanError, match="no adapter 'default'; it has none: add one with add_lora"):
        save_adapter(tiny("llama"), tmp_path / "adapter")


def test_the_file_beside_it_says_what_it_was_made_with(tmp_path: Path) -> None:
    save_adapter(add_lora(tiny("llama"), RANDOM), tmp_path)
    row = json.loads((tmp_path / "speechkit_adapter.json").read_text())
    assert row["base"]["vocabulary"] == 67 and row["base"]["model_type"] == "llama"
    assert len(row["base"]["sketch"]["embedding"]) == 64 and len(row["base"]["sketch"]["norm"]) == 32
    assert LoraOptions(**row["options"]) == RANDOM
    assert row["versions"].keys() == {"speechkit", "peft", "transformers", "torch"}


def test_tensors_gathered_from_ranks_are_saved_instead_of_the_models_own(tmp_path: Path) -> None:
    model = add_lora(tiny("llama"), RANDOM)
    expected, gathered = logits(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.zero_()
    save_adapter(model, tmp_path / "adapter", tensors=gathered)
    assert torch.equal(logits(load_adapter(tiny("llama"), tmp_path / "adapter")), expected)


@pytest.mark.parametrize(
    "broken", [{"r": "four"}, {"target_modules": ["nowhere"]}, {"r": 3}, {"rank_pattern": {"v_proj": "x"}}], ids=str
)
def test_a_configuration_that_peft_cannot_follow_is_refused_and_the_model_is_as_it_was(
    broken: dict[str, Any], tmp_path: Path
) -> None:
    save_adapter(add_lora(untied(), RANDOM.replace(targets=("q_proj", "v_proj"))), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **broken}))
    model = untied()
    names, expected = [name for name, _ in model.named_modules()], logits(model)
    with pytest.raises(ModelError, match=r"adapter does not fit the model: .*; save the adapter again"):
        load_adapter(model, tmp_path / "adapter")
    assert [name for name, _ in model.named_modules()] == names and torch.equal(logits(model), expected)
