"""Launch lines, as a shell reads them; the programs' own parsers say whether the options exist."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from speechkit.errors import PlanError
from speechkit.llm.launch_lines import Launch, environment, launch_line, slurm_script
from speechkit.llm.plan_options import PlanOptions

if TYPE_CHECKING:
    from pathlib import Path

RUN = ("-m", "speechkit", "llm-finetune", "--config", "my run/it's.json")


def words(line: str) -> tuple[dict[str, str], list[str]]:
    """Variables and the words of the command."""
    parts = shlex.split(line)
    first = next(n for n, part in enumerate(parts) if "=" not in part)
    return dict(part.split("=", 1) for part in parts[:first]), parts[first:]


def test_torchrun_on_one_machine() -> None:
    variables, command = words(launch_line(Launch(RUN, ranks=8)))
    assert command == ["torchrun", "--standalone", "--nproc-per-node", "8", *RUN]
    assert variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True" and variables["NCCL_DEBUG"] == "WARN"


def test_torchrun_on_two_machines_meets_by_c10d_so_that_the_line_is_the_same_on_each() -> None:
    _, command = words(launch_line(Launch(RUN, ranks=16, nodes=2, head="10.0.0.5", port=29400, run="a b")))
    assert command == [
        "torchrun", "--nnodes", "2", "--nproc-per-node", "8", "--rdzv-backend", "c10d", "--rdzv-endpoint",
        "10.0.0.5:29400", "--rdzv-id", "a b", *RUN,
    ]  # fmt: skip


def test_torchrun_reads_its_line() -> None:
    from torch.distributed.run import get_args_parser

    _, command = words(launch_line(Launch(RUN, ranks=16, nodes=2, head="host", run="x")))
    read = get_args_parser().parse_args(command[1:])
    assert (read.nnodes, read.nproc_per_node, read.rdzv_backend, read.module) == ("2", "8", "c10d", True)
    assert [read.training_script, *read.training_script_args] == list(RUN[1:])


def test_accelerate_reads_its_line() -> None:
    from accelerate.commands.launch import launch_command_parser

    line = launch_line(Launch(RUN, ranks=16, nodes=2, node=1, head="host", config="fsdp 2.yaml"), "accelerate")
    _, command = words(line)
    read = launch_command_parser().parse_args(command[2:])
    assert (read.config_file, read.num_processes, read.num_machines, read.machine_rank) == ("fsdp 2.yaml", 16, 2, 1)
    assert (read.main_process_ip, read.main_process_port, read.module) == ("host", 29500, True)
    assert [read.training_script, *read.training_script_args] == list(RUN[1:])


def test_deepspeed_reads_its_line() -> None:
    from deepspeed.launcher.runner import parse_args

    line = launch_line(Launch(RUN, ranks=16, nodes=2, head="host", hostfile="hosts"), "deepspeed")
    read = parse_args(words(line)[1][1:])
    assert (read.num_gpus, read.num_nodes, read.hostfile, read.master_addr, read.module) == (
        8,
        2,
        "hosts",
        "host",
        True,
    )
    assert [read.user_script, *read.user_args] == list(RUN[1:])


def test_on_a_cpu_nobody_looks_for_a_gpu() -> None:
    found = environment(Launch.of(PlanOptions(strategy="zero2", ranks=2, card="cpu"), RUN))
    assert found["DS_ACCELERATOR"] == "cpu" and not found["CUDA_VISIBLE_DEVICES"]
    assert "NCCL_DEBUG" not in found and "ACCELERATE_USE_CPU" not in found, "accelerate would leave DeepSpeed out"


def test_slurms_script_is_bash_and_starts_one_torchrun_a_machine(tmp_path: Path) -> None:
    launch = Launch(RUN, ranks=16, nodes=2, head="unused", run="speech", variables={"NCCL_SOCKET_IFNAME": "ib 0"})
    script = slurm_script(launch)
    assert launch_line(launch, "slurm") == "sbatch speech.sbatch"
    # a cluster of echoes: what each command of SLURM would be given
    for name, says in {
        "scontrol": "printf 'node7\\nnode8\\n'",
        "srun": 'printf "%s\\n" "$NCCL_SOCKET_IFNAME" "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{says}\n")
        (tmp_path / name).chmod(0o755)
    given = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "42",
    }
    done = subprocess.run(["bash"], input=script, env=given, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "ib 0", "--kill-on-bad-exit=1", "torchrun", "--nnodes", "2", "--nproc-per-node", "8", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "node7:29500", "--rdzv-id", "42", *RUN,
    ]  # fmt: skip
    for line in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=04:00:00", "--job-name=speech"):
        assert f"#SBATCH {line}\n" in script


@pytest.mark.parametrize(
    ("given", "launcher", "says"),
    [
        ({"ranks": 3, "nodes": 2, "head": "h"}, "torchrun", "3 ranks cannot be divided evenly among 2 nodes"),
        ({"ranks": 4, "nodes": 2}, "torchrun", "give its name or address as head"),
        ({"port": 70000}, "torchrun", "port is 70000"),
        ({"ranks": 4, "nodes": 2, "head": "h", "node": 2}, "torchrun", "of 2 it can be 0 to 1"),
        ({}, "mpirun", "launcher is 'mpirun'; it can be 'torchrun', 'accelerate'"),
        ({}, "accelerate", "write one with distributed.write_configs"),
        ({"ranks": 4, "nodes": 2, "head": "h", "config": "c"}, "accelerate", "give node, 0 on the first"),
        ({"ranks": 4, "nodes": 2, "head": "h"}, "deepspeed", 'give hostfile, lines of "name slots=8"'),
    ],
)
def test_what_cannot_be_launched_is_refused(given: dict[str, object], launcher: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        launch_line(Launch(RUN, **given), launcher)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="no command to launch"):
        Launch(())
