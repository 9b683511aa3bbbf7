"""The judge: batched answers of the embedded chat model beside transformers' one by one, intervals beside scipy's."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binomtest

from speechkit import demo
from speechkit.errors import DataError
from speechkit.llm.judge import Judged, Question, answers, exact_match, questions
from speechkit.llm.rows import read_rows

ASKED = ["what is 3 plus 4?", "Who are you?", "hello", "swap the two parts: alpha 12, echo bravo"]


@pytest.fixture(scope="module")
def chat() -> tuple:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo.model_path("chat")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_batch_of_unequal_prompts_gets_the_answers_that_each_gets_alone(chat: tuple) -> None:
    model, tokenizer = chat
    alone = []
    for text in ASKED:
        ids = tokenizer.apply_chat_template(_user(text), add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        alone.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert answers(model, tokenizer, [_user(text) for text in ASKED], 40) == alone


def test_a_model_in_training_is_in_training_afterwards(chat: tuple) -> None:
    model, tokenizer = chat
    model.train()
    answers(model, tokenizer, [_user("hello")], 4)
    assert model.training
    model.eval()


def test_exact_match_counts_what_is_right_to_the_letter(chat: tuple) -> None:
    asked = [Question(tuple(_user("what is 3 plus 4?")), "7."), Question(tuple(_user("what is 3 plus 4?")), "8.")]
    found = exact_match(*chat, asked, 8)
    assert (found.right, found.share) == (1, 0.5)
    assert found.wrong == (("what is 3 plus 4?", "8.", "7."),)
    assert str(found).startswith("1 of 2 right, 50.0% [") and "'7.' instead of '8.'" in str(found)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (3, 7), (50, 50)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    found = Judged(tuple(Question((), "a") for _ in range(count)), ("a",) * right + ("b",) * (count - right))
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_questions_come_from_lists_of_messages_and_from_rows_with_their_tools() -> None:
    tool = {"type": "function", "function": {"name": "timer", "parameters": {"type": "object", "properties": {}}}}
    messages = [*_user("start"), {"role": "assistant", "content": "done"}]
    [plain] = questions([messages])
    [row] = questions(read_rows([{"messages": messages, "tools": [tool]}]))
    assert plain.expected == row.expected == "done"
    assert [dict(one) for one in row.messages] == [dict(one) for one in plain.messages] == _user("start")
    assert row.tools[0]["function"]["name"] == "timer"


def test_a_conversation_without_an_answer_and_an_empty_list_are_refused() -> None:
    with pytest.raises(DataError, match="conversation 1 does not end with an answer"):
        questions([SimpleNamespace(messages=[SimpleNamespace(role="user", content="hm")], tools=())])
    with pytest.raises(DataError, match="no question to judge by"):
        exact_match(None, None, [])
