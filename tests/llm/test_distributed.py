"""Settings for several GPUs, as the libraries that read them understand them; no process is started here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import config_of

from speechkit.errors import PlanError
from speechkit.llm.checkpoints import Written, check, record, written
from speechkit.llm.distributed import (
    deepspeed_config,
    fsdp_config,
    gathered,
    strategy_of,
    training_arguments_for,
    write_configs,
)
from speechkit.llm.plan import plan
from speechkit.llm.plan_options import PlanOptions
from speechkit.llm.ranks import join, lost_rank, ranks_here

TWO: dict[str, Any] = {"ranks": 2, "card": "H100", "batch_tokens": 64}


def autos(found: Any) -> list[str]:
    text = json.dumps(found)
    return [text] if '"auto"' in text else []


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_deepspeed_reads_its_settings_and_nothing_is_left_to_be_filled_in(strategy: str, offload: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    options = PlanOptions(strategy=strategy, offload=offload, accumulation=4, **TWO)
    given = deepspeed_config(options, hidden=32, live=5000, clip=0.5)
    read = DeepSpeedConfig({**given, "train_micro_batch_size_per_gpu": 1})
    assert not autos(given) and read.zero_enabled and read.zero_optimization_stage == int(strategy[-1])
    assert read.zero_config.reduce_bucket_size == 32**2 and read.gradient_accumulation_steps == 4
    assert read.gradient_clipping == 0.5 and read.bfloat16_config.enabled and not read.float16_config.enabled
    assert (read.zero_config.offload_optimizer is not None) == (offload != "none")
    if strategy == "zero3":
        assert read.zero_config.max_live_parameters == 5000 and read.zero_config.param_persistence_threshold == 320


def test_weights_go_to_a_disk_where_one_is_named() -> None:
    options = PlanOptions(strategy="zero3", offload="parameters", nvme="/fast disk", **TWO)
    zero = deepspeed_config(options)["zero_optimization"]
    for name in ("offload_param", "offload_optimizer"):
        assert zero[name] == {"device": "nvme", "nvme_path": "/fast disk", "pin_memory": True}


def test_transformers_takes_deepspeeds_settings_beside_its_own_arguments(tmp_path: Path) -> None:
    """It compares both, and refuses what differs."""
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
    from trl import SFTConfig

    options = PlanOptions(strategy="zero2", accumulation=2, card="cpu", ranks=2, dtype="float32")
    read = HfTrainerDeepSpeedConfig(deepspeed_config(options, hidden=32))
    args = SFTConfig(
        str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=2, max_grad_norm=1.0, use_cpu=True,
        bf16=False, report_to=[],
    )  # fmt: skip
    read.trainer_config_process(args)
    assert not read.mismatches and read.is_zero2()


def test_transformers_reads_fsdps_settings(tmp_path: Path) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    given = fsdp_config(PlanOptions(strategy="fsdp2", **TWO), ["LlamaDecoderLayer"])
    args = TrainingArguments(str(tmp_path), fsdp=True, fsdp_config=dict(given), report_to=[], use_cpu=True, bf16=False)
    assert args.fsdp_plugin_args["fsdp_version"] == 2
    plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_files_of_a_plan_are_what_the_launchers_read(strategy: str, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = write_configs(plan(config_of("llama"), PlanOptions(strategy=strategy, **TWO)), tmp_path / "a run")
    read = load_config_from_file(str(found["accelerate"]))
    assert (
        str(read.distributed_type).endswith("FSDP" if strategy == "fsdp2" else "DEEPSPEED") and read.num_processes == 2
    )
    settings = json.loads(found["settings"].read_text())
    assert strategy_of(settings) == strategy and not autos(settings)
    assert "--nproc-per-node 2 -m speechkit llm-finetune" in found["launch"].read_text()
    assert found["slurm"].read_text().startswith("#!/bin/bash\n#SBATCH --job-name=speechkit\n")


def test_settings_of_nobody_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    for text, says in (("{}", "holds neither DeepSpeed's"), ("[1]", "holds neither"), ("no", "cannot be read as JSON")):
        path.write_text(text)
        with pytest.raises(PlanError, match=says):
            training_arguments_for(path, "cpu")
    with pytest.raises(PlanError, match="cannot be read as JSON"):
        training_arguments_for(tmp_path / "absent.json")
    path.write_text(json.dumps(fsdp_config(PlanOptions(strategy="fsdp2", **TWO))))
    with pytest.raises(PlanError, match="leaves FSDP out on a CPU"):
        training_arguments_for(path, "cpu")
    for wrong in (deepspeed_config, fsdp_config):
        with pytest.raises(PlanError, match="strategy is 'one'"):
            wrong(PlanOptions())
    assert training_arguments_for(None) == {}


def test_a_run_of_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = join()
    assert (ranks.size, ranks.store) == (1, None) and ranks_here() == (0, 1)
    with pytest.raises(RuntimeError, match="timeout of something else"), lost_rank(ranks):
        raise RuntimeError("timeout of something else")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(PlanError, match="RANK is '2' and WORLD_SIZE '2': ranks count from 0"):
        ranks_here()


def test_weights_of_one_process_are_whole() -> None:
    from tiny_llms import tiny

    with gathered(tiny("llama"), ("q_proj",)) as found:
        assert len(found) == 2 and all(weight.shape == (32, 32) for weight in found.values())


def test_a_checkpoint_goes_on_with_the_ranks_that_wrote_it_or_says_why_not(tmp_path: Path) -> None:
    assert written(tmp_path) == Written("one", 1)
    record(tmp_path, "zero3", 4)
    assert check(tmp_path, "zero3", 4) == "as it was written: zero3 on 4 ranks"
    with pytest.raises(PlanError, match=r"one file of optimizer memory a rank\. Go on with 4 ranks"):
        check(tmp_path, "zero3", 8)
    with pytest.raises(PlanError, match="Go on with strategy zero3 on 4, or start a new run from the weights in best/"):
        check(tmp_path, "one", 1)
    record(tmp_path, "fsdp2", 4)
    assert check(tmp_path, "fsdp2", 2) == "pieces of 4 ranks are divided anew among 2"
    (tmp_path / "ranks.json").write_text("{}")
    with pytest.raises(PlanError, match="does not say which ranks wrote the checkpoint"):
        written(tmp_path)
    with pytest.raises(PlanError, match="'ddp' on 2 ranks: the strategy can be 'one'"):
        record(tmp_path, "ddp", 2)
