"""The line that starts a run on several GPUs: torchrun, accelerate, deepspeed, or a script for SLURM. Text alone.

In: what to run, how many processes on how many machines. Out: a line for one shell, every argument quoted. Nothing is
started here. On several machines the same line is typed on each (torchrun, accelerate), or once (deepspeed, SLURM).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.llm.plan_options import PlanOptions

__all__ = ["LAUNCHERS", "Launch", "environment", "launch_line", "slurm_script"]

LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "slurm")
PORT = 29500


@dataclass(frozen=True)
class Launch:
    """What to start, and where. Raises PlanError for what cannot be."""

    command: tuple[str, ...]  # after python: ("-m", "speechkit", "llm-finetune", …), or a script with its arguments
    ranks: int = 1  # processes, over all machines
    nodes: int = 1  # machines
    node: int | None = None  # number of this machine, where a launcher wants it
    head: str = "localhost"  # name or address of machine 0
    port: int = PORT  # there, on which the processes meet
    run: str = "speechkit"  # name of the run: processes of another are not let in
    config: str = ""  # accelerate's configuration file
    hostfile: str = ""  # deepspeed's list of machines
    time_limit: str = "04:00:00"  # SLURM's
    cpu: bool = False  # two processes and more on a CPU, over gloo
    variables: dict[str, str] = field(default_factory=dict)  # of the environment, beside those of `environment`

    def __post_init__(self) -> None:
        if not self.command:
            raise PlanError("there is no command to launch; give ('-m', 'speechkit', 'llm-finetune', '--config', …)")
        if self.ranks < 1 or self.nodes < 1 or self.ranks % self.nodes:
            raise PlanError(f"{self.ranks} ranks cannot be divided evenly among {self.nodes} nodes")
        if not 0 < self.port < 65536:
            raise PlanError(f"port is {self.port}; it should lie between 1 and 65535")
        if self.nodes > 1 and self.head == "localhost":
            raise PlanError(f"{self.nodes} nodes meet at one of them; give its name or address as head")
        if self.node is not None and not 0 <= self.node < self.nodes:
            raise PlanError(f"node is {self.node}; of {self.nodes} it can be 0 to {self.nodes - 1}")

    @property
    def each(self) -> int:
        """Processes of one machine."""
        return self.ranks // self.nodes

    @classmethod
    def of(cls, options: PlanOptions, command: Sequence[str], **more: object) -> Launch:
        """For the run of a plan."""
        given: dict[str, object] = {"ranks": options.ranks, "nodes": options.nodes, "cpu": options.card == "cpu"}
        return cls(tuple(command), **{**given, **more})  # type: ignore[arg-type]


def launch_line(launch: Launch, launcher: str = "torchrun") -> str:
    """One of LAUNCHERS → what to type; for "slurm" the line that submits `slurm_script`'s text.

    Raises PlanError for a launcher that does not exist, and for what it needs and has not.
    """
    makers = {"torchrun": _torchrun, "accelerate": _accelerate, "deepspeed": _deepspeed}
    if launcher == "slurm":
        return f"sbatch {shlex.quote(launch.run + '.sbatch')}"
    if launcher not in makers:
        raise PlanError(f"launcher is {launcher!r}; it can be {', '.join(repr(name) for name in LAUNCHERS)}")
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment(launch).items()]
    command = [*launch.command]
    if launcher == "deepspeed" and command[0] == "-m":
        command[0] = "--module"
    return " ".join([*variables, shlex.join([*makers[launcher](launch), *command])])


def environment(launch: Launch) -> dict[str, str]:
    """Variables that a run wants; none for what NCCL finds out by itself.

    Which network card NCCL should use on several machines (NCCL_SOCKET_IFNAME) only the cluster's people know: give it
    in `variables` where the first run hangs.
    """
    found = {"OMP_NUM_THREADS": "1" if launch.cpu else "8"}  # torchrun would say 1, and complain about it
    if launch.cpu:
        # DeepSpeed picks its device by itself, and says "cuda" wherever torch was built for it; not accelerate's flag
        # for CPUs, with which it leaves DeepSpeed out
        found |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    else:
        found |= {"NCCL_DEBUG": "WARN"}  # by itself NCCL fails without a word
        # segments that grow: sharded training asks for many sizes, whose gaps would add up
        found |= {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    return {**found, **launch.variables}


def slurm_script(launch: Launch) -> str:
    """A batch script: one torchrun on each machine, which meet at the first of the list that SLURM gives."""
    head = "$head_node"
    inner = _torchrun_options(launch, head="@HEAD@", run="@RUN@")
    line = shlex.join([*inner, *launch.command]).replace("@HEAD@", head).replace("@RUN@", "$SLURM_JOB_ID")
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment(launch).items())
    gpus = "" if launch.cpu else f"#SBATCH --gpus-per-node={launch.each}\n"
    return (
        "#!/bin/bash\n"
        f"#SBATCH --job-name={shlex.quote(launch.run)}\n"
        f"#SBATCH --nodes={launch.nodes}\n"
        "#SBATCH --ntasks-per-node=1\n"
        f"{gpus}"
        f"#SBATCH --time={shlex.quote(launch.time_limit)}\n"
        "#SBATCH --output=%x-%j.log\n"
        "set -euo pipefail\n"
        f"{exports}\n"
        'head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)\n'
        "# one task a machine; a task that fails ends the job\n"
        f"srun --kill-on-bad-exit=1 {line}\n"
    )


def _torchrun(launch: Launch) -> list[str]:
    return _torchrun_options(launch, launch.head, launch.run)


def _torchrun_options(launch: Launch, head: str, run: str) -> list[str]:
    if launch.nodes == 1 and head == "localhost":
        return ["torchrun", "--standalone", "--nproc-per-node", str(launch.each)]
    found = ["torchrun", "--nnodes", str(launch.nodes), "--nproc-per-node", str(launch.each)]
    # c10d's rendezvous: machines may come in any order, and no number of theirs has to be given
    found += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{head}:{launch.port}", "--rdzv-id", run]
    return found


def _accelerate(launch: Launch) -> list[str]:
    if not launch.config:
        raise PlanError("accelerate wants a configuration file; write one with distributed.write_configs")
    found = ["accelerate", "launch", "--config_file", launch.config, "--num_processes", str(launch.ranks)]
    if launch.nodes > 1:
        if launch.node is None:
            raise PlanError("accelerate wants the number of each machine: give node, 0 on the first")
        found += ["--num_machines", str(launch.nodes), "--machine_rank", str(launch.node)]
        found += ["--main_process_ip", launch.head, "--main_process_port", str(launch.port)]
    return found


def _deepspeed(launch: Launch) -> list[str]:
    found = ["deepspeed", "--num_gpus", str(launch.each)]
    if launch.nodes > 1:
        if not launch.hostfile:
            raise PlanError('deepspeed starts other machines over ssh: give hostfile, lines of "name slots=8"')
        found += ["--num_nodes", str(launch.nodes), "--hostfile", launch.hostfile]
        found += ["--master_addr", launch.head]
    return [*found, "--master_port", str(launch.port)]
