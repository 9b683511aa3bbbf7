"""What starts the kernels, at the sizes they are made for. Each function takes a card; tensors are fake (compiling.py).

Language models: Llama 3 8B (M 8192, H 4096, I 14336, V 128256) and heads of 64 to 256; speech: wav2vec 2.0 base and
large, 64 clips of ten seconds. float16 where a card has no bfloat16.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from speechkit_kernels import (
    conv_norm_gelu,
    cross_entropy,
    ctc_align,
    ctc_greedy,
    flash_attention,
    glu,
    group_norm_gelu,
    gumbel_vq,
    k_quant,
    layer_norm,
    lora_linear,
    nf4,
    nf4_linear,
    paged_attention,
    pos_conv,
    rms_norm,
    rope,
    row_linear,
)

M, H, WIDE, V = 8192, 4096, 14_336, 128_256
CLIPS, FRAMES = 64, 499
Card = tuple[int, int]
EVERY = (64, 96, 128, 256)
WIDTHS: dict[Card, tuple[int, ...]] = {(7, 5): (), (8, 0): (128,), (8, 9): (256,), (9, 0): (64, 128, 256)}  # of heads
ALL = os.environ.get("SPEECHKIT_COMPILE") == "all"  # also what takes long and differs little from card to card
if ALL:
    WIDTHS |= dict.fromkeys([(8, 0), (8, 9), (9, 0)], EVERY)


def half(card: Card) -> torch.dtype:
    return torch.bfloat16 if card >= (8, 0) else torch.float16


def made(*shape: int, dtype: torch.dtype, trained: bool = True) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda", requires_grad=trained and dtype.is_floating_point)


def whole(*shape: int) -> torch.Tensor:
    return made(*shape, dtype=torch.int64)


def rms_norms(card: Card) -> None:
    x, weight = made(M, H, dtype=half(card)), made(H, dtype=half(card))
    rms_norm.rms_norm(x, weight)
    rms_norm.rms_norm(x, weight.detach(), offset=1.0, residual=made(M, H, dtype=half(card)))


def layer_norms(card: Card) -> None:
    x, weight = made(CLIPS, FRAMES, 1024, dtype=half(card)), made(1024, dtype=half(card))
    layer_norm.layer_norm(x, weight, made(1024, dtype=half(card)))
    layer_norm.layer_norm(made(M, H, dtype=half(card)), made(H, dtype=half(card)))


def ropes(card: Card) -> None:
    q, k = (made(4, 2048, heads, 128, dtype=half(card)).transpose(1, 2) for heads in (32, 8))
    cos = made(1, 2048, 128, dtype=half(card), trained=False)
    rope.rope(q, k, cos, cos)
    rope.rope(q.detach(), k.detach(), cos, cos, interleaved=True)
    table = made(M, 32, dtype=torch.float32, trained=False)  # half of the columns of a head of 128
    rope.rope(q, k, table, table, positions=whole(4, 2048), rotary_dim=64)


def gated_units(card: Card) -> None:
    gate, up = made(M, WIDE, dtype=half(card)), made(M, WIDE, dtype=half(card))
    glu.swiglu(gate, up)
    glu.geglu(gate, up)
    glu.geglu(gate, up, approximate="tanh")


def cross_entropies(card: Card) -> None:
    logits, labels = made(M, V, dtype=half(card)), whole(M)
    cross_entropy.cross_entropy(logits, labels)
    cross_entropy.cross_entropy(logits * 1, labels, inplace=True)
    more: dict[str, Any] = {"label_smoothing": 0.1, "softcap": 30.0, "z_loss": 1e-4}
    cross_entropy.cross_entropy(logits * 1, labels, **more, inplace=True)


def packed_weight(card: Card) -> nf4.NF4Weight:
    return nf4.nf4_quantise(made(WIDE, H, dtype=half(card), trained=False))


def four_bits(card: Card) -> None:
    weight = packed_weight(card)
    nf4.nf4_dequantise(weight)
    nf4.nf4_dequantise(nf4.nf4_quantise(made(WIDE, H, dtype=torch.float32, trained=False), nested=False))


def four_bit_products(card: Card) -> None:
    weight = packed_weight(card)
    for rows in (1, 16, 64):
        nf4_linear.nf4_linear(made(rows, H, dtype=half(card)), weight)


def low_rank_products(card: Card) -> None:
    weight = packed_weight(card)
    for rows, rank in ((1, 16), (64, 64)):
        a, b = made(rank, H, dtype=torch.float32), made(WIDE, rank, dtype=torch.float32)
        lora_linear.lora_linear(made(rows, H, dtype=half(card)), weight, a, b, 2.0)


def eight_bit_products(card: Card) -> None:
    for values in (torch.int8, torch.float8_e4m3fn):
        kept = made(WIDE, H, dtype=values, trained=False), made(WIDE, dtype=torch.float32, trained=False)
        weight = row_linear.RowWeight(*kept, torch.bfloat16)
        for rows in (1, 64):
            row_linear.row_linear(made(rows, H, dtype=half(card)), weight)


def attention_over_heads_of(width: int, card: Card, dtype: torch.dtype, trained: bool = True) -> None:
    q, k, v = (made(4, 2048, heads, width, dtype=dtype, trained=trained) for heads in (32, 8, 8))
    flash_attention.flash_attention(q, k, v, causal=True)


def attentions(card: Card) -> None:
    for width in WIDTHS[card]:
        attention_over_heads_of(width, card, half(card))


def attentions_of_documents(card: Card) -> None:
    """Everything at once: packed, with a window and a soft cap, and heads that are no power of two."""
    if card < (8, 0) or not (ALL or card in ((8, 0), (9, 0))):
        return  # a T4 takes the definition, which asks where documents end, and a fake tensor cannot say
    q, k, v = (made(M, heads, 96, dtype=half(card)) for heads in (32, 8, 8))
    ends = made(33, dtype=torch.int32)
    flash_attention.flash_attention(q, k, v, causal=True, window=1024, softcap=50.0, cu_seqlens=ends)


def attentions_in_float32(card: Card) -> None:
    if ALL or card == (8, 0):
        attention_over_heads_of(128, card, torch.float32, trained=ALL)


def paged_attentions(card: Card) -> None:
    pages = made(8, 128, dtype=torch.int32), made(8, dtype=torch.int32)
    for heads in (8, 32) if card >= (8, 0) else (8,):  # shared key heads are a product
        k, v = (made(2048, 16, 8, 128, dtype=half(card), trained=False) for _ in range(2))
        paged_attention.paged_attention(made(8, heads, 128, dtype=half(card), trained=False), k, v, *pages)


def feature_encoders(card: Card) -> None:
    """The first two convolutions of wav2vec 2.0: large in both layouts, base."""
    weight, bias, conv_bias = (made(512, dtype=half(card)) for _ in range(3))
    conv_norm_gelu.conv_norm_gelu(made(CLIPS, 512, 31_999, dtype=half(card)), weight, bias, conv_bias=conv_bias)
    last = made(CLIPS, 15_999, 512, dtype=half(card))
    conv_norm_gelu.conv_norm_gelu(last, weight, bias, channels=2)
    group_norm_gelu.group_norm_gelu(made(CLIPS, 512, 31_999, dtype=half(card)), weight, bias, 512)


def positional_convolutions(card: Card) -> None:
    for hidden in (768, 1024):
        x, bias = made(CLIPS, FRAMES, hidden, dtype=half(card)), made(hidden, dtype=half(card))
        pos_conv.pos_conv(x, made(hidden, hidden // 16, 128, dtype=half(card)), bias, groups=16)


def quantisers(card: Card) -> None:
    logits, codebook = made(CLIPS * FRAMES, 2, 320, dtype=half(card)), made(2, 320, 384, dtype=half(card))
    gumbel_vq.gumbel_vq(logits, codebook, 2.0, seed=1, mask=made(CLIPS * FRAMES, dtype=torch.bool))
    gumbel_vq.gumbel_vq(logits, codebook, 2.0, uniform=made(*logits.shape, dtype=torch.float32, trained=False))


def decodings(card: Card) -> None:
    probabilities = made(CLIPS, FRAMES, 32, dtype=torch.float32, trained=False)
    ctc_greedy.ctc_greedy(probabilities)
    for tokens in (100, 4000):  # labels are checked first, and fake ones have no values
        ctc_align._launch(probabilities, whole(CLIPS, tokens), whole(CLIPS), whole(CLIPS), 0)


def k_quants(card: Card) -> None:
    for kind in ("Q4_K", "Q5_K", "Q6_K"):
        k_quant.k_quant(made(H, WIDE, dtype=torch.float32, trained=False), kind)


def an_odd_vocabulary(card: Card) -> None:
    """Rows that begin at no multiple of 16 bytes, so that nothing is copied ahead. For test_order_compiled."""
    cross_entropy.cross_entropy(made(M, V + 1, dtype=half(card)) * 1, whole(M), inplace=True)


def sixteen_rows(card: Card) -> None:
    """For test_order_compiled."""
    nf4_linear.nf4_linear(made(16, H, dtype=half(card), trained=False), packed_weight(card))
