"""wav2vec 2.0 base and large, 64 × 10 s in bfloat16, beside transformers with SDPA; random weights.

Ours is transformers' own model after `speechkit.asr.kernels.apply_kernels`: the feature encoder (channels last
throughout, norm and GELU in one kernel) and the positional convolution are exchanged. The aims: 1.5 times transformers
for base, 1.4 times for large. What is timed is a forward pass; the parts are timed beside it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from gpu import Bench, compiled, require_gpu

from speechkit.asr.kernels import apply_kernels

ROWS, SECONDS = 64, 10
LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True,
}  # fmt: skip


def exchanged(model: Any) -> Any:
    """A copy of transformers' model with kernels in it."""
    ours = copy.deepcopy(model)
    print(apply_kernels(ours))
    return ours


def built(**sizes: Any) -> Any:
    """A model of random weights that is not all noise after the first norm."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    return Wav2Vec2Model(Wav2Vec2Config(attn_implementation="sdpa", **sizes)).eval()


def assert_as_near(ours: Any, theirs: Any, truth: Any, audio: torch.Tensor) -> None:
    """Ours in bfloat16 is at most twice as far from float32 as transformers in bfloat16."""
    exact = truth(audio.float()).last_hidden_state
    mine, other = ((model(audio).last_hidden_state.float() - exact).square().mean().sqrt() for model in (ours, theirs))
    assert mine <= 2 * other, f"off by {mine:.3g}, transformers by {other:.3g}"


@torch.inference_mode()
def main() -> None:
    require_gpu("wav2vec2")
    bench = Bench("wav2vec2")
    for name, sizes in (("base", {}), ("large", LARGE)):
        truth = built(**sizes).cuda()
        theirs = copy.deepcopy(truth).bfloat16()
        ours, fast = exchanged(theirs), compiled(theirs)
        audio = torch.randn(ROWS, 16_000 * SECONDS, device="cuda").bfloat16()

        def check(ours: Any = ours, theirs: Any = theirs, truth: Any = truth, audio: torch.Tensor = audio) -> None:
            assert_as_near(ours, theirs, truth, audio[:2, :48_000])

        shape = {"B": ROWS, "seconds": SECONDS}
        models = {"ours": ours, "transformers": theirs, "compiled": fast}
        bench.measure(
            name, shape, {k: (lambda m=m, x=audio: m(x).last_hidden_state) for k, m in models.items()}, check=check
        )
        parts = {"ours": ours.feature_extractor, "transformers": theirs.feature_extractor}
        bench.measure(
            f"{name}: feature encoder", shape, {k: (lambda m=m, x=audio: m(x)) for k, m in parts.items()}, check=check
        )
        hidden = torch.randn(ROWS, 499, theirs.config.hidden_size, device="cuda").bfloat16()
        parts = {"ours": ours.encoder.pos_conv_embed, "transformers": theirs.encoder.pos_conv_embed}
        bench.measure(
            f"{name}: positional convolution", shape, {k: (lambda m=m, x=hidden: m(x)) for k, m in parts.items()},
            check=check, flops=2 * ROWS * 499 * hidden.shape[2] * (hidden.shape[2] // 16) * 128,
        )  # fmt: skip
    bench.write()


if __name__ == "__main__":
    main()
