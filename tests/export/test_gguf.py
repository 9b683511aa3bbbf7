"""Exports as users make them: kinds of file, splits, adapters, room and memory; what is broken is refused, whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("xllamacpp")
sys.path.insert(0, str(Path(__file__).parent))
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file, save_file
from tiny_exports import byte_level, difference, folder_of, saved, tiny

from speechkit.errors import ExportError, ModelError, OutputError, PlanError
from speechkit.export import export_gguf, mixture, save_imatrix
from speechkit.export.gguf import GgufReport

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose widths 256 divides, in several shards."""
    place = tmp_path_factory.mktemp("wide") / "model"
    return saved(place, tiny("llama", 512, **WIDE), byte_level(ignore_merges=True), max_shard_size="900KB")


def changed(folder: Path, place: Path, change: Any) -> Path:
    """A copy in one file with other tensors."""
    shutil.copytree(folder, place)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(place.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (place / "model.safetensors.index.json").unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, place / "model.safetensors")
    return place


def left(place: Path) -> list[str]:
    """What an export left behind, besides models."""
    return sorted(one.name for one in place.iterdir() if ".gguf" in one.name)


@pytest.mark.parametrize("kind", mixture.KINDS)
def test_a_kind_of_file_holds_the_weights(kind: str, folder: Path, tmp_path: Path) -> None:
    report = export_gguf(folder, tmp_path / "model.gguf", kind, prove=False)
    stored: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    tensors = {tensor.name: tensor for tensor in GGUFReader(report.files[0]).tensors}
    assert report.types == {name: count for name, count in counted(tensors).items() if count}
    down = tensors["blk.1.ffn_down.weight"]
    found = dequantize(np.asarray(down.data), down.tensor_type)
    wanted = stored["model.layers.1.mlp.down_proj.weight"].float().numpy()
    most = {"F": 2e-3, "Q8": 6e-3, "Q6": 0.02, "Q5": 0.04, "Q4": 0.12}
    error = float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))
    assert error <= next((value for head, value in most.items() if down.tensor_type.name.startswith(head)), 3e-3)
    assert report.bytes == report.files[0].stat().st_size
    size = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.6}.get(kind, 5.5)
    assert report.bits_per_weight == pytest.approx(size, abs=1.4)


def counted(tensors: dict[str, Any]) -> dict[str, int]:
    names = [tensor.tensor_type.name for tensor in tensors.values()]
    return {name: names.count(name) for name in mixture.BLOCK}


def test_what_is_written_is_proved_and_the_proof_lies_beside_it(tmp_path: Path) -> None:
    report = export_gguf("demo/chat", tmp_path / "chat.gguf", "Q8_0")
    assert report.proof is not None and report.proof.passed and report.proof.top1 >= 0.99
    assert "Q8_0" in str(report) and "passed" in str(report)
    assert json.loads((tmp_path / "chat.proof.json").read_text())["quant"] == "Q8_0"
    assert json.dumps(report.as_dict()) and isinstance(report, GgufReport)
    assert report.seconds["prove"] > 0 and report.as_dict()["files"] == ["chat.gguf"]


