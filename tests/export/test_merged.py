"""Merged folders: each is reloaded by transformers and compared; damage on the way is refused, and leaves nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.errors import ExportError, ModelError, OutputError, PlanError
from speechkit.export import merged as module
from speechkit.export.merged import export_merged
from speechkit.export.merged_formats import check_possible
from speechkit.export.proof import compare_llms
from speechkit.llm import load_llm

CHAT = Path(__file__).resolve().parents[2] / "speechkit/demo/models/chat"
ASKED = ("What is 17 plus 25?", "What day comes after Tuesday?", "Say twice: green lamp.")
PROMPTS = [[{"role": "user", "content": text}] for text in ASKED]


@pytest.fixture
def model() -> tuple[Any, Any]:
    return load_llm("demo/chat", device="cpu", kernels=False, dtype="float32")


def adapted(model: Any, size: float = 0.4) -> Any:
    """The model with an adapter whose B is random, as after training."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=size)
    return wrapped.eval()


@pytest.fixture
def adapter(model: tuple[Any, Any], tmp_path: Path) -> Path:
    from speechkit.llm.adapter_files import save_adapter

    return save_adapter(adapted(model[0]), tmp_path / "adapter")


def test_a_16_bit_folder_says_what_the_source_says_to_the_bit(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    report = export_merged("demo/chat", tmp_path / "out", shard_bytes=2**21, prompts=PROMPTS)
    assert report.proof.passed and report.proof.max_logprob_difference == 0, report.text()
    assert sum(name.endswith(".safetensors") for name in report.files) >= 3  # in shards
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= set(report.files)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    whole = AutoModelForCausalLM.from_pretrained(CHAT)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), whole.parameters(), strict=True))
    told = json.loads((tmp_path / "out" / "out.proof.json").read_text())
    assert told["verdict"] == "passed" and told["quant"] == "16-bit"


@pytest.mark.parametrize("format", ["nf4", "int8", "int4", "fp8"])
def test_a_quantised_folder_is_reloaded_by_transformers_and_near_its_source(format: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    report = export_merged("demo/chat", tmp_path / "out", format=format, prompts=PROMPTS)
    assert report.proof.proved and report.proof.passed and report.proof.tokens > 10, report.text()
    assert report.proof.kl is not None and 0 < report.proof.kl < 0.3
    assert report.bytes < 5_000_000 < (CHAT / "model.safetensors").stat().st_size
    assert not [name for name in report.files if name.endswith((".bin", ".pt", ".pkl"))]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map={"": "cpu"})
    assert loaded.config.quantization_config.quant_method in ("bitsandbytes", "torchao")
    assert torch.isfinite(loaded(torch.tensor([[3, 4, 5]])).logits).all()


def test_an_adapter_is_merged_checked_and_written(adapter: Path, tmp_path: Path) -> None:
    report = export_merged("demo/chat", tmp_path / "out", adapter=adapter, prompts=PROMPTS)
    assert report.proof.passed and "merged 8 weights" in report.merge
    base, tokenizer = load_llm("demo/chat", device="cpu", kernels=False, dtype="float32")
    merged, _ = load_llm(tmp_path / "out", device="cpu", kernels=False, dtype="float32")
    plain, _ = load_llm("demo/chat", device="cpu", kernels=False, dtype="float32")
    source = (adapted(base), tokenizer)
    beside = compare_llms(source, merged, PROMPTS, kind="merged")
    assert beside.passed, beside.text()
    lost = compare_llms(source, plain, PROMPTS, kind="merged")
    assert not lost.passed, lost.text()  # the adapter does something that the comparison sees


def test_a_folder_with_an_adapter_is_merged_onto_its_base(adapter: Path, tmp_path: Path) -> None:
    told = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": str(CHAT)}))
    report = export_merged(adapter, tmp_path / "out", prompts=PROMPTS)
    assert report.proof.passed and report.merge and report.proof.source == "adapter"


def test_a_model_that_was_given_is_afterwards_as_it_was(model: tuple[Any, Any], tmp_path: Path) -> None:
    wrapped = adapted(model[0])
    before = {name: weight.clone() for name, weight in wrapped.named_parameters()}
    report = export_merged((wrapped, model[1]), tmp_path / "out", prompts=PROMPTS)
    assert report.proof.passed and report.merge
    after = dict(wrapped.named_parameters())
    assert after.keys() == before.keys()
    assert all(
        torch.equal(after[name], weight) and after[name].dtype == weight.dtype for name, weight in before.items()
    )


