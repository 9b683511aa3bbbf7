"""A row → token ids, and which of them are the assistant's: what is learnt. In: `Row`, tokenizer. Out: `Encoded`.

    encoder = Encoder(tokenizer)
    encoder.encode(row).samples[0].input_ids, .learnt

Three ways, tried in this order. *marks*: the template encloses answers in `{% generation %}`, and transformers says
where they lie. *prefixes*: the conversation is rendered up to each answer, without it and with it; both must be
beginnings of the whole. *turn by turn*: where a template writes earlier turns otherwise than the last (Qwen3 drops
their thoughts), each answer becomes a sample with the turns before it as the model will be shown them. A template that
fits none is refused with the reason. Text is rendered first and tokenised without special tokens, so none is doubled.
Knows nothing of lengths, labels and batches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError
from speechkit.llm.families import FAMILIES
from speechkit.llm.row_shapes import Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from speechkit.llm.row_shapes import Message, Row

__all__ = ["BREAKS", "MARKS", "PREFIXES", "TURNS", "Encoded", "Encoder", "Sample", "has_marks", "render", "stop_ids"]

MARKS, PREFIXES, TURNS, WHOLE = "marks", "prefixes", "turn by turn", "whole text"
MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
THOUGHT = re.compile(r"\s*<[^<>\s]*think[^<>\s]*>\s*")  # opened for the model, where training text has none
# what ends a turn in the families of this kit, where the tokenizer has it; its eos is added
ENDS = tuple(dict.fromkeys((*(token for family in FAMILIES for token in family.stop_tokens), "<|end|>", "<turn|>")))
BREAKS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)  # of code in templates
NO_TEMPLATE = (
    "the tokenizer has no chat template, and the rows are chats: set tokenizer.chat_template (that of the instruct "
    "model of the same family), or give prompt/completion rows"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens to run, and which are learnt."""

    input_ids: tuple[int, ...]
    learnt: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one row."""

    samples: tuple[Sample, ...]  # one; turn by turn one for each answer
    way: str  # how the answers were found


def render(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any] = (), *, generate: bool = False) -> str:
    """The conversation as text; `generate`: with the beginning of an answer behind it.

    Raises DataError where there is no template, Fault where the template refuses the conversation.
    """
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise DataError(NO_TEMPLATE)
    try:
        text = tokenizer.apply_chat_template(
            [one.as_dict() for one in messages], tools=list(tools) or None, tokenize=False,
            add_generation_prompt=generate,
        )  # fmt: skip
    except (TemplateError, *BREAKS) as error:
        raise Fault(f"the chat template refuses it: {error}") from error
    return str(text)


def has_marks(tokenizer: Any, tools: Sequence[Any] = ()) -> bool:
    """Whether the template encloses what the assistant says in `{% generation %}`."""
    if not tokenizer.chat_template:
        return False
    try:
        return bool(MARK.search(tokenizer.get_chat_template(tools=list(tools) or None)))
    except ValueError:  # several templates, and none is the default: rendering says so
        return False


def stop_ids(tokenizer: Any, generation_config: Any = None, *, known: bool = True) -> dict[int, str]:
    """Tokens that end an answer → their text: the tokenizer's eos, those of the generation config, `known` ends."""
    eos = getattr(generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(eos if isinstance(eos, list | tuple) else [eos])]
    if known:
        ids += [_id_of(tokenizer, word) for word in ENDS]
    return {one: str(tokenizer.convert_ids_to_tokens(one)) for one in dict.fromkeys(ids) if one is not None}


def _id_of(tokenizer: Any, word: str) -> int | None:
    found = tokenizer.convert_tokens_to_ids(word)
    return None if found is None or found == tokenizer.unk_token_id else int(found)


