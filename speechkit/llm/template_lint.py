"""Is this chat template fit to train with? In: a tokenizer, and rows if there are any. Out: `LintReport`.

    print(lint(tokenizer, rows, generation_config=model.generation_config))

A conversation is rendered and encoded as in training, and looked at: does an answer end with a token that ends
generation, is that token learnt, is pad another one, is BOS there once, does text survive the way to tokens and back,
does the template take system messages. With rows, also what they need of it. Changes nothing; knows no model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.llm.chat import NO_TEMPLATE, TURNS, Encoder, has_marks, render, stop_ids
from speechkit.llm.row_shapes import Fault, Message, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ERROR", "NOTE", "WARNING", "Finding", "LintReport", "lint"]

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)
ASKED, SAID, AGAIN, LAST = "What is 3 plus 4?", "It is seven.", "And 5 plus 6?", "It is eleven."
SYSTEM = "Answer in one sentence."
TALK = tuple(
    Message(role, text)
    for role, text in (("user", ASKED), ("assistant", SAID), ("user", AGAIN), ("assistant", LAST))
)  # fmt: skip
MARKUP = re.compile(r"<[|｜]?[A-Za-z_▁/][\w▁/.-]{1,40}[|｜]?>|\[/?[A-Z_]{2,20}\]")  # what looks like a special token
LOOKED_AT = 2000  # rows


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the template."""

    level: str  # error: do not train with it; warning: look at it; note: good to know
    what: str
    to_do: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}" + (f" → {self.to_do}" if self.to_do else "")


@dataclass(frozen=True)
class LintReport:
    """Findings, the worst first."""

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]  # what was looked at and is right

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.level == ERROR)

    @property
    def ok(self) -> bool:
        """Whether one may train with it."""
        return not self.errors

    def __str__(self) -> str:
        counts = [(level, sum(one.level == level for one in self.findings)) for level in LEVELS]
        said = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts if count) or "nothing found"
        lines = [f"chat template: {said}", *(f"  {one}" for one in self.findings)]
        return "\n".join([*lines, *(f"  right: {one}" for one in self.passed)])

    __repr__ = __str__


def lint(tokenizer: Any, rows: Sequence[Row] = (), *, generation_config: Any = None) -> LintReport:
    """Look at the tokenizer's chat template, and at what `rows` need of it.

    generation_config: of the model, whose eos list ends answers too. Raises nothing for a template that is wrong: that
    is what the findings are for.
    """
    look = _Look(tokenizer, generation_config)
    if not tokenizer.chat_template:
        look.say(ERROR, "there is no chat template", NO_TEMPLATE.partition(": ")[2])
    elif look.talk():
        for check in (look.end, look.pad, look.begin, look.round_trip, look.system, look.prompt, look.marks):
            check()
        look.found += _needs(tokenizer, [row for row in rows[:LOOKED_AT] if row.kind != "completion"])
    return LintReport(tuple(sorted(look.found, key=lambda one: LEVELS.index(one.level))), tuple(look.passed))


