"""How fast a kernel can be at best: what it must move over the bandwidth, what it must compute over the rate.

    floor = max(bytes / bandwidth, operations / rate)     Williams, Waterman & Patterson 2009, 10.1145/1498765.1498785

Bytes are those that must be read and written once, whatever the kernel does; operations of kernels that only move are
counted roughly (an exponential is one), since they decide nothing there. In: sizes. Out: `Work`, microseconds. Rates
are those of data sheets, which no kernel reaches quite. Needs neither torch nor Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CARDS",
    "Card",
    "Work",
    "add_rms_norm",
    "attention",
    "card_named",
    "cross_entropy",
    "k_quant",
    "linear_cross_entropy",
    "lora_linear",
    "nf4_dequantise",
    "nf4_linear",
    "rms_norm",
    "rope",
    "swiglu",
    "wav2vec2",
]

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # a weight: its code, its share of the absmax's code and of that's peak


@dataclass(frozen=True)
class Card:
    """What a processor can do at most. Rates without sparsity."""

    name: str
    gb_s: float  # memory, 10**9 bytes a second
    tensor_tflop_s: float  # matrix products in half precision
    vector_tflop_s: float | None = None  # everything else, in float32; None where nobody measured it
    source: str = ""

    def rate(self, work: Work) -> float:
        """Operations a second that are to be had for `work`, in 10**12."""
        return self.tensor_tflop_s if work.tensor or self.vector_tflop_s is None else self.vector_tflop_s

    def best_tflop_s(self, work: Work) -> float:
        """The roof above `work`."""
        return min(self.rate(work), work.intensity * self.gb_s / 1000)


@dataclass(frozen=True)
class Work:
    """What one call must do at least."""

    moved: float  # bytes
    operations: float
    tensor: bool = False  # whether they are matrix products

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.moved

    def floor_us(self, card: Card) -> float:
        """Microseconds that `card` needs at least."""
        return max(self.moved / card.gb_s / 1e3, self.operations / card.rate(self) / 1e6)

    def bound(self, card: Card) -> str:
        """ "memory" or "arithmetic": which of the two the floor comes from."""
        return "memory" if self.moved / card.gb_s * 1e3 >= self.operations / card.rate(self) else "arithmetic"


CARDS = (
    Card("H200", 4800, 989, 67, "NVIDIA H200 data sheet, SXM"),
    Card("A100", 2039, 312, 19.5, "NVIDIA A100 data sheet, SXM 80 GB"),
    Card("L4", 300, 121, 30.3, "NVIDIA L4 data sheet"),
    Card("T4", 320, 65, 8.1, "NVIDIA T4 data sheet"),
)


def card_named(name: str) -> Card:
    """Raises ValueError for a card that is not in `CARDS`."""
    for card in CARDS:
        if card.name == name:
            return card
    raise ValueError(f"no data sheet of {name!r} here; give one of {', '.join(card.name for card in CARDS)}")


def rms_norm(m: int, h: int, size: int = 2, *, backward: bool = False) -> Work:
    """M rows of H values of `size` bytes: x in and y out; backward dy and x in, dx out."""
    return Work((3 if backward else 2) * m * h * size, (9 if backward else 4) * m * h)


def add_rms_norm(m: int, h: int, size: int = 2) -> Work:
    """With the residual's addition: two in, two out."""
    return Work(4 * m * h * size, 5 * m * h)


def rope(m: int, width: int, size: int = 2) -> Work:
    """M tokens, `width` values of all heads of q and k, turned where they lie."""
    return Work(2 * m * width * size, 3 * m * width)


def swiglu(m: int, i: int, size: int = 2, *, backward: bool = False) -> Work:
    """Gate and up in, their unit out; backward three in, two out."""
    return Work((5 if backward else 3) * m * i * size, (11 if backward else 5) * m * i)


def cross_entropy(m: int, v: int, size: int = 2) -> Work:
    """Loss and gradient: logits in, the gradient out over them."""
    return Work(2 * m * v * size, 6 * m * v)


def linear_cross_entropy(m: int, h: int, v: int, size: int = 2, *, frozen: bool = True) -> Work:
    """Loss from hidden states, and their gradient: two products, three where the head learns too."""
    return Work((2 * m * h + (1 if frozen else 2) * v * h) * size, (4 if frozen else 6) * m * h * v, tensor=True)


def attention(tokens: int, width: int, length: int, size: int = 2, *, causal: bool = True) -> Work:
    """Forward over documents of `length`; `width` is that of all heads together."""
    return Work(4 * tokens * width * size, 4 * tokens * width * length // (2 if causal else 1), tensor=True)


def nf4_dequantise(n: int, k: int, size: int = 2) -> Work:
    """4-bit weights in, weights of `size` bytes out."""
    return Work((NF4_BYTES + size) * n * k, 2 * n * k)


def nf4_linear(m: int, n: int, k: int, size: int = 2) -> Work:
    """M rows times 4-bit weights (N, K)."""
    return Work(NF4_BYTES * n * k + size * m * (n + k), 2 * m * n * k, tensor=True)


def lora_linear(m: int, n: int, k: int, rank: int, size: int = 2) -> Work:
    """With a low-rank pair beside them, forward and backward to x and to the pair: W twice, the pair three times."""
    moved = 2 * NF4_BYTES * n * k + size * (2 * m * (n + k) + 3 * rank * (n + k))
    return Work(moved, 4 * m * n * k + 6 * m * rank * (n + k), tensor=True)


def wav2vec2(seconds: float, *, large: bool = False) -> Work:
    """A forward pass in half precision over audio of 16 kHz: operations of all layers at 10 s a clip, and bytes of the
    weights once and of the convolutions' activations written and read once."""
    weights, operations = (315e6, 38.5e9) if large else (94e6, 14.8e9)
    return Work(2 * weights + 13e6 * seconds, operations * seconds, tensor=True)


def k_quant(n: int, k: int, size: int = 2) -> Work:
    """Q4_K: 144 bytes out for 256 weights; its search costs about 525 operations a weight."""
    return Work((size + 144 / 256) * n * k, 525 * n * k)
