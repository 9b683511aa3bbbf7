"""Runs on two processes over gloo: the curve of one process with the doubled batch, an adapter that is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llm_runs import chats, losses, model_folder, no_kernels, small

from speechkit.errors import PlanError
from speechkit.llm.distributed import deepspeed_config
from speechkit.llm.finetune import finetune
from speechkit.llm.plan_options import PlanOptions

HERE = Path(__file__).parent
TRAIN, DEV = chats(48), chats(8, first=100)
definitions = pytest.fixture(scope="module", autouse=True)(no_kernels)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_two_processes_make_the_updates_of_one_with_the_doubled_batch(strategy: str, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    options = PlanOptions(strategy=strategy, ranks=2, card="cpu", dtype="float32", batch_tokens=128)
    (tmp_path / "deepspeed.json").write_text(json.dumps(deepspeed_config(options, hidden=32)))
    shared = small(tmp_path / "two", model, steps=4, eval_every=2, distributed=str(tmp_path / "deepspeed.json"))
    shared.save(tmp_path / "run.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # the flag is what launchers set on CPUs; with it accelerate would leave DeepSpeed out without a word
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    ran = subprocess.run(
        [*torchrun, str(HERE / "tiny_llm_runs.py"), str(tmp_path / "run.json")],
        capture_output=True, text=True, env=environment, timeout=900, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    alone = small(tmp_path / "one", model, steps=4, eval_every=2, accumulation=2)
    result = finetune(alone, TRAIN, DEV)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    adapters = [load_file(tmp_path / name / "best/adapter_model.safetensors") for name in ("one", "two")]
    assert adapters[0].keys() == adapters[1].keys()
    for name, weight in adapters[0].items():
        assert (adapters[1][name] - weight).abs().max() < 2e-3, name  # a fifth of one update: Adam takes signs
    told = json.loads((tmp_path / "two/result.json").read_text())
    assert told["dev_loss"] == pytest.approx(result.dev_loss, rel=1e-5)
    assert ran.stdout.count("all steps were made") == 2, "every process has the result"
    with pytest.raises(PlanError, match=f"was written by {strategy} on 2 ranks, and this is one on 1 rank"):
        finetune(shared.replace(distributed=None, steps=6), TRAIN, DEV)