class Encoder:
    """Encodes rows with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset(stop_ids(tokenizer))
        added = (str(token) for token in tokenizer.added_tokens_decoder.values())
        self.specials = tuple(word for word in {*added, *tokenizer.all_special_tokens} if word.strip())

    def encode(self, row: Row) -> Encoded:
        """Raises Fault where the answers cannot be found, DataError for a chat without a template."""
        if row.kind == "completion":
            return Encoded((self._single_bos(self._completion(row)),), WHOLE)
        if row.kind != "chat":
            raise Fault(f"is a {row.kind} row: it is for another kind of training")
        found = self._marked(row) if has_marks(self.tokenizer, row.tools) else self._rendered(row)
        if not any(any(sample.learnt) for sample in found.samples):
            raise Fault("the template marks no token as the assistant's")
        return Encoded(tuple(map(self._single_bos, found.samples)), found.way)

    def _marked(self, row: Row) -> Encoded:
        render(self.tokenizer, row.messages, row.tools)  # its refusals, in one place
        out = self.tokenizer.apply_chat_template(
            [one.as_dict() for one in row.messages], tools=list(row.tools) or None, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        ids, learnt = list(out["input_ids"]), [bool(one) for one in out["assistant_masks"]]
        spans = _runs(learnt)
        weights = [one.weight for one in row.messages if one.role == "assistant"]
        if not all(weights):
            if len(spans) != len(weights):
                raise Fault(f"the template marks {len(spans)} answers of {len(weights)}, and one has the weight 0")
            spans = [span for span, weight in zip(spans, weights, strict=True) if weight]
        return Encoded((self._sample(ids, spans),), MARKS)

    def _rendered(self, row: Row) -> Encoded:
        answers = [n for n, one in enumerate(row.messages) if one.role == "assistant"]
        learnt = [n for n in answers if row.messages[n].weight]
        whole = render(self.tokenizer, row.messages, row.tools)
        spans = [self._span(row, n, whole) for n in answers]
        if all(spans):
            chosen = [span for n, span in zip(answers, spans, strict=True) if span and n in learnt]
            return Encoded((self._of_text(whole, chosen),), PREFIXES)
        return Encoded(tuple(self._turn(row, n) for n in learnt), TURNS)

    def _turn(self, row: Row, answer: int) -> Sample:
        text = render(self.tokenizer, row.messages[: answer + 1], row.tools)
        span = self._span(row, answer, text)
        if span is None:
            asked = render(self.tokenizer, row.messages[:answer], row.tools, generate=True)
            raise Fault(
                f"the template begins answers with {asked[-30:]!r} when it asks for one and otherwise when it has one: "
                f"which tokens are the assistant's cannot be told; put {{% generation %}} marks into the template"
            )
        return self._of_text(text, [span])

    def _span(self, row: Row, answer: int, whole: str) -> tuple[int, int] | None:
        """From where to where the answer lies in `whole`; None where what comes before it is rendered otherwise."""
        before = render(self.tokenizer, row.messages[:answer], row.tools, generate=True)
        if not whole.startswith(before):
            plain = render(self.tokenizer, row.messages[:answer], row.tools)
            opened = THOUGHT.search(before, len(plain)) if before.startswith(plain) else None
            before = before[: opened.start()] if opened and opened.end() == len(before) else before
            if not opened or len(before) <= len(plain) or not whole.startswith(before):
                return None
        after = render(self.tokenizer, row.messages[: answer + 1], row.tools)
        while not whole.startswith(after):  # some templates put a token behind the last turn alone
            ending = next((word for word in self.specials if after.endswith(word)), "")
            ending = ending or (after[-1:] if after[-1:].isspace() else "")
            if not ending:
                return None
            after = after[: -len(ending)]
        return (len(before), len(after)) if len(after) > len(before) else None

    def _of_text(self, text: str, spans: Sequence[tuple[int, int]]) -> Sample:
        """Characters → tokens: those that begin within a span."""
        if not self.tokenizer.is_fast:
            return self._in_pieces(text, spans)
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in out["offset_mapping"]]
        learnt = [any(first <= start < end for first, end in spans) for start in starts]
        return self._sample(out["input_ids"], _runs(learnt))

    def _in_pieces(self, text: str, spans: Sequence[tuple[int, int]]) -> Sample:
        """For tokenizers that do not say where tokens lie."""
        cuts, ids, learnt = [0, *(at for span in spans for at in span), len(text)], [], []
        for number, (first, end) in enumerate(pairwise(cuts)):
            piece = self.tokenizer(text[first:end], add_special_tokens=False)["input_ids"]
            ids += piece
            learnt += [number % 2 == 1] * len(piece)
        if ids != self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise Fault("the tokenizer joins tokens across the beginning or end of an answer, and says not where")
        return self._sample(ids, _runs(learnt))

    def _sample(self, ids: Sequence[int], spans: Iterable[tuple[int, int]]) -> Sample:
        """Each span ends with the token that ends the turn: what follows is the template's, not the model's."""
        learnt = [False] * len(ids)
        for first, last in spans:
            end = 0
            for at in range(last - 1, first - 1, -1):
                if ids[at] in self.stops:
                    end = at + 1
                elif self.tokenizer.decode([ids[at]]).strip():
                    break
            end = end or last + (last < len(ids) and ids[last] in self.stops)
            learnt[first:end] = [True] * (end - first)
        return Sample(tuple(ids), tuple(learnt))

    def _completion(self, row: Row) -> Sample:
        """Prompt and text as one, with the special tokens that the tokenizer puts around plain text, and an eos."""
        whole, eos = row.prompt + row.text, self.tokenizer.eos_token_id
        ids = list(self.tokenizer(whole)["input_ids"])
        bare = self._of_text(whole, [(len(row.prompt), len(whole))])
        lead = next((n for n in range(len(ids)) if tuple(ids[n : n + len(bare.input_ids)]) == bare.input_ids), None)
        if lead is None:
            raise Fault("the tokenizer writes it otherwise with special tokens than without")
        learnt = [False] * lead + list(bare.learnt)
        ids = ids[: len(learnt)]
        if eos is not None and ids[-1] != eos:
            ids, learnt = [*ids, eos], [*learnt, True]
        return Sample(tuple(ids), tuple(learnt))

    def _single_bos(self, sample: Sample) -> Sample:
        bos, ids = self.tokenizer.bos_token_id, sample.input_ids
        if bos is not None and ids[:2] == (bos, bos):
            return Sample(ids[1:], sample.learnt[1:])
        return sample


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """[0 1 1 0 1] → [(1, 3), (4, 5)]"""
    edges = [n for n in range(len(flags) + 1) if (n < len(flags) and flags[n]) != (n > 0 and flags[n - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))