def test_what_fails_its_proof_is_refused_unless_forced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights at 4 bits say something else than at 32: the real proof finds that."""
    path = tmp_path / "model.gguf"
    with pytest.raises(ExportError, match="top-1 agreement"):
        export_gguf(folder, path, "Q4_0", prompts=["The dog", "a b c"])
    assert left(tmp_path) == []
    report = export_gguf(folder, path, "Q4_0", force=True, prompts=["The dog", "a b c"])
    assert path.is_file() and report.proof is not None and not report.proof.passed
    assert json.loads((tmp_path / "model.proof.json").read_text())["forced"]


def test_the_best_of_a_run_is_named_as_the_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "calls" / "best")
    (tmp_path / "run" / "calls" / "run.json").write_text("{}")
    made = export_gguf(tmp_path / "run" / "calls" / "best", tmp_path / "a.gguf", "F32", prove=False)
    assert "calls" in GGUFReader(made.files[0]).fields["general.name"].contents().lower()


def test_splits_are_named_and_open_as_one(folder: Path, tmp_path: Path) -> None:
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False, split_bytes=2_500_000)
    count = len(report.files)
    assert count > 1 and left(tmp_path) == [f"model-{n + 1:05d}-of-{count:05d}.gguf" for n in range(count)]
    readers = [GGUFReader(file) for file in report.files]
    fields = [
        [reader.fields[f"split.{name}"].contents() for name in ("no", "count", "tensors.count")] for reader in readers
    ]
    assert fields == [[n, count, sum(len(reader.tensors) for reader in readers)] for n in range(count)]
    assert difference(folder, report.files[0], (6,)) < 2e-3
    with pytest.raises(OutputError, match="is there already; pass overwrite=True"):
        export_gguf(folder, tmp_path / "model.gguf", "Q8_0", prove=False)
    stale = tmp_path / f"{report.files[0].stem}.proof.json"
    stale.write_text("{}")
    export_gguf(folder, tmp_path / "model.gguf", "Q8_0", prove=False, overwrite=True)
    assert left(tmp_path) == ["model.gguf"] and not stale.exists()


def test_an_importance_matrix_goes_to_the_quantiser_by_either_name(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.random(512).astype(np.float32) ** 4 + 1e-3
    plain = export_gguf(folder, tmp_path / "plain.gguf", "Q4_K_S", prove=False)
    by_name = [
        export_gguf(folder, tmp_path / f"{n}.gguf", "Q4_K_S", imatrix={name: values}, prove=False).files[0]
        for n, name in enumerate(("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj"))
    ]
    data = [np.asarray(row(file, "blk.1.ffn_down.weight").data) for file in (plain.files[0], *by_name)]
    assert (data[1] == data[2]).all() and (data[0] != data[1]).any()
    wanted = load_tensor(folder, "model.layers.1.mlp.down_proj.weight")
    kind = row(by_name[0], "blk.1.ffn_down.weight").tensor_type
    errors = [float((((dequantize(one, kind) - wanted) ** 2) * values).sum()) for one in data[:2]]
    assert errors[1] < errors[0]
    save_imatrix({"blk.1.ffn_down.weight": values}, tmp_path / "imatrix.gguf")
    read = export_gguf(folder, tmp_path / "read.gguf", "Q4_K_S", imatrix=tmp_path / "imatrix.gguf", prove=False)
    assert any("says nothing of" in note and "blk.0." in note for note in read.notes)
    assert (np.asarray(row(read.files[0], "blk.1.ffn_down.weight").data) == data[1]).all()
    with pytest.raises(ExportError, match=r"has 8 values for blk.1.ffn_down.weight, whose rows have 512"):
        export_gguf(folder, tmp_path / "x.gguf", imatrix={"blk.1.ffn_down.weight": values[:8]}, prove=False)
    with pytest.raises(ModelError, match="none of the 1 names"):
        export_gguf(folder, tmp_path / "x.gguf", imatrix={"other": values}, prove=False)
    with pytest.raises(PlanError, match="imatrix is int"):
        export_gguf(folder, tmp_path / "x.gguf", imatrix=3, prove=False)


def row(file: Path, name: str) -> Any:
    return next(tensor for tensor in GGUFReader(file).tensors if tensor.name == name)


def load_tensor(folder: Path, name: str) -> np.ndarray:
    return next(found[name] for file in folder.glob("*.safetensors") if name in (found := load_file(file))).numpy()


def test_a_model_in_memory_is_exported_as_its_folder_is(folder: Path, tmp_path: Path) -> None:
    from speechkit.llm import load_llm

    model, tokenizer = load_llm(folder, kernels=False, dtype="float32")
    for number, given in enumerate((folder, (model, tokenizer), model)):
        export_gguf(given, tmp_path / f"{number}.gguf", "F32", prove=False)
    files = [GGUFReader(tmp_path / f"{number}.gguf") for number in range(3)]
    one, two, three = ({tensor.name: tensor.data for tensor in file.tensors} for file in files)
    assert one.keys() == two.keys() == three.keys()
    assert all((one[name] == two[name]).all() and (one[name] == three[name]).all() for name in one)
    with pytest.raises(PlanError, match="Linear brings no tokenizer"):
        export_gguf(torch.nn.Linear(2, 2), tmp_path / "x.gguf", prove=False)


def test_names_refused_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"a GGUF file is named so: model.bin.gguf"):
        export_gguf(folder, tmp_path / "model.bin", prove=False)
    with pytest.raises(PlanError, match="quant is 'Q3_K_L'; it can be F32, F16"):
        export_gguf(folder, tmp_path / "model.gguf", "Q3_K_L", prove=False)
    with pytest.raises(PlanError, match="split_bytes is 0"):
        export_gguf(folder, tmp_path / "model.gguf", split_bytes=0, prove=False)
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        export_gguf(folder, tmp_path / "there.gguf", prove=False)
    assert (tmp_path / "there.gguf").read_text() == "mine"
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        export_gguf(folder, tmp_path / "folder.gguf", prove=False)
    with pytest.raises(OutputError, match="cannot be written"):
        export_gguf(folder, tmp_path / "there.gguf" / "x.gguf", prove=False)


def put(name: str, value: torch.Tensor) -> Any:
    return lambda tensors: tensors.update({name: value})


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan


def huge(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6


BROKEN: dict[str, tuple[Any, str, type[Exception], str]] = {
    "tensors that llama.cpp has no name for": (
        put("model.layers.0.mlp.extra.weight", torch.ones(2, 2)), "F32", ExportError,
        r"1 tensors have no name in llama.cpp's llama.*model.layers.0.mlp.extra.weight",
    ),
    "NaN": (nan, "Q4_K_M", ExportError, "model.layers.1.mlp.up_proj.weight holds values that are not finite"),
    "values beyond float16": (huge, "F16", ExportError, r"blk.0.ffn_up.weight holds values beyond 65,504"),
    "a layer that is not there": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name], "F32", ModelError,
        "lacks 3 of its tensors, among them blk.1.attn_norm.weight",
    ),
    "weights in 8 bits": (
        put("model.norm.weight", torch.ones(256, dtype=torch.int8)), "F32", ModelError, "is stored as I8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_and_leaves_nothing(case: str, folder: Path, tmp_path: Path) -> None:
    change, kind, error, message = BROKEN[case]
    other = changed(folder, tmp_path / "model", change)
    with pytest.raises(error, match=message):
        export_gguf(other, tmp_path / "model.gguf", kind, prove=False)
    assert left(tmp_path) == []


def test_a_shard_that_is_cut_or_missing_is_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(folder, other)
    shard = sorted(other.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    for cut, message in (
        (len(whole) - 7, rf"{shard.name} is cut short: .* bytes of"),
        (20, "cut short or no safetensors"),
    ):
        shard.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match=message):
            export_gguf(other, tmp_path / "model.gguf", prove=False)
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks {shard.name}, one of the"):
        export_gguf(other, tmp_path / "model.gguf", prove=False)
    assert left(tmp_path) == []


def test_widths_that_32_does_not_divide_stay_16_bits_or_are_refused(tmp_path: Path) -> None:
    odd = folder_of(tmp_path / "odd", "llama", intermediate_size=100)
    report = export_gguf(odd, tmp_path / "odd.gguf", "Q8_0", prove=False)
    assert any("2 tensors stay F16: 32 does not divide their width" in note for note in report.notes)
    assert row(report.files[0], "blk.0.ffn_down.weight").tensor_type.name == "F16"
    worse = folder_of(tmp_path / "worse", "llama", hidden_size=72, head_dim=18)
    with pytest.raises(ExportError, match=r"32 does not divide .*: 72\), so that Q4_K_M would pack next to nothing"):
        export_gguf(worse, tmp_path / "worse.gguf", "Q4_K_M", prove=False)


def test_too_little_room_is_seen_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: real._replace(free=1_000_000))
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes and .* has 1,000,000 free"):
        export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    held = (tiny("llama", 512), byte_level(ignore_merges=True))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: real._replace(free=1000))
    with pytest.raises(OutputError, match=r"has 1,000 free"):  # a model in memory is written as a folder first
        export_gguf(held, tmp_path / "model.gguf", "F32", prove=False)
    assert left(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speechkit.export.gguf_write.packed", full)
    with pytest.raises(OutputError, match=r"model.gguf cannot be written: .*No space left.*nothing of it was kept"):
        export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    assert left(tmp_path) == []


KILLED = """
import sys, time
from speechkit.export import gguf_write
from speechkit.export.gguf import export_gguf
real = gguf_write.packed
def slow(*given, **more):
    print("writing", flush=True)
    time.sleep(0.2)
    return real(*given, **more)
