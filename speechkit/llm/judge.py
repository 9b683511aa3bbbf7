"""Questions → a model's greedy answers → how many are exactly right. Knows no training.

In: a model with its tokenizer, and conversations whose last message is the answer. Out: `Judged`, which prints the
share with its 95 % interval (Wilson's) and some of the answers that were wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Judged", "Question", "answers", "exact_match", "questions"]

SHOWN = 3  # wrong answers in a printed result
BATCH_TOKENS = 8192  # prompts and answers of one batch, padding included


@dataclass(frozen=True)
class Question:
    """A conversation up to the answer, and the answer that is right."""

    messages: tuple[Mapping[str, Any], ...]  # OpenAI's shape
    expected: str
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, repr=False)
class Judged:
    """Answers beside the right ones, in the order of the questions."""

    asked: tuple[Question, ...]
    given: tuple[str, ...]

    @property
    def right(self) -> int:
        return sum(_same(one.expected, text) for one, text in zip(self.asked, self.given, strict=True))

    @property
    def share(self) -> float:
        """Of answers that are right to the letter, from 0 to 1."""
        return self.right / len(self.asked)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `share` (E. B. Wilson, 1927)."""
        n, p, z = len(self.asked), self.share, 1.959964
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    @property
    def wrong(self) -> tuple[tuple[str, str, str], ...]:
        """(last thing asked, right answer, given answer) of each that is not right."""
        pairs = zip(self.asked, self.given, strict=True)
        return tuple(
            (str(q.messages[-1].get("content", "")), q.expected, g) for q, g in pairs if not _same(q.expected, g)
        )

    def __str__(self) -> str:
        low, high = self.interval
        lines = [f"{self.right} of {len(self.asked)} right, {self.share:.1%} [{low:.1%}, {high:.1%}]"]
        lines += [f"  {asked!r}: {given!r} instead of {right!r}" for asked, right, given in self.wrong[:SHOWN]]
        return "\n".join(lines)

    __repr__ = __str__


def questions(conversations: Iterable[Any]) -> tuple[Question, ...]:
    """Of conversations that end with an answer: lists of messages, or rows of `speechkit.llm.rows`.

    Raises DataError for one that does not end with an assistant's message.
    """
    made = []
    for number, one in enumerate(conversations, 1):
        messages = [_message(each) for each in (one if isinstance(one, (list, tuple)) else one.messages)]
        if not messages or messages[-1]["role"] != "assistant":
            raise DataError(f"conversation {number} does not end with an answer of the assistant, so nothing is asked")
        tools = tuple(getattr(one, "tools", ()) or ())
        made.append(Question(tuple(messages[:-1]), str(messages[-1]["content"]), tools))
    return tuple(made)


def exact_match(model: Any, tokenizer: Any, asked: Iterable[Question], max_new_tokens: int = 64) -> Judged:
    """Ask all of `asked`, greedily; white space at both ends does not count. Raises DataError where there is none."""
    asked = tuple(asked)
    if not asked:
        raise DataError("there is no question to judge by")
    return Judged(asked, tuple(answers(model, tokenizer, asked, max_new_tokens)))


def answers(
    model: Any, tokenizer: Any, asked: Sequence[Question | Sequence[Mapping[str, Any]]], max_new_tokens: int = 64
) -> list[str]:
    """Greedy answers in the order of `asked`: questions, or plain lists of messages. Batched by length."""
    texts = [_rendered(tokenizer, one) for one in asked]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    given: list[str] = [""] * len(ids)
    training = model.training
    model.eval()
    try:
        for batch in _batches(order, ids, max_new_tokens):
            for index, text in zip(
                batch, _generate(model, tokenizer, [ids[i] for i in batch], max_new_tokens), strict=True
            ):
                given[index] = text
    finally:
        model.train(training)
    return given


def _batches(order: list[int], ids: list[list[int]], more: int) -> Iterable[list[int]]:
    batch: list[int] = []
    for index in order:  # the longest so far is the next
        if batch and (len(batch) + 1) * (len(ids[index]) + more) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()  # not inference_mode: layers that remember a weight by its version could not tell
def _generate(model: Any, tokenizer: Any, ids: list[list[int]], max_new_tokens: int) -> list[str]:
    """Prompts are padded on the left, so that all answers begin at the same place."""
    longest = max(map(len, ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=model.device)
    out = model.generate(
        input_ids=tokens, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad,
        temperature=None, top_p=None, top_k=None,
    )  # fmt: skip
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in out[:, longest:]]


def _rendered(tokenizer: Any, one: Question | Sequence[Mapping[str, Any]]) -> str:
    messages, tools = (one.messages, one.tools) if isinstance(one, Question) else (one, ())
    return tokenizer.apply_chat_template(
        [_message(each) for each in messages], tools=list(tools) or None, add_generation_prompt=True, tokenize=False
    )


def _message(one: Any) -> dict[str, Any]:
    if isinstance(one, dict):
        return one
    return {key: value for key in ("role", "content", "tool_calls", "name") if (value := getattr(one, key, None))}


def _same(expected: str, given: str) -> bool:
    return expected.strip() == given.strip()
