"""Special tokens of a model and its tokenizer, made to agree: what ends an answer, what fills a row, what begins one.

In: a model and a tokenizer, changed in place. Out: one sentence for each thing that was mended; none means that
nothing was. A pad that is the eos teaches a model never to stop, because padding is left out of the loss; an eos list
without the token that ends a turn makes it talk on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from speechkit.llm.chat import BREAKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["end_of_turn", "grow", "repair"]

# what vocabularies hold for padding or keep in reserve; tokens with a meaning of their own are the last choice
PADS = (
    "<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|vision_pad|>", "<|reserved_special_token_0|>",
    "<unused0>", "<unk>", "<|endoftext|>",
)  # fmt: skip
NEW_PAD = "<|pad|>"
PROBE = "Qx7Zanswer9"


def repair(model: Any, tokenizer: Any, stops: Sequence[str] = ()) -> tuple[str, ...]:
    """Mend what disagrees; `stops` are the family's stop tokens, looked for where the template does not tell."""
    done = [*_begin(model, tokenizer), *_end(model, tokenizer, stops), *_pad(model, tokenizer, stops)]
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        grow(model, len(tokenizer))
        done.append(f"the tokenizer has {len(tokenizer):,} tokens, the model had rows for {rows:,}: rows added")
    return tuple(done)


def end_of_turn(tokenizer: Any, stops: Sequence[str] = ()) -> str | None:
    """The special token that the chat template puts behind an answer, or of `stops` the one it names; None: neither."""
    if not tokenizer.chat_template:
        return None
    from jinja2 import TemplateError

    asked = [{"role": "user", "content": "A"}, {"role": "assistant", "content": PROBE}]
    try:
        text = tokenizer.apply_chat_template(asked, tokenize=False)
    except (TemplateError, *BREAKS):
        text = ""  # the lint of templates says what is wrong; here the names in it are looked at
    special = [*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens]
    if text and special:
        marks = sorted(filter(None, set(special)), key=len, reverse=True)
        if found := re.search("|".join(map(re.escape, marks)), str(text).rpartition(PROBE)[2]):
            return found[0]
    template, known = str(tokenizer.chat_template), tokenizer.get_vocab()
    return next((token for token in stops if token in known and token in template), None)


def _begin(model: Any, tokenizer: Any) -> Iterator[str]:
    """The tokenizer makes the rows, so that it is right where the two disagree."""
    for config in _configs(model):
        have, want = getattr(config, "bos_token_id", None), tokenizer.bos_token_id
        if have == want or have is None:
            continue
        yield (
            f"{type(config).__name__} begins a text with token {have}, the tokenizer with "
            f"{_shown(tokenizer, want)}: set to the tokenizer's"
        )
        config.bos_token_id = want


def _end(model: Any, tokenizer: Any, stops: Sequence[str]) -> Iterator[str]:
    turn = end_of_turn(tokenizer, stops)
    if tokenizer.eos_token_id is None:
        if turn is None:
            yield "neither the tokenizer nor a template names a token that ends a text: generation stops at its limit"
            return
        tokenizer.eos_token = turn
        yield f"the tokenizer had no eos token: set to {turn}, which ends a turn of its template"
    eos = tokenizer.eos_token_id
    for config in _configs(model):
        have = _ids(getattr(config, "eos_token_id", None))
        if have and eos not in have:
            yield (
                f"{type(config).__name__} ends a text with token {', '.join(map(str, have))}, the tokenizer with "
                f"{_shown(tokenizer, eos)}: set to the tokenizer's"
            )
            config.eos_token_id = eos
    generation = model.generation_config
    if generation is None:
        return
    have = _ids(generation.eos_token_id)
    wanted = [eos] + ([tokenizer.convert_tokens_to_ids(turn)] if turn else [])
    if missing := list(dict.fromkeys(one for one in wanted if one not in have)):
        generation.eos_token_id = [*have, *missing]
        names = " and ".join(_shown(tokenizer, one) for one in missing)
        yield f"generation did not stop at {names}: added to its eos list"


def _pad(model: Any, tokenizer: Any, stops: Sequence[str]) -> Iterator[str]:
    pad, eos, turn = tokenizer.pad_token, tokenizer.eos_token, end_of_turn(tokenizer, stops)
    if pad is not None and pad not in (eos, turn):
        _set_pad(model, tokenizer.pad_token_id)
        return
    why = "there was no pad token" if pad is None else f"the pad token was {pad}, which ends a text"
    taken = {eos, turn, tokenizer.bos_token, *stops}
    known = tokenizer.get_vocab()
    found = next((token for token in PADS if token in known and token not in taken), None)
    if found is not None:
        tokenizer.pad_token = found
        _set_pad(model, tokenizer.pad_token_id)
        yield f"{why}: {_shown(tokenizer, tokenizer.pad_token_id)}, which the vocabulary has, pads now"
        return
    tokenizer.add_special_tokens({"pad_token": NEW_PAD})
    rows = model.get_input_embeddings().weight.shape[0]
    if grown := tokenizer.pad_token_id >= rows:
        grow(model, len(tokenizer))
    _set_pad(model, tokenizer.pad_token_id)
    room = "one row added to the embeddings" if grown else "the embeddings had a free row"
    yield f"{why}: {_shown(tokenizer, tokenizer.pad_token_id)} was added ({room})"


def grow(model: Any, size: int) -> None:
    """New rows are the mean of the others: neither likely nor unlikely."""
    import torch

    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None and layer.weight.is_floating_point():
                layer.weight[old:] = layer.weight[:old].mean(0)


def _set_pad(model: Any, number: int) -> None:
    for config in (*_configs(model), model.generation_config):
        if config is not None:
            config.pad_token_id = number


def _configs(model: Any) -> list[Any]:
    """Of the whole and of the text, where they are two."""
    text = model.config.get_text_config()
    return [model.config] if text is model.config else [model.config, text]


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _shown(tokenizer: Any, number: int | None) -> str:
    return "none" if number is None else f"{tokenizer.convert_ids_to_tokens(number)} ({number})"
