"""Real runs of two processes on this machine, over gloo: DeepSpeed's ZeRO-2 and ZeRO-3, torch's fully_shard.

Everything is compared with one process on the same batches: losses, adapters, kernels that are in.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import load

from speechkit.errors import PlanError
from speechkit.llm.checkpoints import check, written
from speechkit.llm.distributed import deepspeed_config
from speechkit.llm.plan_options import PlanOptions

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny
from zero_worker import adapted

WORKER = Path(__file__).with_name("zero_worker.py")
PATIENCE_S = 500  # of a machine with much else to do; a run takes ten seconds


def surroundings(**more: str) -> dict[str, str]:
    given = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **given, **more}


def run(strategy: str, folder: Path) -> dict[str, Any]:
    """The result of a run; of two processes unless the strategy is "one"."""
    folder.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start = [sys.executable] if strategy == "one" else torchrun
    done = subprocess.run(
        [*start, str(WORKER), strategy, str(folder)], env=surroundings(), capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "result.json").read_text())
    return {**found, "adapter": load_file(folder / "adapter/adapter_model.safetensors"), "folder": folder}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("one", tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module", params=["zero3", "fsdp2"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"strategy": request.param, **run(request.param, tmp_path_factory.mktemp(request.param) / "run")}


def test_two_processes_learn_what_one_does_and_say_so(alone: dict[str, Any], shared: dict[str, Any]) -> None:
    assert shared["ranks"] == 2 and alone["ranks"] == 1
    assert shared["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert shared["kernels"] == alone["kernels"] and shared["kernels"]["norms"] == 5, "kernels stay on"
    assert shared["adapter"].keys() == alone["adapter"].keys()
    for name, weight in alone["adapter"].items():
        assert (shared["adapter"][name] - weight).abs().max() <= 1e-4, name


def test_the_adapter_is_one_that_peft_loads(shared: dict[str, Any]) -> None:
    """Gathered whole, with what was learned: not what the run began with."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny("llama", num_hidden_layers=2), shared["folder"] / "adapter")
    begun = {name: weight for name, weight in adapted().named_parameters() if "lora_" in name}
    loaded = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    assert loaded.keys() == begun.keys()
    assert all((weight - begun[name]).abs().max() > 1e-3 for name, weight in loaded.items())


def test_what_was_written_says_by_how_many(shared: dict[str, Any]) -> None:
    strategy, folder = shared["strategy"], shared["folder"]
    assert str(written(folder)) == f"{strategy} on 2 ranks"
    assert str(written(folder / "checkpoint")) == f"{strategy} on 2 ranks", "read off the pieces themselves"
    if strategy != "fsdp2":
        with pytest.raises(PlanError, match=rf"written by {strategy} on 2 ranks, and this is {strategy} on 3 ranks"):
            check(folder / "checkpoint", strategy, 3)
        return
    assert check(folder / "checkpoint", strategy, 1) == "pieces of 2 ranks are divided anew among 1"
    whole = {name: torch.zeros_like(weight) for name, weight in adapted().named_parameters() if "lora_" in name}
    load({"model": whole}, checkpoint_id=folder / "checkpoint/pytorch_model_fsdp_0", no_dist=True)
    for name, weight in whole.items():
        assert torch.equal(weight, shared["adapter"][name.replace(".default", "")]), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`speechkit llm-finetune` by one process, and by two that share an update's two batches."""
    from tiny_llm_runs import chats, model_folder, small

    folder = tmp_path_factory.mktemp("runs")
    model, found = model_folder(folder / "model"), {}
    for name, rows in (("train", chats(48)), ("dev", chats(8, first=100))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for strategy in ("one", "zero2", "zero3"):
        more: dict[str, Any] = {"accumulation": 2}
        if strategy != "one":
            more = {"distributed": str(folder / f"{strategy}.settings.json")}
            options = PlanOptions(strategy=strategy, ranks=2, card="cpu", dtype="float32")
            Path(more["distributed"]).write_text(json.dumps(deepspeed_config(options, hidden=32)))
        # batches below the rows from which adapters compute fused on a CPU: all ranks then have graphs of one order
        config = small(
            folder / strategy, model, steps=4, eval_every=2, batch_tokens=96, train=str(folder / "train.jsonl"),
            dev=str(folder / "dev.jsonl"), **more,
        )  # fmt: skip
        found[strategy] = folder / f"{strategy}.json"
        found[strategy].write_text(config.to_json())
    return found


def command(config: Path, *, ranks: int = 1, **more: str) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *torchrun, "-m", "speechkit", "llm-finetune", "--config", str(config)], text=True,
        capture_output=True, env=surroundings(**more), timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def curve(runs: dict[str, Path]) -> list[float]:
    done = command(runs["one"])
    assert done.returncode == 0, done.stderr[-3000:]
    return curve_of(runs["one"])


def curve_of(config: Path) -> list[float]:
    """Losses of updates and of rows kept out."""
    lines = [json.loads(line) for line in (config.with_suffix("") / "curve.jsonl").read_text().splitlines()[1:]]
    return [line[name] for line in lines for name in ("loss", "dev_loss") if name in line]


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_the_command_under_torchrun_is_the_command_alone(
    strategy: str, runs: dict[str, Path], curve: list[float]
) -> None:
    """And its checkpoints, of two ranks, are refused to one, before anything is trained."""
    done = command(runs[strategy], ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(curve) == 7 and curve_of(runs[strategy]) == pytest.approx(curve, abs=1e-4)
    folder, alone = runs[strategy].with_suffix(""), runs["one"].with_suffix("")
    ours, theirs = (load_file(one / "best/adapter_model.safetensors") for one in (folder, alone))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - weight).abs().max() <= 1e-4 for name, weight in theirs.items())
    checkpoint = folder / "checkpoints/checkpoint-4"
    with pytest.raises(PlanError, match=f"written by {strategy} on 2 ranks, and this is {strategy} on 1 rank"):
        check(checkpoint, strategy, 1)


def test_zero_with_one_rank_missing_ends_with_the_reason(runs: dict[str, Path]) -> None:
    first = time.monotonic()
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "SPEECHKIT_WAIT_S": "2"}
    for rank, says in (
        ("0", "rank 1 of 2 did not come within 2 s; 1 did. Start the same command on every machine"),
        ("1", "rank 1 of 2 found nobody at localhost:"),
    ):
        done = command(runs["zero2"], RANK=rank, LOCAL_RANK=rank, MASTER_PORT=str(free_port()), **given)
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - first < PATIENCE_S


def start(rank: int, port: int, tmp_path: Path, strategy: str = "zero2", **more: str) -> subprocess.Popen[str]:
    """One of two ranks, without torchrun, which would start and stop both."""
    given = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    return subprocess.Popen(
        [sys.executable, str(WORKER), strategy, str(tmp_path)], text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, env=surroundings(**given, MASTER_PORT=str(port), **more),
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_a_rank_that_dies_ends_the_others_who_name_it(tmp_path: Path) -> None:
    port = free_port()
    processes = [start(rank, port, tmp_path, DIES_AT="1:2") for rank in (0, 1)]
    told = processes[0].communicate(timeout=PATIENCE_S)[1].strip().splitlines()[-1]
    processes[1].communicate(timeout=PATIENCE_S)
    assert processes[1].returncode == 7 and processes[0].returncode == 1
    assert "speechkit.errors.PlanError: rank 1 of 2 ended or hangs (" in told and "last checkpoint" in told
