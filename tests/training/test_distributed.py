"""Two processes under torchrun, over gloo on the CPU: the same run as one process with twice the accumulation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from tiny_runs import examples, losses, model_folder, small

from speechkit.asr.model import load_asr
from speechkit.training.curve import Curve
from speechkit.training.finetune import finetune
from speechkit.training.report import FinetuneResult

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one_with_the_doubled_batch(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    config = small(tmp_path / "two", model, steps=4, eval_every=2)
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*torchrun, str(HERE / "tiny_runs.py"), str(file)],
        capture_output=True, text=True, env=environment, timeout=900, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    finetune(small(tmp_path / "one", model, steps=4, eval_every=2, accumulation=2), examples(40), examples(8, seed=1))
    one, two = (Curve.load(tmp_path / name / "curve.jsonl") for name in ("one", "two"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert [(p.step, p.wer, p.cer) for p in two.points] == [(p.step, p.wer, p.cer) for p in one.points]
    assert two.last is not None and one.last is not None and two.last.audio_s == pytest.approx(one.last.audio_s)
    weights = [load_file(tmp_path / name / "checkpoints/checkpoint-4/model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).abs().max() < 2e-3, name  # a fifth of one update: Adam takes signs
    result = FinetuneResult.load(tmp_path / "two")
    assert result.best is not None and load_asr(result.best).config.vocab_size == 13
    assert ran.stdout.count("all steps were made") == 2, "every process has the result"
    assert sorted(path.name for path in (tmp_path / "two/checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]
