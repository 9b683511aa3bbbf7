"""The proof of a GGUF file: whole ones pass, damaged ones do not. The oracle is llama.cpp itself.

The files are written here with the gguf package from the weights of demo/chat, so that damage can be done to any part.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechkit.errors import ExportError, ModelError, PlanError
from speechkit.export import proof as module
from speechkit.export.proof import Proof, prove_gguf
from speechkit.export.proof_source import read_facts
from speechkit.llm import load_llm

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

CHAT = Path(__file__).resolve().parents[2] / "speechkit/demo/models/chat"
ASKED = ("What is 17 plus 25?", "What day comes after Tuesday?", "Say twice: green lamp.")
PROMPTS = [[{"role": "user", "content": text}] for text in ASKED]


@dataclass
class Parts:
    """What goes into a file; a test changes some of it."""

    tensors: dict[str, np.ndarray]
    merges: list[str]
    pre: str = "qwen2"
    eos: int = 2
    template: str = ""
    kinds: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)


def parts_of_chat() -> Parts:
    from safetensors.numpy import load_file

    read = json.loads((CHAT / "tokenizer.json").read_text())
    vocabulary = read["model"]["vocab"]
    tokens, kinds = sorted(vocabulary, key=vocabulary.get), [int(gguf.TokenType.NORMAL)] * len(vocabulary)
    for one in read["added_tokens"]:
        kinds[one["id"]] = int(gguf.TokenType.CONTROL)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 4)
    tensors = {}
    for name, weight in load_file(CHAT / "model.safetensors").items():
        weight = weight.astype(np.float32)
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns neighbours, transformers halves
            weight = weight.reshape(-1, 2, 32, 256).swapaxes(1, 2).reshape(weight.shape)
        tensors[names.get_name(name, (".weight",))] = weight
    merges = [one if isinstance(one, str) else " ".join(one) for one in read["model"]["merges"]]
    return Parts(tensors, merges, template=(CHAT / "chat_template.jinja").read_text(), kinds=kinds, tokens=tokens)


def write(parts: Parts, path: Path, kind: str = "F32") -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "context_length": 512, "embedding_length": 256, "block_count": 4, "feed_forward_length": 768, "head_count": 4,
        "head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 1e4, "rope_dimension_count": 64,
        "vocab_size": 1024, "tokenizer_model": "gpt2", "tokenizer_pre": parts.pre, "token_list": parts.tokens,
        "token_types": parts.kinds, "token_merges": parts.merges, "eos_token_id": parts.eos, "pad_token_id": 0,
        "add_bos_token": False, "chat_template": parts.template,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    for name, weight in parts.tensors.items():
        if kind == "F32" or weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(weight, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def parts() -> Parts:
    return parts_of_chat()


@pytest.fixture(scope="module")
def facts() -> Any:
    return read_facts("demo/chat", PROMPTS)


@pytest.fixture(scope="module")
def whole(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(parts, tmp_path_factory.mktemp("gguf") / "chat-F32.gguf")


@pytest.fixture(scope="module")
def passed(facts: Any, whole: Path) -> Proof:
    return prove_gguf(facts, whole, "F32")


def test_a_whole_file_passes_with_every_part_compared(passed: Proof) -> None:
    assert passed.proved and passed.passed and passed.verdict == "passed", passed.text()
    assert passed.prompts == 3 and passed.tokens > 10 and passed.top1 == 1.0
    assert passed.tokenizer is not None and passed.tokenizer.of > 100
    assert passed.template is not None and passed.template.of == 8
    assert passed.stops is not None and passed.stops.of == 1


def test_float32_log_probabilities_are_within_2e_3_of_transformers(passed: Proof) -> None:
    assert passed.max_logprob_difference is not None and passed.max_logprob_difference <= 2e-3
    assert passed.top == 1024  # the whole vocabulary, tokens that are no whole UTF-8 included


def test_a_proof_is_written_beside_the_file_and_names_no_folder(passed: Proof, tmp_path: Path) -> None:
    path = passed.save(tmp_path)
    assert path.name == "chat-F32.proof.json"
    told = json.loads(path.read_text())
    assert told["verdict"] == "passed" and told["quant"] == "F32" and told["file"] == "chat-F32.gguf"
    assert told["tokenizer"]["same"] == told["tokenizer"]["of"] and told["thresholds"]["greedy"] == 1.0
    assert str(CHAT.parents[3]) not in path.read_text()


def test_a_proof_in_an_unwritable_folder_says_so(passed: Proof, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be written"):
        passed.save(tmp_path / "absent")


def test_8_bits_pass_their_threshold(facts: Any, parts: Parts, tmp_path: Path) -> None:
    found = prove_gguf(facts, write(parts, tmp_path / "q8.gguf", "Q8_0"), "Q8_0")
    assert found.passed and found.thresholds == {"top1": 0.99}, found.text()
    assert found.kl is not None and 0 < found.kl < 0.05


def test_of_a_large_vocabulary_the_likeliest_tokens_are_compared_and_the_rest_as_one(
    facts: Any, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechkit.export import proof_llama

    file = write(parts, tmp_path / "q8.gguf", "Q8_0")
    whole = prove_gguf(facts, file, "Q8_0")
    monkeypatch.setattr(proof_llama, "WHOLE", 512)
    monkeypatch.setattr(proof_llama, "TOP", 16)
    part = prove_gguf(facts, file, "Q8_0")
    assert part.top == 16 and part.top1 == whole.top1 and any("lower bound" in note for note in part.notes)
    assert part.kl is not None and whole.kl is not None and 0 <= part.kl <= whole.kl


def unpermuted(parts: Parts) -> Parts:
    turned = {
        name: weight.reshape(-1, 32, 2, 256).swapaxes(1, 2).reshape(weight.shape)
        for name, weight in parts.tensors.items()
        if "attn_q" in name or "attn_k" in name
    }
    return replace(parts, tensors=parts.tensors | turned)


def other_cut(parts: Parts) -> Parts:
    return replace(parts, pre="gpt-2")


def shuffled_merges(parts: Parts) -> Parts:
    order = np.random.default_rng(0).permutation(len(parts.merges))
    return replace(parts, merges=[parts.merges[n] for n in order])


def other_end(parts: Parts) -> Parts:
    # a name that llama.cpp does not take for an end by itself
    return replace(parts, eos=0, tokens=["<|finis|>" if word == "<|im_end|>" else word for word in parts.tokens])


def other_template(parts: Parts) -> Parts:
    return replace(parts, template=parts.template.replace("\\n' + message.content", " ' + message.content"))


def without_template(parts: Parts) -> Parts:
    return replace(parts, template="{{ messages[0].nothing.at.all }}")


def zeroed_layer(parts: Parts) -> Parts:
    zeros = {name: np.zeros_like(weight) for name, weight in parts.tensors.items() if name.startswith("blk.2.")}
    return replace(parts, tensors=parts.tensors | zeros)


def not_finite(parts: Parts) -> Parts:
    weight = parts.tensors["blk.1.ffn_down.weight"].copy()
    weight[3, 5] = np.nan
    return replace(parts, tensors=parts.tensors | {"blk.1.ffn_down.weight": weight})


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (unpermuted, "greedy continuations is"),
        (other_cut, "token ids: "),
        (shuffled_merges, "token ids: "),
        (other_end, "stop tokens: "),
        (other_template, "chat template: "),
        (without_template, "chat template: "),
        (zeroed_layer, "greedy continuations is"),
        (not_finite, ""),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else "",
)
def test_damage_is_found_and_refused(damage: Any, why: str, facts: Any, parts: Parts, tmp_path: Path) -> None:
    found = prove_gguf(facts, write(damage(parts), tmp_path / "damaged.gguf"), "F32")
    assert found.proved and not found.passed, found.text()
    assert why in " | ".join(found.reasons)
    with pytest.raises(ExportError, match="was refused"):
        found.enforce()


def test_a_zeroed_layer_fails_at_4_bits_too(facts: Any, parts: Parts, tmp_path: Path) -> None:
    found = prove_gguf(facts, write(zeroed_layer(parts), tmp_path / "damaged.gguf"), "Q4_K_M")
    assert not found.passed and "top-1 agreement is" in found.reasons[0]


def test_a_forced_export_says_so_in_its_proof(facts: Any, parts: Parts, tmp_path: Path) -> None:
    found = prove_gguf(facts, write(zeroed_layer(parts), tmp_path / "damaged.gguf"), "F32").enforce(force=True)
    assert found.forced and found.as_dict()["verdict"] == "failed, kept by force"


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
def test_a_truncated_file_fails_with_what_llama_cpp_says(kept: float, facts: Any, whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * kept)])
    found = prove_gguf(facts, cut, "F32")
    assert found.proved and not found.passed and "does not open the file" in found.reasons[0]
    assert str(tmp_path) not in found.text()
    with pytest.raises(ExportError, match="does not open"):
        found.enforce()


def test_what_is_no_gguf_file_fails(facts: Any, tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"not a model at all" * 100)
    assert "does not open the file" in prove_gguf(facts, tmp_path / "none.gguf", "F32").reasons[0]


def test_a_file_that_is_absent_is_an_error(facts: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not there"):
        prove_gguf(facts, tmp_path / "absent.gguf", "F32")


def test_an_unknown_source_is_an_error(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        prove_gguf(tmp_path, whole, "F32")


def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """In the engine's place a script that goes wrong in its own way."""
    from speechkit.export import proof_llama

    (tmp_path / "proof_engine.py").write_text(text)
    monkeypatch.setattr(proof_llama, "__file__", str(tmp_path / "proof_llama.py"))


