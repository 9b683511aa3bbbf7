"""Adapters: merged into the file, or as a GGUF of their own on the base's; checked in llama.cpp against peft."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("xllamacpp")
pytest.importorskip("peft")
sys.path.insert(0, str(Path(__file__).parent))
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tiny_exports import difference, folder_of

from speechkit.errors import ExportError, ModelError, OutputError, PlanError
from speechkit.export import export_gguf, export_gguf_adapter

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


def adapter_of(base: Path, place: Path, targets: list[str] | None = None, trained: bool = True, **more: Any) -> Path:
    """A PEFT folder with random weights for a base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 8, "target_modules": targets or PROJECTIONS, "task_type": "CAUSAL_LM", **more}
    wrapped = get_peft_model(model, LoraConfig(**given))
    torch.manual_seed(1)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name and trained:
            torch.nn.init.normal_(weight, std=0.2)
    wrapped.save_pretrained(place)
    return place


def adapted(base: Path, place: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), place).eval()


KINDS: dict[str, tuple[str, dict[str, Any], list[str] | None, dict[str, Any]]] = {
    "Llama, whose q and k change places": ("llama", {}, None, {}),
    "ranks and alphas of single modules": (
        "llama", {}, None, {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3, "layers.0.mlp.down_proj": 5}},
    ),
    "rsLoRA on Qwen 2": ("qwen2", {}, None, {"use_rslora": True}),
    "Gemma 2, whose queries hold the scale": ("gemma2", {}, None, {}),
    "Phi-3's one projection": ("phi3", {}, ["qkv_proj", "gate_up_proj"], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_an_adapter_of_its_own_is_the_one_of_peft(case: str, tmp_path: Path) -> None:
    kind, more, targets, options = KINDS[case]
    base = folder_of(tmp_path / "base", kind, **more)
    place = adapter_of(base, tmp_path / "adapter", targets, **options)
    whole = export_gguf(base, tmp_path / "base.gguf", "F32", prove=False).files[0]
    made = export_gguf_adapter(place, tmp_path / "lora.gguf", prove=False).files[0]
    model = adapted(base, place)
    assert difference(base, whole, (6, 30), model, lora=str(made)) < 2e-3
    assert difference(base, whole, (6,), model) > 0.1  # without it


def test_an_adapter_is_proved_with_its_base(tmp_path: Path) -> None:
    from speechkit.demo import model_path

    adapter_of(model_path("chat"), tmp_path / "adapter")
    report = export_gguf_adapter(tmp_path / "adapter", tmp_path / "lora.gguf", base="demo/chat")
    assert report.proof is not None and report.proof.passed and report.proof.file == "lora.gguf"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter", "lora.gguf", "lora.proof.json"]
    fields = GGUFReader(report.files[0]).fields
    assert fields["general.type"].contents() == "adapter" and fields["adapter.type"].contents() == "lora"


def test_an_adapter_is_merged_first_and_proved_against_the_two(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", "llama")
    place = adapter_of(base, tmp_path / "adapter")
    for number, given in enumerate(({"model_or_folder": base, "adapter": place}, {"model_or_folder": place})):
        report = export_gguf(path=tmp_path / f"{number}.gguf", quant="F32", prompts=["The dog", "one two"], **given)
        assert report.proof is not None and report.proof.passed
        assert any(note.startswith("adapter merged:") for note in report.notes)
        assert difference(base, report.files[0], (6, 30), adapted(base, place)) < 2e-3


def test_adapters_that_change_nothing_or_are_of_another_base_are_refused(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", "llama")
    nothing = adapter_of(base, tmp_path / "nothing", trained=False)
    with pytest.raises(ExportError, match="changes nothing"):
        export_gguf(base, tmp_path / "x.gguf", "F32", adapter=nothing, prove=False)
    with pytest.raises(ExportError, match="changes nothing: B is zero"):
        export_gguf_adapter(nothing, tmp_path / "x.gguf", prove=False)
    place = adapter_of(base, tmp_path / "adapter")
    other = folder_of(tmp_path / "other", "llama", num_hidden_layers=1)
    with pytest.raises(ExportError, match=r"5 modules that its base .*other lacks, among them model.layers.1"):
        export_gguf_adapter(place, tmp_path / "x.gguf", base=other, prove=False)
    with pytest.raises(ModelError, match=r"model\.layers\.1"):
        export_gguf(other, tmp_path / "x.gguf", "F32", adapter=place, prove=False)
    wider = folder_of(tmp_path / "wider", "llama", intermediate_size=128)
    with pytest.raises(ExportError, match="does not fit the base's"):
        export_gguf_adapter(place, tmp_path / "x.gguf", base=wider, prove=False)
    with pytest.raises(PlanError, match="is an adapter already"):
        export_gguf(place, tmp_path / "x.gguf", "F32", adapter=place, prove=False)
    assert not [one for one in tmp_path.iterdir() if ".gguf" in one.name]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "has DoRA"),
    "modules trained whole": ({"modules_to_save": ["lm_head"]}, "modules trained whole"),
    "embeddings": ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    "biases": ({"bias": "all"}, "trained biases"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_put_on_a_model_is_refused(case: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    base = folder_of(tmp_path / "base", "llama")
    place = adapter_of(base, tmp_path / "adapter", **options)
    with pytest.raises(ExportError, match=rf"{message}.*merge it"):
        export_gguf_adapter(place, tmp_path / "x.gguf", prove=False)


def test_broken_adapters_and_names_are_refused(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", "llama")
    place = adapter_of(base, tmp_path / "adapter")
    with pytest.raises(PlanError, match=r"named so: lora\.gguf"):
        export_gguf_adapter(place, tmp_path / "lora", prove=False)
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        export_gguf_adapter(place, tmp_path / "there.gguf", prove=False)
    file = place / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(ExportError, match="not finite"):
        export_gguf_adapter(place, tmp_path / "x.gguf", prove=False)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ModelError, match="cut short"):
        export_gguf_adapter(place, tmp_path / "x.gguf", prove=False)
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model; pass base="):
        export_gguf_adapter(place, tmp_path / "x.gguf", prove=False)
