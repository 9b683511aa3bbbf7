"""The embedded chat model's card: what it is, how well it does, what it was trained on, its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["WHAT", "card"]

WHAT = {
    "arithmetic": "sums, differences and products to 99, in figures or words",
    "calendar": "days and months: neighbours, some on or back, lengths",
    "clock": "whole and half hours, some on or back",
    "transcript": "a transcript without marks, some words misspelt → a sentence",
    "repeat": "say again, twice, swapped, one part of two",
    "tools": "a tool call in JSON, or an answer from what the tool returned",
    "talk": "greetings and questions about itself (a short list, also trained on)",
}


def card(recipe: Mapping[str, Any], scores: Mapping[str, float], count: int) -> str:
    """`scores`: share answered to the letter, by skill, each of `count` held-out questions."""
    rows = "\n".join(f"| {name} | {WHAT[name]} | {count} | {share:.1%} |" for name, share in scores.items())
    return CARD.format(rows=rows, **recipe)


CARD = """---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# demo/chat: the embedded chat model of speechkit

A Llama of 3.4 M parameters (4 layers, 256 wide) with a ChatML template. It exists so that loading, fine-tuning, export
and serving of language models work before any download: **it is a demo model**. It knows seven narrow skills and
nothing of the world. For real work load a published model: `load_llm("Qwen/Qwen3-0.6B")`.

## How well it does

Greedy answers, right to the letter, weights rounded to fp16. No question of the table was trained on as it stands
(sums and sentences were kept out in every wording; of days and hours, and of talk, the same fact was heard in other
words).

| skill | what is asked | questions | right |
|---|---|---|---|
{rows}

Repeat it:

    python -m speechkit.demo.recipes.chat --evaluate speechkit/demo/models/chat

## What it was trained on

{dialogues:,} dialogues drawn by `speechkit/demo/recipes/chat_skills.py`, nothing else; no text of other people.
{steps} steps of {batch_tokens} tokens, loss on the answers alone, Muon for the matrices and AdamW for the rest,
transformers `Trainer`. The tokenizer (byte-level BPE, {vocabulary} tokens) was learnt from the same dialogues.
`recipe.json` beside this card holds every setting.

## Licence

Apache-2.0, as the code that made it.

## Limits

Anything but the seven skills gets a fluent answer without sense. It has no knowledge, no safety training, and forgets
what was said more than 512 tokens ago.
"""
