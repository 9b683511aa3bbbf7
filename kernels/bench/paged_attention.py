"""paged_attention beside torch on keys gathered first and on keys side by side. Decoding reads the cache: GB/s.

python kernels/bench/paged_attention.py            → kernels/bench/results/paged_attention.json
"""

from __future__ import annotations

import torch
from gpu import Bench
from speechkit_kernels.paged_attention import paged_attention
from speechkit_kernels.reference.attention import paged_attention as definition
from torch.nn.functional import scaled_dot_product_attention

PAGE, WIDTH = 16, 128
CASES = [(1, 32_768, 32, 8), (4, 8192, 32, 8), (32, 4096, 32, 8), (64, 2048, 32, 32)]  # B, keys, H, Hk


def main() -> None:
    table = Bench("paged_attention")
    for batch, keys, heads, kv_heads in CASES:
        torch.manual_seed(0)
        pages = batch * keys // PAGE
        shape = (pages, PAGE, kv_heads, WIDTH)
        k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        where = torch.randperm(pages, device="cuda").view(batch, -1).to(torch.int32)
        lengths = torch.full((batch,), keys, device="cuda", dtype=torch.int32)
        q = torch.randn(batch, heads, WIDTH, device="cuda", dtype=torch.bfloat16)
        near = [x[where.long()].flatten(1, 2).transpose(1, 2).contiguous() for x in (k, v)]

        def beside(q=q, near=near):  # type: ignore[no-untyped-def]
            return scaled_dot_product_attention(q[:, :, None], *near, enable_gqa=True)[:, :, 0]

        def gathered(q=q, k=k, v=v, where=where):  # type: ignore[no-untyped-def]
            found = (x[where.long()].flatten(1, 2).transpose(1, 2) for x in (k, v))
            return scaled_dot_product_attention(q[:, :, None], *found, enable_gqa=True)[:, :, 0]

        def ours(q=q, k=k, v=v, where=where, lengths=lengths):  # type: ignore[no-untyped-def]
            return paged_attention(q, k, v, where, lengths)

        def check(q=q, k=k, v=v, where=where, lengths=lengths, ours=ours) -> None:  # type: ignore[no-untyped-def]
            truth = definition(q.float()[:1], k.float(), v.float(), where[:1], lengths[:1])
            error = (ours().float()[:1] - truth).abs().max() / truth.abs().max()
            assert error < 0.02, f"off by {error:.1e}"

        table.measure(
            "decode", {"B": batch, "keys": keys, "H": heads, "Hk": kv_heads, "D": WIDTH},
            {"ours": ours, "SDPA, side by side": beside, "gather + SDPA": gathered},
            check=check, moved=2 * k.numel() * k.element_size(),
        )  # fmt: skip
    table.write()


if __name__ == "__main__":
    main()
