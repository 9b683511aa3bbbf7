"""Real runs of two processes on this machine, over gloo: ZeRO-2 and ZeRO-3 by the command line, torch's fully_shard.

Everything is compared with one process on the same batches: losses, adapters, kernels that are in. accelerate leaves
FSDP out on a CPU, so that a script of the tests shards there.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import load

from speechkit.cli import main
from speechkit.errors import PlanError
from speechkit.llm.checkpoints import check, written
from speechkit.llm.distributed import deepspeed_config
from speechkit.llm.finetune import finetune
from speechkit.llm.llm_config import LlmConfig
from speechkit.llm.plan_options import PlanOptions

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llm_runs import chats, model_folder, small
from tiny_llms import tiny
from zero_worker import adapted, train

WORKER, SCRIPT = (Path(__file__).with_name(name) for name in ("zero_worker.py", "tiny_llm_runs.py"))
COMMAND = ("-m", "speechkit", "llm-finetune", "--config")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PATIENCE_S = 500  # of a machine with much else to do; a run takes ten seconds


def surroundings(**more: str) -> dict[str, str]:
    given = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **given, **more}


def result_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "result.json").read_text())
    return {**found, "adapter": load_file(folder / "adapter/adapter_model.safetensors"), "folder": folder}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    train("one", folder)
    return result_of(folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of two processes whose weights are cut by fully_shard."""
    folder = tmp_path_factory.mktemp("fsdp2")
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(WORKER), "fsdp2", str(folder)], env=surroundings(), capture_output=True,
        text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return result_of(folder)


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


def test_pieces_of_fully_shard_say_where_they_lie_and_are_put_together_by_one(shared: dict[str, Any]) -> None:
    folder = shared["folder"]
    assert str(written(folder)) == "fsdp2 on 2 ranks"
    assert str(written(folder / "checkpoint")) == "fsdp2 on 2 ranks", "read off the pieces themselves"
    assert check(folder / "checkpoint", "fsdp2", 1) == "pieces of 2 ranks are divided anew among 1"
    whole = {name: torch.zeros_like(weight) for name, weight in adapted().named_parameters() if "lora_" in name}
    load({"model": whole}, checkpoint_id=folder / "checkpoint/pytorch_model_fsdp_0", no_dist=True)
    for name, weight in whole.items():
        assert torch.equal(weight, shared["adapter"][name.replace(".default", "")]), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Settings of `speechkit llm-finetune` for one process, and for two that share an update's two batches."""
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
        # batches about the rows from which adapters of a lone process compute fused on a CPU
        config = small(
            folder / strategy, model, steps=4, eval_every=2, train=str(folder / "train.jsonl"),
            dev=str(folder / "dev.jsonl"), **more,
        )  # fmt: skip
        found[strategy] = folder / f"{strategy}.json"
        found[strategy].write_text(config.to_json())
    return found


@pytest.fixture(scope="module")
def curve(runs: dict[str, Path]) -> list[float]:
    assert main(["llm-finetune", "--config", str(runs["one"])]) == 0
    return curve_of(runs["one"])


def curve_of(config: Path) -> list[float]:
    """Losses of updates and of rows kept out."""
    lines = [json.loads(line) for line in (config.with_suffix("") / "curve.jsonl").read_text().splitlines()[1:]]
    return [line[name] for line in lines for name in ("loss", "dev_loss") if name in line]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_the_command_under_torchrun_is_the_command_alone(
    strategy: str, runs: dict[str, Path], curve: list[float]
) -> None:
    """With the flag too that launchers set on CPUs, with which accelerate would leave DeepSpeed out without a word."""
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *COMMAND, str(runs[strategy])], env=surroundings(ACCELERATE_USE_CPU="true"),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all steps were made") == 1, "the first process speaks"
    assert len(curve) == 7 and curve_of(runs[strategy]) == pytest.approx(curve, abs=1e-4)
    folder, alone = runs[strategy].with_suffix(""), runs["one"].with_suffix("")
    ours, theirs = (load_file(one / "best/adapter_model.safetensors") for one in (folder, alone))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() < 2e-3, name  # a fifth of one update: Adam takes signs
    with pytest.raises(PlanError, match=f"written by {strategy} on 2 ranks, and this is {strategy} on 1 rank"):
        check(folder / "checkpoints/checkpoint-4", strategy, 1)
    lone = LlmConfig.load(runs[strategy]).replace(distributed=None, steps=6)
    with pytest.raises(PlanError, match=f"was written by {strategy} on 2 ranks, and this is one on 1 rank"):
        finetune(lone, lone.train, lone.dev)


def start(rank: int, port: int, line: list[str], **more: str) -> subprocess.Popen[str]:
    """One of two ranks, without torchrun, which would start and stop both."""
    given = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    return subprocess.Popen(
        [sys.executable, *line], text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        env=surroundings(**given, MASTER_PORT=str(port), **more),
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_zero_with_one_rank_missing_ends_with_the_reason(runs: dict[str, Path]) -> None:
    line = [*COMMAND, str(runs["zero2"])]
    lonely = [start(rank, free_port(), line, SPEECHKIT_WAIT_S="2") for rank in (0, 1)]
    for process, says in zip(lonely, (
        "rank 1 of 2 did not come within 2 s; 1 did. Start the same command on every machine",
        "rank 1 of 2 found nobody at localhost:",
    ), strict=True):  # fmt: skip
        told = process.communicate(timeout=PATIENCE_S)[1]
        assert process.returncode == 2 and says in told and "Traceback" not in told


def test_a_rank_that_dies_ends_the_others_who_name_it(runs: dict[str, Path], tmp_path: Path) -> None:
    """Of processes that hold the whole model each: they meet as those that share it do."""
    config = LlmConfig.load(runs["one"]).replace(folder=str(tmp_path / "run"), accumulation=1, steps=40)
    config.save(tmp_path / "run.json")
    port, line = free_port(), [str(SCRIPT), str(tmp_path / "run.json"), "--gone-at", "2"]
    processes = [start(rank, port, line) for rank in (0, 1)]
    told = processes[0].communicate(timeout=PATIENCE_S)[1].strip().splitlines()[-1]
    processes[1].communicate(timeout=PATIENCE_S)
    assert processes[1].returncode == 7 and processes[0].returncode == 1
    assert "speechkit.errors.PlanError: rank 1 of 2 ended or hangs (" in told and "last checkpoint" in told
