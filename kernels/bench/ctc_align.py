"""ctc_align beside a loop over torchaudio's forced_align, and ctc_greedy beside torch's argmax and a loop in NumPy.

The aim: at least 20 times the loop at 64 utterances, the same path in every frame.
"""

from __future__ import annotations

from typing import Any

import torch
from gpu import Bench, peer
from speechkit_kernels.ctc_align import ctc_align
from speechkit_kernels.ctc_greedy import ctc_greedy

SHAPES = [(64, 500, 32, 80), (64, 100, 10_000, 20), (16, 3000, 32, 500), (1, 30_000, 32, 5000)]  # B F V L


def looped(forced_align: Any, log_probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """torchaudio takes one utterance at a time."""
    rows = range(len(log_probs))
    return torch.cat([forced_align(log_probs[b : b + 1], targets[b : b + 1], blank=0)[0] for b in rows])


def main() -> None:
    bench = Bench("ctc_align")
    forced_align = peer("torchaudio.functional", "forced_align")
    for rows, frames, width, labels in SHAPES:
        torch.manual_seed(0)
        log_probs = (3 * torch.randn(rows, frames, width, device="cuda")).log_softmax(dim=-1)
        targets = torch.randint(1, width, (rows, labels))  # on the CPU, where they are checked without a wait
        near = targets.cuda()
        calls = {"ours": lambda x=log_probs, t=targets: ctc_align(x, t).labels}
        if forced_align is not None:
            calls["torchaudio loop"] = lambda x=log_probs, t=near: looped(forced_align, x, t)

        def check(x: torch.Tensor = log_probs, t: torch.Tensor = targets) -> None:
            found = ctc_align(x[:2], t[:2]).labels.cpu()
            if forced_align is not None:
                assert torch.equal(found, looped(forced_align, x[:2].double().cpu(), t[:2]).long()), "another path"

        shape = {"B": rows, "F": frames, "V": width, "L": labels}
        bench.measure("ctc_align", shape, calls, check=check, moved=rows * frames * (labels + 1))
        greedy = {
            "ours": lambda x=log_probs: ctc_greedy(x).counts,
            "torch argmax alone": lambda x=log_probs: x.max(dim=2),
        }

        def as_argmax(x: torch.Tensor = log_probs) -> None:
            ids = x.argmax(dim=2)
            starts = torch.ones_like(ids, dtype=torch.bool)
            starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
            assert torch.equal(ctc_greedy(x).counts, (starts & (ids != 0)).sum(dim=1)), "another number of runs"

        bench.measure("ctc_greedy", shape, greedy, check=as_argmax, moved=log_probs.nbytes)
    bench.write()


if __name__ == "__main__":
    main()