class _Look:
    """The checks, each of which says what it found, or that it is right."""

    def __init__(self, tokenizer: Any, generation_config: Any) -> None:
        self.tokenizer = tokenizer
        self.ends = stop_ids(tokenizer, generation_config, known=False)  # what really ends generation
        self.known = stop_ids(tokenizer, generation_config)
        self.found: list[Finding] = []
        self.passed: list[str] = []
        self.text = ""
        self.ids: list[int] = []

    def say(self, level: str, what: str, to_do: str = "") -> None:
        self.found.append(Finding(level, what, to_do))

    def right(self, what: str) -> None:
        self.passed.append(what)

    def talk(self) -> bool:
        """Whether a plain conversation can be rendered at all."""
        try:
            self.text = render(self.tokenizer, TALK)
        except Fault as fault:
            self.say(ERROR, f"a plain conversation of two turns cannot be rendered: {fault}", "mend the template")
            return False
        missing = [one.content for one in TALK if one.content not in self.text]
        if missing:
            self.say(ERROR, f"it does not write all that was said: {missing[0]!r} is missing", "mend the template")
            return False
        self.ids = list(self.tokenizer(self.text, add_special_tokens=False)["input_ids"])
        return True

    def end(self) -> None:
        """Each answer ends with a stop token, and it is among the labels."""
        after = self.text[self.text.rindex(LAST) + len(LAST) :]
        closing = list(self.tokenizer(after, add_special_tokens=False)["input_ids"]) if after else []
        stop = next((token for token in closing if token in self.known), None)
        if stop is None:
            shown = f"ends an answer with {after!r}" if after.strip() else "puts nothing behind an answer"
            self.say(
                ERROR, f"no stop token: the template {shown}, which the tokenizer has as no single end of turn",
                f"write {self.tokenizer.eos_token or 'an eos token'} behind what the assistant says: without it a "
                "model never learns to stop",
            )  # fmt: skip
            return
        if stop not in self.ends:
            self.say(
                WARNING, f"answers end with {self.known[stop]}, generation with {', '.join(self.ends.values())}",
                f"add {stop} to generation_config.eos_token_id, or make {self.known[stop]} the tokenizer's eos",
            )  # fmt: skip
        else:
            self.right(f"answers end with {self.known[stop]}, which ends generation")
        self._labels(stop)

    def _labels(self, stop: int) -> None:
        try:
            found = Encoder(self.tokenizer).encode(Row("chat", TALK))
        except Fault as fault:
            self.say(ERROR, f"which tokens are the assistant's cannot be told: {fault}", "put marks into the template")
            return
        if found.way == TURNS:
            self.say(
                NOTE, "it writes earlier turns otherwise than the last",
                "each answer of a conversation becomes a row of its own",
            )  # fmt: skip
        ended = 0
        for sample in found.samples:
            learnt = [(token, flag) for token, flag in zip(sample.input_ids, sample.learnt, strict=True)]
            ended += sum(flag and token in self.known for token, flag in learnt)
        if not ended:
            self.say(
                ERROR, f"{self.known[stop]} is not in the labels",
                "let {% endgeneration %} come behind the token that ends the turn",
            )  # fmt: skip
        elif ended < 2:
            self.say(
                WARNING, "only the last answer of a conversation ends with a stop token",
                "write it behind each answer, or give rows of one turn",
            )  # fmt: skip
        else:
            self.right(f"{self.known[stop]} is in the labels of each answer")

    def pad(self) -> None:
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        name = self.tokenizer.pad_token
        if pad is None:
            self.say(
                NOTE, "there is no pad token", "packed training needs none; load_llm adds one for batches that pad"
            )
        elif pad == eos or pad in self.ends:
            self.say(
                ERROR, f"pad is {name}, which ends answers: collators mask it, and the model never learns to stop",
                "load_llm repairs it; or tokenizer.pad_token = another special token",
            )  # fmt: skip
        else:
            self.right(f"pad is {name}, not eos")

    def begin(self) -> None:
        bos, name = self.tokenizer.bos_token_id, self.tokenizer.bos_token
        if bos is None:
            return
        if self.ids[:2] == [bos, bos]:
            self.say(ERROR, f"it writes {name} twice at the beginning", "write it once; here one is dropped")
        elif self.ids[0] == bos:
            both = list(self.tokenizer(self.text)["input_ids"])
            if both[:2] == [bos, bos]:
                self.say(
                    NOTE, f"the template writes {name} and so does the tokenizer",
                    "tokenise rendered text with add_special_tokens=False, as is done here",
                )  # fmt: skip
            self.right(f"{name} begins a conversation once")

    def round_trip(self) -> None:
        again = self.tokenizer.decode(self.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if again.strip() == self.text.strip():
            self.right("text survives the way to tokens and back")
        else:
            at = next((n for n, (a, b) in enumerate(zip(self.text, again, strict=False)) if a != b), len(again))
            lost, got = self.text[at : at + 20], again[at : at + 20]
            self.say(
                WARNING, f"tokens do not give the text back: {lost!r} became {got!r}",
                "look whether the tokenizer normalises, or lacks characters",
            )  # fmt: skip
        pieces = {
            word: len(self.tokenizer(word, add_special_tokens=False)["input_ids"])
            for word in dict.fromkeys(MARKUP.findall(self.text))
        }
        if split := [word for word, count in pieces.items() if count > 1 and not word.startswith("[")]:
            self.say(
                WARNING, f"{', '.join(split)}: no token of this tokenizer, but {max(pieces.values())} and fewer pieces",
                "take the template of this model's family, or add the tokens and train their embeddings",
            )  # fmt: skip

    def system(self) -> None:
        try:
            text = render(self.tokenizer, (Message("system", SYSTEM), *TALK))
        except Fault as fault:
            self.say(WARNING, f"system messages are refused: {fault}", "put what they say into the first user turn")
            return
        if SYSTEM not in text:
            self.say(WARNING, "system messages are dropped", "put what they say into the first user turn")

    def prompt(self) -> None:
        """A prompt for generation must end where an answer begins."""
        bare, asked = (render(self.tokenizer, TALK[:1], generate=generate) for generate in (False, True))
        whole = render(self.tokenizer, TALK[:2])
        if not whole.startswith(asked):
            self.say(NOTE, f"it asks for an answer with {asked[-24:]!r}, and writes answers otherwise")
        elif asked == bare and whole[len(asked) :].lstrip().find(SAID) > 0:
            self.say(
                WARNING, "add_generation_prompt adds nothing, though answers begin with more than what is said",
                "let the template open the assistant's turn when add_generation_prompt is set",
            )  # fmt: skip

    def marks(self) -> None:
        if not has_marks(self.tokenizer):
            self.say(NOTE, "no {% generation %} marks: answers are found by rendering the turns before them")


def _needs(tokenizer: Any, rows: Sequence[Row]) -> Iterator[Finding]:
    """What rows need that the template does not have."""
    specials = [word for word in Encoder(tokenizer).specials if len(word) > 2]
    refused: dict[str, list[str]] = {}
    tools = spoken = 0
    ignored = False
    for row in rows:
        whole = (*row.messages, *row.chosen)
        spoken += any(word in one.content for one in whole for word in specials)
        try:
            text = render(tokenizer, whole, row.tools)
        except Fault as fault:
            refused.setdefault(str(fault), []).append(row.where)
            continue
        if row.tools:
            tools += 1
            ignored = ignored or text == render(tokenizer, whole)
        calls = [call["function"]["name"] for one in whole for call in one.tool_calls or ()]
        ignored = ignored or any(name not in text for name in calls)
    for reason, where in refused.items():
        yield Finding(ERROR, f"{len(where):,} rows ({', '.join(where[:3])}): {reason}", "they would be left out")
    if ignored:
        yield Finding(ERROR, "rows have tools or calls, and the template does not write them", "take one with tools")
    if spoken:
        yield Finding(
            WARNING, f"{spoken:,} rows write special tokens into what is said, and become turns of their own",
            "take them out of the text",
        )  # fmt: skip
