"""Whether the dispatcher picks the best: every usable backend, forward with backward, on the 24 shapes and beyond.

    python kernels/bench/attention.py                  → kernels/bench/results/attention.json

The first provider is the dispatcher, so the ratio of a backend is its time over ours: none should be under 0.95.
Beyond the 24: packed documents, a window, a soft cap, grouped heads. At the end it says where it is not within 5 % of
the best, for `choose` to be put right, and how often heads of 128 at S ≥ 2048, causal, reach 1.5 times torch's default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from flash_attention import SHAPES, TOKENS, WIDTH, torch_own
from gpu import Bench, passes
from speechkit_kernels.attention import Call, Packing, Rule, attention, case_of, choose
from speechkit_kernels.attention_backends import available
from speechkit_kernels.reference.attention import attention as definition

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu import Measured

NEAR = 0.95


@dataclass(frozen=True)
class Row:
    """One case: (B, S, H, D), or packed (S, H, D)."""

    title: str
    length: int
    head_dim: int
    causal: bool
    kv_share: int = 1  # query heads to a key head
    rule: tuple[tuple[str, Any], ...] = ()
    documents: tuple[int, ...] = ()

    @property
    def asked(self) -> dict[str, Any]:
        packing = {"packing": Packing.of(self.documents, "cuda")} if self.documents else {}
        return {"causal": self.causal, **dict(self.rule), **packing}

    def inputs(self) -> list[torch.Tensor]:
        heads = WIDTH // self.head_dim
        size = (TOKENS,) if self.documents else (TOKENS // self.length, self.length)
        counts = (heads, heads // self.kv_share, heads // self.kv_share)
        return [
            torch.randn(*size, count, self.head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for count in counts
        ]

    @property
    def flops(self) -> int:
        """Forward with backward, of what is not masked but for a window's own."""
        pairs = sum(n * n for n in self.documents) if self.documents else TOKENS * self.length
        return 14 * pairs * WIDTH // (2 if self.causal else 1)


def ragged(count: int, seed: int = 0) -> tuple[int, ...]:
    """`count` lengths, log-normal, that sum to TOKENS."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.exp(0.6 * torch.randn(count, generator=generator))
    lengths = (weights / weights.sum() * TOKENS).long().clamp(min=1)
    lengths[-1] += TOKENS - lengths.sum()
    return tuple(lengths.tolist())


BEYOND = [
    Row("packed, 6 documents", TOKENS, 128, True, documents=ragged(6)),
    Row("packed, 32 documents", TOKENS, 128, True, documents=ragged(32)),
    Row("packed, 128 documents", TOKENS, 64, True, documents=ragged(128)),
    Row("window 1024", 8192, 128, True, rule=(("window", 1024),)),
    Row("soft cap 50", 4096, 128, True, rule=(("softcap", 50.0),)),
    Row("4 query heads to a key head", 4096, 128, True, kv_share=4),
    Row("heads of 256", 4096, 256, True),
]


def check(row: Row, inputs: list[torch.Tensor]) -> None:
    """Raise AssertionError unless what is chosen is the definition, on the first 1024 tokens of the case."""
    some = [x.detach()[:1024] if row.documents else x.detach()[:1, :1024] for x in inputs]
    asked = dict(row.asked)
    cut = {}
    if row.documents:
        asked["packing"] = Packing.of([200, 1, 500, 323], "cuda")
        cut = {"cu_seqlens": asked["packing"].cu_seqlens}
    plain = {name: value for name, value in asked.items() if name != "packing"} | cut
    truth = definition(*(x.float() for x in some), **plain)
    error = (attention(*some, **asked).float() - truth).abs().max() / truth.abs().max()
    assert error < 0.02, f"off by {error:.1e}"


def measure(table: Bench, row: Row) -> tuple[str, Measured]:
    torch.manual_seed(0)
    inputs, asked = row.inputs(), row.asked
    dy = torch.randn_like(inputs[0])
    packing = asked.get("packing")
    rule = Rule(**{name: value for name, value in asked.items() if name != "packing"})
    choice = choose(case_of(*inputs, Call(rule, packing)), available(inputs[0].device))
    functions: dict[str, Callable[..., torch.Tensor]] = {"attention": lambda *x: attention(*x, **asked)}
    for verdict in choice.verdicts:
        if verdict.usable and verdict.name != "math":
            functions[verdict.name] = lambda *x, name=verdict.name: attention(*x, backend=name, **asked)
    if not row.documents and not row.rule and row.kv_share == 1:
        functions["SDPA default"] = torch_own(row.causal)
    shape = {"S": row.length, "D": row.head_dim, "causal": row.causal, "documents": len(row.documents)}
    shape["chosen"] = choice.name
    found = table.measure(
        row.title, shape, passes(functions, inputs, dy)["full"], flops=row.flops, check=lambda: check(row, inputs)
    )
    return choice.name, found


def main() -> None:
    table = Bench("attention")
    far, default = [], []
    for row in [*(Row("dense", s.length, s.head_dim, s.causal) for s in SHAPES), *BEYOND]:
        chosen, found = measure(table, row)
        best = min(found.providers, key=lambda name: found.providers[name].ratio)
        if found.providers[best].ratio < NEAR:
            far.append(f"{row.title} {found.shape}: {chosen} takes {1 / found.providers[best].ratio:.2f}x {best}")
        if row.title == "dense" and row.head_dim == 128 and row.causal and row.length >= 2048:
            default.append(found.providers["SDPA default"].ratio)
    print(f"not within 5 % of the best: {len(far)} of {len(table.rows)}", *far, sep="\n  ")
    print("over torch's default, heads of 128, S >= 2048, causal:", ", ".join(f"{ratio:.2f}x" for ratio in default))
    table.write()


if __name__ == "__main__":
    main()
