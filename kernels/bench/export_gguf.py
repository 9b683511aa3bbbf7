"""What an export of a whole model to GGUF costs on a CPU: seconds by stage, memory, and beside others' quantisers.

    python kernels/bench/export_gguf.py                  a Llama of 1.2 B random bf16 weights, sharded: 2.5 GB of disk
    python kernels/bench/export_gguf.py --cpu-check      a small one, in seconds

The export runs in a process of its own, whose largest resident size is the memory; imports and compiling are counted
apart, by an export of a tiny model before. The aims: at most 3 GiB. Then the tensors of one layer are packed by ours as
the file holds them, by `ggml_quantize_chunk` as the same types and by gguf's own Q8_0, taking turns in one thread; the
figures are medians of the quotients of neighbouring turns. They go to export_results/. No proof is made: it
would need the model in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kquants_cpu import llama_cpp, ratios, turns

RESULTS = Path(__file__).parent / "export_results"  # results/ is read as figures of kernels
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """Of a Llama; 1.2 B is Llama 3.2's."""

    width: int = 2048
    inner: int = 8192
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    rows: int = 128256

    @property
    def parameters(self) -> int:
        head = self.width // self.heads
        attention = 2 * self.width * self.width + 2 * self.kv_heads * head * self.width
        layer = attention + 3 * self.width * self.inner + 2 * self.width
        return self.rows * self.width + self.layers * layer + self.width


SMALL = Size(256, 1024, 2, 4, 2, 1024)
EXPORT = """
import json, resource, sys
from pathlib import Path
from speechkit.export.gguf import export_gguf
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
export_gguf(sys.argv[1], Path(sys.argv[3]) / "first.gguf", sys.argv[4], prove=False)
begun = most()
report = export_gguf(sys.argv[2], Path(sys.argv[3]) / "model.gguf", sys.argv[4], prove=False)
print(json.dumps({**report.as_dict(), "before_bytes": begun, "peak_bytes": most()}))
"""


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """transformers' name → shape; the head is the embedding."""
    head = size.width // size.heads
    keys = size.kv_heads * head
    layer = {
        "self_attn.q_proj": (size.width, size.width), "self_attn.k_proj": (keys, size.width),
        "self_attn.v_proj": (keys, size.width), "self_attn.o_proj": (size.width, size.width),
        "mlp.gate_proj": (size.inner, size.width), "mlp.up_proj": (size.inner, size.width),
        "mlp.down_proj": (size.width, size.inner), "input_layernorm": (size.width,),
        "post_attention_layernorm": (size.width,),
    }  # fmt: skip
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size.rows, size.width)}
    for number in range(size.layers):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return {**found, "model.norm.weight": (size.width,)}


def make(folder: Path, size: Size, shard_bytes: int = 500_000_000) -> Path:
    """The model's folder, a shard in memory at a time."""
    from safetensors.torch import save_file
    from transformers import AutoConfig

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    groups: list[list[str]] = [[]]
    wanted, held = shapes(size), 0
    for name, shape in wanted.items():
        count = 2 * int(np.prod(shape))
        if held and held + count > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += count
    where = {}
    for number, names in enumerate(groups):
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: weight(name, wanted[name]) for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    AutoConfig.for_model(
        "llama", vocab_size=size.rows, hidden_size=size.width, intermediate_size=size.inner, dtype="bfloat16",
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ).save_pretrained(folder)  # fmt: skip
    tokenizer().save_pretrained(folder)
    return folder


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)


