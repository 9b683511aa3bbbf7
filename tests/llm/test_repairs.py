"""Special tokens are mended where model and tokenizer disagree, each mending is told, and nothing else is touched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).parent))

from padless import without_pads
from tiny_llms import tiny
from tiny_tokens import TEMPLATE, VOCABULARY, tokenizer

from speechkit.llm.repairs import end_of_turn, repair

# ends turns with <|tool|>, and eos is <|end|>: as Qwen's base models, whose eos is <|endoftext|>
CHATML = "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' + m['content'] + '<|tool|>' + '\n' }}{% endfor %}"


def model(**more: Any) -> Any:
    made = tiny("llama", vocab_size=VOCABULARY, **more)
    made.generation_config = GenerationConfig(eos_token_id=2, bos_token_id=1, pad_token_id=0)
    return made


def test_a_pair_that_agrees_is_left_as_it_is() -> None:
    bare, tokens = model(), tokenizer()
    before = bare.config.to_dict(), bare.generation_config.to_dict(), dict(tokens.special_tokens_map)
    assert repair(bare, tokens) == ()
    assert (bare.config.to_dict(), bare.generation_config.to_dict(), dict(tokens.special_tokens_map)) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"pad_token": "<|end|>"},
            "the pad token was <|end|>, which ends a text: <|pad|> (0), which the",
        ),
        ({"pad_token": None}, "there was no pad token: <|pad|> (0), which the vocabulary has, pads now"),
    ],
    ids=["pad is eos", "no pad"],
)
def test_a_pad_that_ends_a_text_is_replaced_by_one_of_the_vocabulary(given: dict[str, Any], said: str) -> None:
    bare, tokens = model(), tokenizer(**given)
    (told,) = repair(bare, tokens)
    assert told.startswith(said)
    assert tokens.pad_token_id == 0 != tokens.eos_token_id
    assert bare.config.pad_token_id == bare.generation_config.pad_token_id == 0
    rows = tokens(["a", "abc"], padding=True)
    assert rows["input_ids"][0][-1] == 0 and rows["attention_mask"][0][-1] == 0


def test_a_pad_that_ends_a_turn_is_replaced_too() -> None:
    bare, tokens = model(), tokenizer(CHATML, pad_token="<|tool|>")  # noqa: S106
    told = repair(bare, tokens)
    assert any(text.startswith("the pad token was <|tool|>, which ends a text: <|pad|> (0)") for text in told)


def test_where_the_vocabulary_has_none_a_pad_is_added_with_a_mean_row() -> None:
    bare, tokens = model(), without_pads(tokenizer(pad_token=None))
    before = bare.get_input_embeddings().weight.detach().clone(), bare.get_output_embeddings().weight.detach().clone()
    (told,) = repair(bare, tokens)
    assert told == f"there was no pad token: <|pad|> ({VOCABULARY}) was added (one row added to the embeddings)"
    for layer, old in zip((bare.get_input_embeddings(), bare.get_output_embeddings()), before, strict=True):
        assert layer.weight.shape[0] == VOCABULARY + 1 == bare.config.vocab_size
        assert torch.equal(layer.weight[:-1], old) and torch.allclose(layer.weight[-1], old.mean(0))
    ids = tokens("hello", return_tensors="pt")
    assert bare(**ids).logits.shape[-1] == VOCABULARY + 1


def test_a_token_of_no_use_elsewhere_pads_before_a_row_is_added() -> None:
    tokens = without_pads(tokenizer(pad_token=None))
    tokens.add_special_tokens({"unk_token": "<|endoftext|>"})
    told = repair(tiny("llama", vocab_size=VOCABULARY + 1), tokens)
    assert "<|endoftext|> (263), which the vocabulary has, pads now" in told[-1]


def test_a_free_row_of_the_embeddings_is_taken_for_the_pad() -> None:
    bare = tiny("llama", vocab_size=VOCABULARY + 9)
    told = repair(bare, without_pads(tokenizer(pad_token=None)))
    assert told[-1].endswith("was added (the embeddings had a free row)") and bare.config.vocab_size == VOCABULARY + 9


def test_generation_stops_where_a_turn_of_the_template_ends() -> None:
    bare, tokens = model(), tokenizer(CHATML)
    turn = tokens.convert_tokens_to_ids("<|tool|>")
    (told,) = repair(bare, tokens)
    assert told == f"generation did not stop at <|tool|> ({turn}): added to its eos list"
    assert bare.generation_config.eos_token_id == [2, turn]
    with torch.no_grad():  # a model that says <|tool|> and nothing else
        bare.lm_head.weight.zero_()
        bare.model.norm.weight.fill_(1.0)
        bare.lm_head.weight[turn] = bare(**tokens("hi", return_tensors="pt"), output_hidden_states=True).hidden_states[
            -1
        ][0, -1]
    said = bare.generate(**tokens("hi", return_tensors="pt"), max_new_tokens=9, do_sample=False)
    assert said[0].tolist()[-1] == turn and said.shape[1] == 3


def test_a_missing_eos_is_taken_from_the_template() -> None:
    bare, tokens = model(), tokenizer(CHATML, eos_token=None)
    told = repair(bare, tokens)
    assert told[0] == "the tokenizer had no eos token: set to <|tool|>, which ends a turn of its template"
    assert tokens.eos_token_id == tokens.convert_tokens_to_ids("<|tool|>") == bare.config.eos_token_id


def test_a_template_that_fails_is_looked_through_for_the_end_of_a_turn() -> None:
    tokens = tokenizer("{{ 1 / 0 }}<|end|>", eos_token=None)
    assert end_of_turn(tokens, ("<|end|>",)) == "<|end|>"


def test_without_eos_and_template_it_is_said_that_nothing_ends_a_text() -> None:
    told = repair(model(), tokenizer(None, eos_token=None))
    assert told == (
        "neither the tokenizer nor a template names a token that ends a text: generation stops at its limit",
    )


def test_a_configuration_that_disagrees_with_the_tokenizer_is_set_to_it() -> None:
    bare = model()
    bare.config.bos_token_id, bare.config.eos_token_id = 5, [6, 7]
    told = repair(bare, tokenizer())
    assert told == (
        "LlamaConfig begins a text with token 5, the tokenizer with <|begin|> (1): set to the tokenizer's",
        "LlamaConfig ends a text with token 6, 7, the tokenizer with <|end|> (2): set to the tokenizer's",
    )
    assert (bare.config.bos_token_id, bare.config.eos_token_id) == (1, 2)


def test_a_configuration_with_several_ends_keeps_them() -> None:
    bare = model()
    bare.config.eos_token_id = bare.generation_config.eos_token_id = [2, 6]
    assert repair(bare, tokenizer()) == () and bare.config.eos_token_id == [2, 6]


def test_rows_are_added_for_tokens_beyond_the_embeddings() -> None:
    bare, tokens = model(), tokenizer()
    tokens.add_tokens(["<|new|>", "<|newer|>"])
    (told,) = repair(bare, tokens)
    assert told == "the tokenizer has 265 tokens, the model had rows for 263: rows added"
    assert bare.get_input_embeddings().weight.shape[0] == 265


@pytest.mark.parametrize(
    ("template", "stops", "turn"),
    [
        (TEMPLATE, (), "<|end|>"),
        (CHATML, (), "<|tool|>"),
        (None, ("<|end|>",), None),
        ("{{ raise_exception('no') }}<|tool|>", ("<|none|>", "<|tool|>"), "<|tool|>"),
        ("{{ messages.nothing.there }}", ("<|tool|>",), None),
        ("{{ messages[1].content }} \n", ("<|end|>",), None),
        ("{{ messages[0].content }}", (), None),
    ],
    ids=["marked", "another token", "no template", "one that refuses, by the family's names", "one that is broken",
         "one that ends no turn", "one that leaves answers out"],
)  # fmt: skip
def test_the_end_of_a_turn_is_what_the_template_puts_behind_an_answer(
    template: str | None, stops: tuple[str, ...], turn: str | None
) -> None:
    assert end_of_turn(tokenizer(template), stops) == turn
