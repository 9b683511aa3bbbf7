"""Importance matrices: measured against inputs taken another way, and llama.cpp's file formats."""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "llm"))

from kquants_oracle import library_of_xllamacpp
from tiny_llms import tiny

from speechkit.errors import DataError, ModelError, OutputError, PlanError
from speechkit.export.imatrix import Importance, importance_of, load_imatrix, save_imatrix

TEXTS = ["some text to measure on", "and more of it, a little longer than the first", "the end"]


class Letters:
    """A tokenizer of letters: enough to turn a text into ids that are known beforehand."""

    bos_token = "<s>"  # noqa: S105

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [3 + ord(letter) % 60 for letter in text.removeprefix(self.bos_token)]
        return {"input_ids": [1, *ids] if add_special_tokens or text.startswith(self.bos_token) else ids}


def stream(texts: list[str] = TEXTS) -> torch.Tensor:
    return torch.tensor([[one for text in texts for one in Letters()(text)["input_ids"]]])


def inputs_of(model: Any, name: str, ids: torch.Tensor) -> torch.Tensor:
    """(M, K): what the layer `name` multiplies, from what a wrapper around its forward sees."""
    module, seen = model.get_submodule(name), []
    forward = module.forward

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.flatten(0, -2))
        return forward(x)

    module.forward = watched
    try:
        with torch.no_grad():
            model(input_ids=ids)
    finally:
        module.forward = forward
    return torch.cat(seen)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("model.layers.0.self_attn.q_proj", "blk.0.attn_q.weight"),
        ("model.layers.1.self_attn.o_proj", "blk.1.attn_output.weight"),
        ("model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"),
    ],
)
def test_importance_is_the_mean_square_of_the_inputs_under_llama_cpps_name(layer: str, name: str) -> None:
    model = tiny("llama")
    found = importance_of(model, Letters(), TEXTS)
    wanted = inputs_of(model, layer, stream()).square().mean(dim=0)
    assert found[name].dtype == np.float32
    np.testing.assert_allclose(found[name], wanted, rtol=1e-5)
    assert len(found) == 14  # seven layers in each of two blocks
    assert found.counts[name] == found.tokens == stream().numel()