def tokenizer() -> Any:
    """Bytes alone: what cuts and merges would cost is not measured."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ("<|pad|>", "<|begin|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()))
    bare = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), words[:3], strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=bare, **names)


def exported(place: Path, folder: Path, quant: str, threads: int) -> dict[str, Any]:
    """The export in its own process."""
    tiny = make(place / "tiny", SMALL)
    begun = time.perf_counter()
    told = subprocess.run(  # noqa: S603 - this script's own text
        [sys.executable, "-c", EXPORT, str(tiny), str(folder), str(place), quant], capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return {**found, "process_s": time.perf_counter() - begun}


def beside(size: Size, quant: str, rounds: int) -> dict[str, Any]:
    """One layer's matrices, in one thread: ours and llama.cpp's C in the file's types, gguf in Q8_0."""
    import gguf

    from speechkit.export import mixture
    from speechkit.export.kquants import quantize

    torch.set_num_threads(1)
    layer = {name: shape for name, shape in shapes(size).items() if ".layers.0." in name and len(shape) == 2}
    kind, theirs = mixture.kind_of(quant), llama_cpp()
    named = {f"blk.0.{number}.weight": shape for number, shape in enumerate(layer.values())}
    kinds = mixture.tensor_types(named, kind, arch="llama")
    tensors = [(weight("", shape).float().numpy(), kinds[name]) for name, shape in named.items()]

    def ours() -> None:
        for x, name in tensors:
            quantize(x, name, threads=1)

    def c() -> None:
        assert theirs is not None
        for x, name in tensors:
            theirs(x, name, None, 1)

    def ours_q8_0() -> None:
        for x, _ in tensors:
            quantize(x, "Q8_0", threads=1)

    def in_gguf() -> None:
        for x, _ in tensors:
            gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)

    calls = {"ours": ours, **({"ggml_quantize_chunk": c} if theirs is not None else {})}
    calls |= {"gguf's Q8_0": in_gguf, "our Q8_0": ours_q8_0}
    taken = turns(calls, rounds, time.process_time)
    weights = sum(x.size for x, _ in tensors)
    rates = {name: round(weights / float(np.median(values)) / 1e6, 1) for name, values in taken.items()}
    q8_0 = ratios({"ours": taken["our Q8_0"], "gguf's": taken["gguf's Q8_0"]})
    del taken["our Q8_0"]
    return {
        "weights": weights, "million_weights_per_s": rates, "times_as_fast": ratios(taken),
        "our_q8_0_times_as_fast_as_ggufs": q8_0["gguf's"],
    }  # fmt: skip


def show(size: Size, found: dict[str, Any], ratio: dict[str, Any]) -> None:
    stages = ", ".join(f"{name} {value:.1f}" for name, value in found["seconds"].items())
    total = sum(found["seconds"].values())
    print(
        f"{size.parameters:,} weights to {found['quant']}: {total:.1f} s ({stages}), "
        f"{size.parameters / total / 1e6:.1f} million weights/s, {found['bits_per_weight']:.2f} bits per weight"
    )
    print(f"memory {found['peak_bytes'] / 2**30:.2f} GiB, of which {found['before_bytes'] / 2**30:.2f} before")
    times = ", ".join(f"{value:.2f}x {name}" for name, value in ratio["times_as_fast"].items())
    print(
        f"one layer, one thread: {ratio['million_weights_per_s']} million weights/s: {times}; "
        f"our Q8_0 {ratio['our_q8_0_times_as_fast_as_ggufs']:.2f}x gguf's"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--place", type=Path, help="where the model is made, by default the temporary folder")
    parser.add_argument("--cpu-check", action="store_true", help="a small model, and no file of results")
    given = parser.parse_args()
    size = SMALL if given.cpu_check else Size()
    place = Path(tempfile.mkdtemp(prefix="export-gguf-", dir=given.place))
    try:
        folder = make(place / "model", size, 400_000 if given.cpu_check else 500_000_000)
        found = exported(place, folder, given.quant, given.threads)
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    ratio = beside(size, given.quant, given.rounds)
    show(size, found, ratio)
    if given.cpu_check:
        return
    kept = {name: found[name] for name in ("quant", "bytes", "bits_per_weight", "types", "seconds", "peak_bytes")}
    row = {
        "name": "export_gguf", "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.machine(),
        "cores": os.cpu_count(), "threads": given.threads, "parameters": size.parameters, "stored_bytes": stored,
        "before_bytes": found["before_bytes"], **kept, "one_layer": ratio,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "export_gguf.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