def test_a_plain_model_that_was_given_keeps_its_precision(model: tuple[Any, Any], tmp_path: Path) -> None:
    export_merged(model, tmp_path / "out", prompts=PROMPTS)
    assert {weight.dtype for weight in model[0].parameters()} == {torch.float32}


def test_an_adapter_of_a_4_bit_base_is_merged_onto_the_base_in_16_bits(tmp_path: Path) -> None:
    base, tokenizer = load_llm("demo/chat", device="cpu", kernels=False, dtype="float32", quant="nf4")
    report = export_merged((adapted(base), tokenizer), tmp_path / "out", base="demo/chat", prompts=PROMPTS)
    assert report.proof.passed and "base loaded anew" in report.merge
    written, _ = load_llm(tmp_path / "out", device="cpu", kernels=False)
    kept = load_llm("demo/chat", device="cpu", kernels=False)[0].model.layers[0].self_attn.v_proj.weight
    assert torch.equal(written.model.layers[0].self_attn.v_proj.weight.float(), kept.bfloat16().float())


def test_an_adapter_that_changes_nothing_is_refused(model: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="changes nothing"):
        export_merged((adapted(model[0], size=0.0), model[1]), tmp_path / "out", prompts=PROMPTS)
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_is_not_finite_is_refused(model: tuple[Any, Any], tmp_path: Path) -> None:
    wrapped = adapted(model[0])
    with torch.no_grad():
        next(weight for name, weight in wrapped.named_parameters() if "lora_B" in name)[0, 0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        export_merged((wrapped, model[1]), tmp_path / "out", prompts=PROMPTS)
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_base_is_refused(adapter: Path, model: tuple[Any, Any], tmp_path: Path) -> None:
    other, tokenizer = load_llm("demo/chat", device="cpu", kernels=False, dtype="float32")
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    with pytest.raises(ModelError, match="base"):
        export_merged((other, tokenizer), tmp_path / "out", adapter=adapter, prompts=PROMPTS)
    assert not (tmp_path / "out").exists()


def test_a_base_with_weights_that_are_not_finite_is_refused(model: tuple[Any, Any], tmp_path: Path) -> None:
    with torch.no_grad():
        model[0].model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        export_merged(model, tmp_path / "out", prompts=PROMPTS)


def damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that is written loses a layer before it is reloaded."""
    from safetensors.torch import load_file, save_file

    save = module.save_model

    def damaged(model: Any, tokenizer: Any, folder: Path, shard_bytes: int) -> None:
        save(model, tokenizer, folder, shard_bytes)
        tensors = load_file(folder / "model.safetensors")
        zeros = {name: torch.zeros_like(one) for name, one in tensors.items() if ".layers.2." in name}
        save_file(tensors | zeros, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(module, "save_model", damaged)


def test_a_folder_that_differs_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(monkeypatch)
    with pytest.raises(ExportError, match="was refused"):
        export_merged("demo/chat", tmp_path / "out", prompts=PROMPTS)
    assert not list(tmp_path.iterdir())


def test_a_folder_kept_by_force_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(monkeypatch)
    report = export_merged("demo/chat", tmp_path / "out", prompts=PROMPTS, force=True)
    assert report.proof.forced
    assert json.loads((tmp_path / "out" / "out.proof.json").read_text())["verdict"] == "failed, kept by force"


def test_an_existing_folder_is_kept_without_overwrite_and_replaced_with_it(tmp_path: Path) -> None:
    place = tmp_path / "out"
    shutil.copytree(CHAT, place)
    (place / "model.safetensors").write_bytes(b"old")
    with pytest.raises(OutputError, match="overwrite=True"):
        export_merged("demo/chat", place, prompts=PROMPTS)
    assert (place / "model.safetensors").read_bytes() == b"old"
    assert export_merged("demo/chat", place, prompts=PROMPTS, overwrite=True).proof.passed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").touch()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "save_model", killed)
        export_merged("demo/chat", tmp_path / "out", prompts=PROMPTS)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="no model"):
        export_merged("demo/chat", tmp_path, overwrite=True)


def test_the_source_is_not_overwritten_by_its_export(tmp_path: Path) -> None:
    place = tmp_path / "chat"
    shutil.copytree(CHAT, place)
    with pytest.raises(PlanError, match="that is to be exported"):
        export_merged(place, place, overwrite=True)


def test_what_is_read_is_not_deleted_by_its_export(adapter: Path, tmp_path: Path) -> None:
    outer = tmp_path / "all"
    shutil.copytree(CHAT, outer)
    shutil.copytree(CHAT, outer / "source")
    with pytest.raises(PlanError, match="holds"):
        export_merged(outer / "source", outer, overwrite=True)
    shutil.move(adapter, outer / "adapter")
    with pytest.raises(PlanError, match="holds"):
        export_merged("demo/chat", outer, adapter=outer / "adapter", overwrite=True)
    described = json.loads((outer / "adapter" / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = str(outer)
    (outer / "adapter" / "adapter_config.json").write_text(json.dumps(described))
    shutil.move(outer / "adapter", tmp_path / "adapter")
    with pytest.raises(PlanError, match="that is to be exported"):
        export_merged(tmp_path / "adapter", outer, overwrite=True)
    with pytest.raises(PlanError, match="is an adapter already"):
        export_merged(tmp_path / "adapter", tmp_path / "out", adapter=tmp_path / "adapter")
    assert (outer / "source" / "model.safetensors").is_file() and (outer / "model.safetensors").is_file()


def test_a_folder_kept_by_hand_beside_the_export_stays(tmp_path: Path) -> None:
    kept = tmp_path / "out.old"
    shutil.copytree(CHAT, kept)
    export_merged("demo/chat", tmp_path / "out", prompts=PROMPTS[:1])
    export_merged("demo/chat", tmp_path / "out", prompts=PROMPTS[:1], overwrite=True)
    assert (kept / "model.safetensors").is_file() and len(list(tmp_path.iterdir())) == 2


def test_a_link_to_a_folder_elsewhere_is_written_through(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "model"
    elsewhere.mkdir(parents=True)
    (tmp_path / "out").symlink_to(elsewhere)
    export_merged("demo/chat", tmp_path / "out", prompts=PROMPTS[:1])
    assert (elsewhere / "config.json").is_file() and (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


@pytest.mark.parametrize("folder", [".", "", ".."])
def test_a_folder_without_a_name_is_refused(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match="name a folder"):
        export_merged("demo/chat", folder)


def test_a_model_without_its_tokenizer_is_told_what_to_give(model: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"LlamaForCausalLM; it is .*\(model, tokenizer\)"):
        export_merged(model[0], tmp_path / "out")
    with pytest.raises(PlanError, match="exported is NoneType"):
        compare_llms(model, None)


def test_without_memory_to_reload_it_the_folder_is_kept_unproved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    memory = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    report = export_merged("demo/chat", tmp_path / "out", prompts=PROMPTS)
    assert report.proof.verdict == "unproved" and "GiB are available" in report.proof.reasons[0]
    assert json.loads((tmp_path / "out" / "out.proof.json").read_text())["verdict"] == "unproved"


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes .* and 1,000 are free"):
        export_merged("demo/chat", tmp_path / "out", prompts=PROMPTS)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="'16-bit', 'nf4', 'int8', 'int4', 'fp8'"):
        export_merged("demo/chat", tmp_path / "out", format="gptq")


def test_fp8_is_refused_on_a_gpu_below_sm_89_with_what_can_be_done() -> None:
    from speechkit.device import Gpu, Hardware

    hardware = Hardware(cores=2, gpus=(Gpu("Tesla T4", (7, 5), 15.0),))
    with pytest.raises(PlanError, match="sm_89"):
        check_possible("fp8", "cuda", hardware)


def test_a_quantised_model_is_not_exported_again(tmp_path: Path) -> None:
    export_merged("demo/chat", tmp_path / "nf4", format="nf4", prompts=PROMPTS)
    with pytest.raises(ModelError, match="quantised already"):
        export_merged(tmp_path / "nf4", tmp_path / "out", prompts=PROMPTS)


def test_a_comparison_of_other_vocabularies_is_an_error(model: tuple[Any, Any]) -> None:
    other, _ = load_llm("demo/chat", device="cpu", kernels=False, dtype="float32")
    other.resize_token_embeddings(1030)
    with pytest.raises(PlanError, match="vocabularies differ"):
        compare_llms(model, other, PROMPTS)