def test_the_first_layers_inputs_are_its_norms_outputs() -> None:
    model = tiny("llama")
    with torch.no_grad():
        normed = model.model.layers[0].input_layernorm(model.model.embed_tokens(stream()))[0]
    found = importance_of(model, Letters(), TEXTS)
    np.testing.assert_allclose(found["blk.0.attn_k.weight"], normed.square().mean(dim=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("qwen2", {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}),
        ("phi3", {"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
        ("gemma3_text", {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}),
    ],
)
def test_every_layer_has_the_name_that_the_exported_file_gives_it(kind: str, names: set[str]) -> None:
    found = importance_of(tiny(kind), Letters(), TEXTS)
    assert set(found) == {f"blk.{block}.{name}.weight" for block in (0, 1) for name in names}


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_each_expert_has_the_mean_over_the_tokens_sent_to_it(kind: str) -> None:
    model, ids = tiny(kind), stream()
    experts = model.model.layers[1].mlp.experts
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = experts.register_forward_pre_hook(lambda module, given: seen.append((given[0], given[1])))
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    ((hidden, chosen),) = seen
    found = importance_of(model, Letters(), TEXTS)
    for expert in range(4):
        tokens = [at for at in range(len(hidden)) if expert in chosen[at].tolist()]
        assert found.counts["blk.1.ffn_up_exps.weight"][expert] == len(tokens)
        if not tokens:
            continue
        into = torch.stack([hidden[at] for at in tokens])
        gate, up = (into @ experts.gate_up_proj[expert].detach().T).chunk(2, dim=1)
        inner = torch.nn.functional.silu(gate) * up
        for name, wanted in (("ffn_gate_exps", into), ("ffn_up_exps", into), ("ffn_down_exps", inner)):
            values = found[f"blk.1.{name}.weight"]
            assert values.shape == (4, wanted.shape[1])
            np.testing.assert_allclose(values[expert], wanted.detach().square().mean(dim=0), rtol=1e-4)


def test_experts_that_no_token_reaches_are_told_and_count_alike() -> None:
    model = tiny("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.weight.data.zero_()
        layer.mlp.gate.weight.data[:2] = 1e-9  # the router cannot tell the others apart: ties go to the first
    found = importance_of(model, Letters(), ["a"])
    assert found.unseen
    for name, missing in found.unseen.items():
        rows = found[name][found.counts[name] == 0]
        assert len(rows) == missing
        assert (rows == 1).all()
    assert "experts saw none of them" in repr(found)


def test_windows_and_batches_change_nothing_but_what_a_token_sees() -> None:
    model = tiny("llama")
    whole = importance_of(model, Letters(), TEXTS, context=8)
    ids, name = stream()[0], "blk.1.ffn_gate.weight"
    squares = [
        inputs_of(model, "model.layers.1.mlp.gate_proj", ids[None, at : at + 8]).square()
        for at in range(0, len(ids), 8)
    ]
    np.testing.assert_allclose(whole[name], torch.cat(squares).mean(dim=0), rtol=1e-5)
    assert importance_of(model, Letters(), TEXTS * 50, most_tokens=100).tokens == 100


def test_a_rendered_chat_gets_no_second_beginning() -> None:
    plain = importance_of(tiny("llama"), Letters(), ["abc"])
    rendered = importance_of(tiny("llama"), Letters(), ["<s>abc"])
    assert plain.tokens == rendered.tokens == 4


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("llama").train()
    model.model.layers[0].eval()
    importance_of(model, Letters(), TEXTS)
    assert model.training and not model.model.layers[0].training
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ModelError):
        model.model.layers[0].self_attn.q_proj.weight.data.fill_(torch.nan)
        importance_of(model, Letters(), TEXTS)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_heads_importance_is_there_when_asked_for() -> None:
    assert "output.weight" not in importance_of(tiny("llama"), Letters(), TEXTS)
    assert importance_of(tiny("llama"), Letters(), TEXTS, output=True)["output.weight"].shape == (32,)


def test_an_architecture_that_llama_cpp_is_not_exported_for_keeps_its_names() -> None:
    found = importance_of(tiny("gpt_neox"), Letters(), TEXTS)
    assert all(name.startswith("gpt_neox.layers.") for name in found)


def test_what_is_saved_is_llama_cpps_format_and_loads_again(tmp_path: Path) -> None:
    found = importance_of(tiny("mixtral"), Letters(), TEXTS)
    path = save_imatrix(found, tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.get_field("general.type").contents() == "imatrix"
    assert {"imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"} <= set(reader.fields)
    assert list(tensors["blk.0.attn_q.weight.in_sum2"].shape) == [32, 1]  # ggml's order: columns first
    assert list(tensors["blk.0.ffn_down_exps.weight.in_sum2"].shape) == [48, 4]
    assert list(tensors["blk.0.ffn_down_exps.weight.counts"].shape) == [1, 4]
    sums = tensors["blk.0.attn_q.weight.in_sum2"].data.ravel()
    np.testing.assert_allclose(sums / found.tokens, found["blk.0.attn_q.weight"], rtol=1e-6)
    again = load_imatrix(path)
    assert again.keys() == found.keys() and again.tokens == found.tokens
    for name in found:
        np.testing.assert_allclose(again[name], found[name], rtol=1e-6)
        assert np.array_equal(again.counts[name], found.counts[name])
    assert list(tmp_path.iterdir()) == [path]


class Params(ctypes.Structure):
    """llama.cpp's gguf_init_params."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def test_llama_cpp_itself_opens_the_file_and_finds_sums_and_counts(tmp_path: Path) -> None:
    found = importance_of(tiny("mixtral"), Letters(), TEXTS)
    path = save_imatrix(found, tmp_path / "imatrix.gguf")
    library = library_of_xllamacpp()
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    library.gguf_init_from_file.argtypes, library.gguf_init_from_file.restype = (ctypes.c_char_p, Params), pointer
    for name, taken, given in (
        ("gguf_get_n_tensors", (pointer,), whole), ("gguf_find_tensor", (pointer, ctypes.c_char_p), whole),
        ("gguf_get_tensor_size", (pointer, whole), ctypes.c_size_t), ("gguf_free", (pointer,), None),
        ("gguf_find_key", (pointer, ctypes.c_char_p), whole), ("gguf_get_val_u32", (pointer, whole), ctypes.c_uint32),
    ):  # fmt: skip
        getattr(library, name).argtypes, getattr(library, name).restype = taken, given
    opened = library.gguf_init_from_file(str(path).encode(), Params(True, None))
    assert opened
    try:
        assert library.gguf_get_n_tensors(opened) == 2 * len(found)
        assert library.gguf_get_val_u32(opened, library.gguf_find_key(opened, b"imatrix.chunk_size")) == 512
        for name, values in found.items():
            for suffix, count in ((".in_sum2", values.size), (".counts", found.counts[name].size)):
                at = library.gguf_find_tensor(opened, (name + suffix).encode())
                assert library.gguf_get_tensor_size(opened, at) == 4 * count
    finally:
        library.gguf_free(opened)


def test_a_plain_mapping_can_be_saved(tmp_path: Path) -> None:
    squares = np.random.default_rng(0).random(64).astype(np.float32)
    again = load_imatrix(save_imatrix({"blk.0.attn_q.weight": squares}, tmp_path / "a.gguf"))
    assert np.array_equal(again["blk.0.attn_q.weight"], squares)


def legacy(entries: list[tuple[str, int, np.ndarray]], tail: bool = True) -> bytes:
    """llama.cpp's .dat: of each entry its name, calls, and sums over the calls of means."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += (values * calls).astype("<f4").tobytes()
    return data + (struct.pack("<ii", 7, 8) + b"wiki.txt" if tail else b"")


@pytest.mark.parametrize("tail", [True, False])
def test_the_dat_files_of_before_are_read(tail: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 96)).astype(np.float32)
    entries = [("blk.0.attn_q.weight", 4, values[0]), ("blk.11.ffn_down.weight", 0, values[1] * 0)]
    (tmp_path / "old.dat").write_bytes(legacy(entries, tail))
    found = load_imatrix(tmp_path / "old.dat")
    assert list(found) == ["blk.0.attn_q.weight", "blk.11.ffn_down.weight"]
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], values[0], rtol=1e-6)
    assert found.datasets == (("wiki.txt",) if tail else ())