gguf_write.packed = slow
export_gguf(sys.argv[1], sys.argv[2], "F32", prove=False)
"""


def test_a_killed_export_leaves_no_half_file_and_the_next_one_cleans_up(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline() == b"writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not path.exists() and len(left(tmp_path)) == 1 and left(tmp_path)[0].endswith(".partial")
    export_gguf(folder, path, "F32", prove=False)
    assert left(tmp_path) == ["model.gguf"]


MEASURED = """
import sys
from speechkit.export.gguf import export_gguf
from speechkit.export.kquants import quantize
import numpy as np, resource, torch, transformers, gguf
export_gguf(sys.argv[1], sys.argv[3] + "/first.gguf", "Q4_K_M", prove=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export_gguf(sys.argv[2], sys.argv[3] + "/large.gguf", "Q4_K_M", prove=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_below_four_times_the_largest_tensor(tmp_path: Path) -> None:
    """16-bit weights of 80 MB in all, the largest 25 MB; what imports and compiling take is left out."""
    small = folder_of(tmp_path / "small", "llama", **WIDE)
    place = tmp_path / "large"
    large = {"hidden_size": 1024, "intermediate_size": 12288, "head_dim": 128, "num_hidden_layers": 1}
    model = tiny("llama", 1024, **large).to(torch.bfloat16)
    saved(place, model, byte_level(ignore_merges=True), max_shard_size="40MB")
    del model
    told = subprocess.run(
        [sys.executable, "-c", MEASURED, str(small), str(place), str(tmp_path)], capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert int(told.stdout.split()[-1]) * 1024 <= 4 * 12288 * 1024 * 2