def test_an_engine_that_aborts_fails_the_file_and_leaves_this_process(
    facts: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(tmp_path, monkeypatch, "import os\nprint('GGML_ASSERT(x) failed', flush=True)\nos.abort()\n")
    found = prove_gguf(facts, whole, "F32")
    assert not found.passed and f"with signal {int(signal.SIGABRT)}" in found.reasons[0]
    assert "GGML_ASSERT(x) failed" in found.reasons[0]


def test_an_engine_that_hangs_is_ended_at_its_limit(
    facts: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechkit.export import proof_llama

    engine(tmp_path, monkeypatch, "import time\ntime.sleep(600)\n")
    monkeypatch.setattr(proof_llama, "GRACE_S", 0.0)
    found = prove_gguf(facts, whole, "F32", limits={"open": 0.2})
    assert not found.passed and "was ended after" in found.reasons[0] and "'open'" in found.reasons[0]


def test_secrets_and_llama_cpps_own_settings_do_not_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from speechkit.export.proof_llama import environment

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    assert not {"HF_TOKEN", "LLAMA_ARG_CTX_SIZE"} & set(environment())


def test_without_memory_the_file_stays_unproved_with_the_reason(whole: Path) -> None:
    found = prove_gguf("demo/chat", whole, "F32", memory=10 * 2**20)
    assert not found.proved and not found.passed and found.verdict == "unproved"
    assert "needs" in found.reasons[0] and "GiB are available" in found.reasons[0]
    assert found.enforce() is found  # kept


def test_without_llama_cpp_the_file_stays_unproved(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.extras, "available", lambda name: False)
    found = prove_gguf("demo/chat", whole, "F32")
    assert not found.proved and "pip install" in found.reasons[0]


def test_time_that_runs_out_leaves_positions_out_and_says_so(facts: Any, whole: Path) -> None:
    found = prove_gguf(facts, whole, "F32", limits={"logprobs": 0.0})
    assert found.prompts == 1 and any("llama.cpp took its time" in note for note in found.notes)


def test_importing_the_proof_loads_neither_torch_nor_llama_cpp() -> None:
    code = "import sys, speechkit.export.proof; print(sorted({'torch', 'gguf', 'xllamacpp'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(CHAT.parents[3])}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.strip() == "[]"


def test_a_split_file_of_links_to_a_store_is_opened_by_the_names_of_the_links(tmp_path: Path) -> None:
    from speechkit.export.gguf import export_gguf
    from speechkit.export.proof_llama import parts_of

    made = export_gguf("demo/chat", tmp_path / "split.gguf", "Q8_0", split_bytes=2_000_000, prove=False).files
    assert len(made) > 1
    (tmp_path / "store").mkdir()
    for number, part in enumerate(made):  # as in the cache of huggingface_hub
        part.rename(tmp_path / "store" / f"blob{number}")
        part.symlink_to(tmp_path / "store" / f"blob{number}")
    assert parts_of(made[1]) == tuple(made)
    proof = prove_gguf("demo/chat", made[0], "Q8_0", prompts=PROMPTS[:1])
    assert proof.passed, proof.text()


def test_parts_of_a_split_file_are_those_of_its_own_name(tmp_path: Path) -> None:
    from speechkit.export.proof_llama import parts_of

    for name in ("m[1]", "m[1]-00000"):
        for number in (1, 2):
            (tmp_path / f"{name}-0000{number}-of-00002.gguf").touch()
    found = parts_of(tmp_path / "m[1]-00002-of-00002.gguf")
    assert [part.name for part in found] == ["m[1]-00001-of-00002.gguf", "m[1]-00002-of-00002.gguf"]
    absent = tmp_path / "none-00001-of-00002.gguf"
    assert parts_of(absent) == (absent,)


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ("Hello", "one text"),
        ([{"role": "user", "content": "Hello"}], "one conversation"),
        ([5], r"prompts\[0\] is 5"),
        (["Hello", None], r"prompts\[1\] is None"),
        ([b"Hello"], "a prompt is a text"),
        ([[1, 2, 99999]], "token 99999; the model has tokens 0 to 1023"),
        ([], "no prompt to compare by"),
    ],
)
def test_prompts_that_are_none_are_told(prompts: Any, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        read_facts("demo/chat", prompts)


def test_a_conversation_that_the_template_refuses_is_told() -> None:
    model, tokenizer = load_llm("demo/chat", kernels=False, dtype="float32")
    tokenizer.chat_template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(PlanError, match="no system, please"):
        read_facts((model, tokenizer), PROMPTS)
    tokenizer.chat_template = None
    with pytest.raises(PlanError, match="no chat template; give texts"):
        read_facts((model, tokenizer), PROMPTS)


def test_a_model_in_training_is_compared_and_trains_on() -> None:
    model, tokenizer = load_llm("demo/chat", kernels=False, dtype="float32")
    model.train()
    model.model.layers[0].eval()
    read_facts((model, tokenizer), ["Hello"])
    assert model.training and model.model.layers[1].training and not model.model.layers[0].training


def test_the_source_in_the_folder_one_is_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHAT)
    assert module._named(".") == "chat"