def test_broken_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    good = legacy([("blk.0.attn_q.weight", 4, np.ones(64, np.float32))], tail=False)
    saved = save_imatrix({"blk.0.attn_q.weight": np.ones(64)}, tmp_path / "good.gguf").read_bytes()
    cases = {
        "short.dat": (good[:-9], "cut short: blk.0.attn_q.weight would have 64 values"),
        "empty.dat": (b"", "no importance matrix"),
        "noise.dat": (bytes(range(256)), "no importance matrix"),
        "short.gguf": (saved[:-100], "cannot be read, cut short perhaps"),
        "header.gguf": (saved[:20], "cannot be read, cut short perhaps"),
        "negative.dat": (legacy([("a", 1, np.array([1.0, -1.0]))]), "a holds values that are negative"),
    }
    for name, (data, said) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=said):
            load_imatrix(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        load_imatrix(tmp_path / "absent.gguf")


def test_a_gguf_file_of_another_kind_is_told_apart(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DataError, match="without an importance matrix: it holds 1 other tensors"):
        load_imatrix(tmp_path / "model.gguf")


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"imatrix.dat does not end in \.gguf"):
        save_imatrix({"a": np.ones(2)}, tmp_path / "imatrix.dat")
    with pytest.raises(PlanError, match="no entry"):
        save_imatrix(Importance(), tmp_path / "imatrix.gguf")
    for wrong in (np.nan, np.inf, -1.0):  # load_imatrix, and llama.cpp, would have no use for the file
        with pytest.raises(PlanError, match="importance of a holds values that are negative"):
            save_imatrix({"a": np.array([1.0, wrong])}, tmp_path / "imatrix.gguf")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="cannot be written"):
        save_imatrix({"a": np.ones(2)}, tmp_path / "no" / "imatrix.gguf")


def test_no_text_and_limits_that_cannot_be_are_named() -> None:
    with pytest.raises(DataError, match="no text to measure importance on"):
        importance_of(tiny("llama"), Letters(), [])
    with pytest.raises(PlanError, match="most_tokens is 0"):
        importance_of(tiny("llama"), Letters(), TEXTS, most_tokens=0)
