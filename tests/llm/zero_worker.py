"""One process of a run that shares a tiny model: `python zero_worker.py STRATEGY OUT`, under torchrun or alone.

The same batch of four rows an update, however many processes share it. Writes the loss of each update, which kernels
were in, and the adapter. Run by test_zero.py; no test module.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from tiny_llms import tiny

from speechkit.llm.apply import apply_kernels, explain
from speechkit.llm.checkpoints import record
from speechkit.llm.distributed import deepspeed_config, save_gathered_adapter
from speechkit.llm.lora import LoraOptions, add_lora
from speechkit.llm.plan_options import PlanOptions
from speechkit.llm.ranks import join, leave, lost_rank, no_compiler, ranks_here

STEPS, ROWS, LENGTH = 4, 4, 48


def adapted() -> Any:
    model = tiny("llama", num_hidden_layers=2)
    apply_kernels(model)
    torch.manual_seed(1)
    return add_lora(model, LoraOptions(rank=4, targets=("all-linear",), init="random")).train()


def batch(step: int, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """This rank's rows of an update's four."""
    ids = (torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * (7 + step) % 60) + 3
    return {"input_ids": ids[rank::ranks], "labels": ids[rank::ranks]}


def engine_of(model: Any, optimizer: Any, strategy: str, ranks: int) -> Any:
    import deepspeed

    no_compiler()
    options = PlanOptions(strategy=strategy, ranks=ranks, card="cpu", dtype="float32")
    settings = deepspeed_config(options, hidden=32, live=10_000)
    settings["train_micro_batch_size_per_gpu"] = ROWS // ranks
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def train(strategy: str, out: Path) -> None:
    rank, size = ranks_here()
    ranks = join(wait_s=float(os.environ.get("WAIT_S", "120")))
    model = adapted()
    if strategy == "fsdp2":
        shard(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    engine = engine_of(model, optimizer, strategy, size) if strategy.startswith("zero") else None
    losses = []
    for step in range(STEPS):
        with lost_rank(ranks):
            loss = (engine or model)(**batch(step, rank, size), use_cache=False).loss
            if engine is not None:
                engine.backward(loss)
                engine.step()
            else:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            mean = loss.detach().clone()
            if size > 1:
                dist.all_reduce(mean)
        losses.append(float(mean) / size)
    save_gathered_adapter(model, out / "adapter", rank)
    if engine is not None:
        engine.save_checkpoint(str(out / "checkpoint"))
    elif strategy == "fsdp2":  # as accelerate writes it: the pieces of each rank, which say where they lie
        from torch.distributed.checkpoint import save
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True))
        save({"model": state}, checkpoint_id=out / "checkpoint/pytorch_model_fsdp_0")
    if rank == 0:
        record(out, strategy, size)
        counts = explain(model).counts
        (out / "result.json").write_text(json.dumps({"losses": losses, "kernels": counts, "ranks": size}))
    leave()


def shard(model: Any) -> None:
    """torch's fully_shard, layer by layer: accelerate leaves FSDP out on a CPU."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    bare = model.get_base_model()
    for layer in bare.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(bare, mesh=mesh)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], Path(sys.argv[2]))
