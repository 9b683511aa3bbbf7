"""Ragged text: packed blocks beside padded batches, in useful tokens a second; and bins of a million lengths.

    python kernels/bench/packing.py                        a Llama of 4 M parameters on this CPU, a few minutes
    python kernels/bench/packing.py --rounds 9 --rows 256

Both train the same weights (copies) on the same rows, every row once in a turn, N random rows an update: the plain way
as trl's default collator pads them, ours as a packed batch of those very rows, so that the losses of every update have
to be equal. They take turns inside one process, so a machine that slows down slows both; the figure is the median of
the ratios of neighbouring turns, beside what padding allows: 1 / the share of a padded batch that is text.
`--device cuda` trains there. The bins: log-normal lengths with a mean of at most a quarter of the block.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import numpy as np
import torch

from speechkit.llm.data import IGNORED, Tokens
from speechkit.llm.packing import collate, fill_of, pack, plan_bins

VOCABULARY = 2048


def model_of(layers: int, width: int) -> Any:
    """Random weights; 256 wide with 4 layers is about 4 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=width // 64, num_key_value_heads=max(1, width // 128), tie_word_embeddings=True,
            max_position_embeddings=4096, pad_token_id=0,
        )
    )  # fmt: skip


def ragged(count: int, median: int, longest: int, seed: int = 0) -> list[Tokens]:
    """Rows of log-normal length, whose next token follows from the last: something to learn."""
    draw = np.random.default_rng(seed)
    follows = draw.permutation(VOCABULARY - 1) + 1
    rows = []
    for length in np.clip(draw.lognormal(np.log(median), 0.7, count), 8, longest).astype(int):
        ids = [int(draw.integers(1, VOCABULARY))]
        while len(ids) < length:
            ids.append(int(follows[ids[-1] - 1]))
        rows.append(Tokens(tuple(ids), (IGNORED, *ids[1:])))
    return rows


class Turns:
    """One way of training: `turn` sees every row once and returns useful tokens a second."""

    def __init__(self, rows: list[Tokens], model: Any, device: str, batch: int) -> None:
        self.rows, self.model, self.device, self.batch = rows, model.to(device).train(), device, batch
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.losses: list[float] = []  # of every update
        self.held = self.room = 0  # tokens that are text, and all

    def collate(self, rows: list[Tokens]) -> dict[str, Any]:
        raise NotImplementedError

    def turn(self, seed: int) -> float:
        """The seed says which rows make an update: the same for both ways."""
        order = np.random.default_rng(seed).permutation(len(self.rows)).tolist()
        groups = [order[first : first + self.batch] for first in range(0, len(order), self.batch)]
        began, losses = self._now(), []
        for group in groups:
            batch = self.collate([self.rows[n] for n in group])
            self.room += batch["input_ids"].numel()
            moved = {name: x.to(self.device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
            loss = self.model(**moved).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.detach())
        taken, tokens = self._now() - began, sum(map(len, self.rows))
        self.losses += torch.stack(losses).tolist()
        self.held += tokens
        return tokens / taken

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


class Packed(Turns):
    def collate(self, rows: list[Tokens]) -> dict[str, Any]:
        return collate(pack(rows, sum(map(len, rows))))


class Padded(Turns):
    def collate(self, rows: list[Tokens]) -> dict[str, Any]:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        given = [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows]
        return dict(DataCollatorForLanguageModeling(pad_token_id=0)(given))


def bins(count: int, block: int) -> str:
    """How long a plan of `count` lengths takes, and how full its bins are."""
    drawn = np.random.default_rng(0).lognormal(np.log(0.16 * block), 0.8, count)
    lengths = np.clip(drawn, 1, block).astype(np.int64)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        planned = plan_bins(lengths, block)
        times.append(time.perf_counter() - began)
    return (
        f"{count:,} lengths, mean {lengths.mean() / block:.2f} of a block of {block:,}: best of 3 {min(times):.2f} s, "
        f"fill {fill_of(planned, lengths, block):.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--median", type=int, default=90, help="tokens of a row")
    parser.add_argument("--longest", type=int, default=512, help="tokens of a row at most")
    parser.add_argument("--batch", type=int, default=8, help="rows of an update")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--lengths", type=int, default=1_000_000, help="for the bins; 0: none")
    parser.add_argument("--plain", action="store_true", help="packed on transformers' sdpa, without our attention")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds is 2 or more: the first turn of each way warms up and is not counted")
    rows, start = ragged(options.rows, options.median, options.longest), model_of(options.layers, options.width)
    ours, plain = (
        way(rows, copy.deepcopy(start), options.device, options.batch) for way in (Packed, Padded)
    )  # fmt: skip
    if not options.plain:
        from speechkit.llm import apply_kernels

        apply_kernels(ours.model, ("attention",))
    speeds: dict[str, list[float]] = {"packed": [], "padded": []}
    for number in range(options.rounds):
        for name, way in (("packed", ours), ("padded", plain)):
            speeds[name].append(way.turn(number))
    say(ours, plain, speeds)
    if options.lengths:
        print(bins(options.lengths, 2048))


def say(ours: Turns, plain: Turns, speeds: dict[str, list[float]]) -> None:
    count, fill = sum(x.numel() for x in ours.model.parameters()), plain.held / plain.room
    print(
        f"Llama of {count / 1e6:.1f} M parameters, {ours.device}, {torch.get_num_threads()} threads, attention "
        f"{ours.model.config._attn_implementation}; {len(ours.rows)} rows, {sum(map(len, ours.rows)):,} tokens, of "
        f"padded batches {fill:.0%} are text"
    )
    apart = max(abs(a - b) / b for a, b in zip(ours.losses, plain.losses, strict=True))
    print(
        f"loss of the first update {ours.losses[0]:.4f} and {plain.losses[0]:.4f}, of the last of {len(ours.losses)} "
        f"{ours.losses[-1]:.4f} and {plain.losses[-1]:.4f}; most apart {apart:.1e}"
    )
    for name, rates in speeds.items():
        print(f"{name} {statistics.median(rates[1:]):8,.0f} useful tokens a second")
    ratios = [a / b for a, b in zip(speeds["packed"][1:], speeds["padded"][1:], strict=True)]
    ratio = statistics.median(ratios)
    print(
        f"packed / padded: {ratio:.2f} (turns: {', '.join(f'{x:.2f}' for x in ratios)}); "
        f"of the {1 / fill:.2f} that padding allows {ratio * fill:.2f}"
    )


if __name__ == "__main__":
    main()
