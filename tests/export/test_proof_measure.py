"""The numbers of a proof, beside direct computation; and what it takes to pass."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from speechkit.errors import ExportError
from speechkit.export.proof_llama import Answers, parts_of
from speechkit.export.proof_measure import Following, chats_alike, continuations_alike, following, stops_alike
from speechkit.export.proof_report import Parity, Proof, judged, thresholds_of
from speechkit.export.proof_source import Chat, Facts, Row, stops_of, stripping

RNG = np.random.default_rng(0)


def distributions(size: int, apart: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.from_numpy(RNG.normal(size=size) * 2)
    return logits.log_softmax(-1), (logits + apart * torch.from_numpy(RNG.normal(size=size))).log_softmax(-1)


def test_kl_over_the_whole_vocabulary_is_torchs() -> None:
    found, wanted = Following(), []
    for _ in range(5):
        p, q = distributions(50)
        found.add(p.float().numpy(), np.arange(50), q.numpy())
        wanted.append(float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")))
    assert found.mean_kl == pytest.approx(np.mean(wanted), rel=1e-4)
    assert found.positions == 5


@pytest.mark.parametrize("top", [1, 5, 20, 49])
def test_kl_over_some_tokens_and_a_bucket_for_the_rest_bounds_it_from_below(top: int) -> None:
    p, q = distributions(50, apart=1.0)
    whole, part = Following(), Following()
    whole.add(p.float().numpy(), np.arange(50), q.numpy())
    ids = q.argsort(descending=True)[:top].numpy()
    part.add(p.float().numpy(), ids, q.numpy()[ids])
    assert whole.mean_kl is not None and part.mean_kl is not None
    assert 0 <= part.mean_kl <= whole.mean_kl + 1e-6


def test_top1_counts_positions_with_the_same_likeliest_token() -> None:
    found = Following()
    for best in (0, 1, 1, 1):
        logits = np.full(4, -3.0)
        logits[best] = 0.0
        found.add(np.log(np.array([0.1, 0.7, 0.1, 0.1], dtype=np.float32)), np.arange(4), logits)
    assert found.top1 == 0.75 and found.ties == 0


def test_where_the_source_is_undecided_the_other_token_is_a_tie() -> None:
    found = Following()
    for second in (0.49, 0.47, 0.44):  # 0.02, 0.06 and 0.13 nats below 0.5
        source = np.log(np.array([0.5, second, 0.5 - second + 1e-4], dtype=np.float32))
        found.add(source, np.arange(3), np.array([-3.0, 0.0, -3.0]))
    assert (found.top1, found.ties) == (0.0, 2)


def test_values_that_are_not_finite_are_seen() -> None:
    found = Following()
    found.add(np.log(np.full(3, 1 / 3, dtype=np.float32)), np.arange(3), np.array([np.nan, 0.0, -1.0]))
    assert not found.finite


def row(continued: tuple[int, ...], logp: list[list[float]]) -> Row:
    return Row((7, 8), continued, "text", 2, np.log(np.array(logp, dtype=np.float32)))


def test_a_token_that_the_source_has_not_is_left_out_of_the_comparison() -> None:
    answers = Answers(logprobs=[[[[9, -0.1], [1, -0.2]]]])
    assert following([row((1, 2), [[0.1, 0.8, 0.1]])], answers).positions == 1


def test_continuations_that_part_at_a_tie_are_the_same_and_counted() -> None:
    near, far = [[0.4998, 0.5002]], [[0.2, 0.8]]
    parity, ties = continuations_alike([row((1,), near), row((1,), far)], [[0], [1]], ["a", "b"], "F32")
    assert (parity.same, parity.of, ties) == (2, 2, 1)
    parity, ties = continuations_alike([row((1,), near), row((1,), far)], [[1], [0]], ["a", "b"], "F32")
    assert (parity.same, ties) == (1, 0) and "nats apart" in parity.first


def test_a_continuation_that_stops_short_differs() -> None:
    parity, _ = continuations_alike([row((1, 1), [[0.2, 0.8], [0.2, 0.8]])], [[1]], ["b"], "F32")
    assert parity.same == 0


def facts(**more: Any) -> Facts:
    given = {
        "name": "m", "vocabulary": 2, "texts": (), "tokens": (), "chats": (), "rows": (), "asked": 0, "stops": (),
        "bos": "", "begins": False, "drawn": 1,
    }  # fmt: skip
    return Facts(**{**given, **more})


def chat(text: str, ids: tuple[int, ...], kind: str = "one turn") -> Chat:
    return Chat(kind, ({"role": "user", "content": "x"},), (), text, ids)


def test_a_begin_token_that_llama_cpp_puts_back_as_a_token_is_no_difference() -> None:
    known = facts(chats=(chat("<s>hi", (1, 5)),), bos="<s>", begins=True)
    parity, notes = chats_alike(known, Answers(chats=[{"text": "hi", "ids": [1, 5]}]))
    assert parity is not None and parity.same == 1 and not notes
    parity, _ = chats_alike(known, Answers(chats=[{"text": "hi", "ids": [5]}]))
    assert parity is not None and parity.same == 0  # it was lost


def test_a_begin_token_that_only_llama_cpp_puts_before_a_chat_is_told() -> None:
    known = facts(chats=(chat("hi", (5,)),), bos="<s>", begins=True)
    parity, notes = chats_alike(known, Answers(chats=[{"text": "hi", "ids": [1, 5]}]))
    assert parity is not None and parity.same == 1 and "puts <s> before" in notes[0]


def test_a_template_that_llama_cpp_cannot_render_differs() -> None:
    parity, _ = chats_alike(facts(chats=(chat("hi", (5,)),)), Answers(chats=[{"error": "no such filter"}]))
    assert parity is not None and parity.same == 0 and "no such filter" in parity.first


def test_a_history_of_tool_calls_is_told_and_not_judged() -> None:
    known = facts(chats=(chat("hi", (5,)), chat("call", (6,), "tool calls")))
    answers = Answers(chats=[{"text": "hi", "ids": [5]}, {"text": "other", "ids": [6]}])
    parity, notes = chats_alike(known, answers)
    assert parity is not None and (parity.same, parity.of) == (1, 1) and "tool calls" in notes[0]


def test_white_space_that_a_token_swallows_is_told() -> None:
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    bare.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|user|>")])
    assert stripping(PreTrainedTokenizerFast(tokenizer_object=bare)) == ("<|end|>",)
    known = facts(chats=(chat("<|end|>\nhi", (1, 5)),), stripping=("<|end|>",))
    parity, notes = chats_alike(known, Answers(chats=[{"text": "<|end|>\nhi", "ids": [1, 4, 5]}]))
    assert parity is not None and parity.same == 1 and "white space beside <|end|>" in notes[0]


def test_a_stop_that_does_not_end_an_answer_is_named() -> None:
    parity = stops_alike(facts(stops=(2, 3)), Answers(stops={2: True, 3: False}))
    assert parity is not None and parity.same == 1 and "token 3" in parity.first


PASSED = Proof(
    "m.gguf", "m", "Q8_0", prompts=1, tokens=100, tokenizer=Parity(3, 3), top1=1.0, kl=0.0, max_logprob_difference=0.0,
    greedy=Parity(1, 1), thresholds=thresholds_of("Q8_0"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("quant", "least"),
    [
        ("Q8_0", 0.99),
        ("Q6_K", 0.97),
        ("Q5_K_M", 0.95),
        ("Q5_K_S", 0.95),
        ("Q4_K_M", 0.9),
        ("Q4_K_S", 0.9),
        ("Q4_0", 0.9),
    ],
)
def test_each_type_has_its_threshold(quant: str, least: float) -> None:
    proof = replace(PASSED, quant=quant, thresholds=thresholds_of(quant))
    assert judged(replace(proof, top1=least)).passed
    found = judged(replace(proof, top1=least - 0.001))
    assert not found.passed and f"{quant} must have ≥ {least:g}" in found.reasons[0]
    tied = judged(replace(proof, top1=least - 0.01, ties=1))
    assert proof.tokens == 100 and tied.passed and "1 more at a tie" in tied.text()


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16"])
def test_whole_numbers_must_say_the_same_text(quant: str) -> None:
    proof = replace(PASSED, quant=quant, thresholds=thresholds_of(quant))
    assert judged(proof).passed
    assert not judged(replace(proof, greedy=Parity(31, 32, "x"))).passed
    assert not judged(replace(proof, kl=float("nan"))).passed


def test_one_text_cut_otherwise_fails_whatever_the_rest_is() -> None:
    found = judged(replace(PASSED, tokenizer=Parity(99, 100, "'a' → [1] in the source, [2] in the file")))
    assert not found.passed and "'a' → [1]" in found.text()
    with pytest.raises(ExportError, match="token ids"):
        found.enforce()
    assert found.enforce(force=True).verdict == "failed, kept by force"


def test_nothing_measured_is_nothing_passed() -> None:
    assert not judged(replace(PASSED, top1=None, kl=None, max_logprob_difference=None)).passed


def test_the_parts_of_a_split_file_are_found(tmp_path: Any) -> None:
    names = [f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for name in (*names, "m-00001-of-00003.gguf", "other.gguf"):
        (tmp_path / name).touch()
    assert [path.name for path in parts_of(tmp_path / names[0])] == names
    assert parts_of(tmp_path / "other.gguf") == (tmp_path / "other.gguf",)


def test_a_stop_beyond_the_vocabulary_can_never_come_and_is_none() -> None:
    config = LlamaConfig(vocab_size=100)
    settings = SimpleNamespace(eos_token_id=[3, 128009])
    model, tokenizer = SimpleNamespace(config=config, generation_config=settings), SimpleNamespace(eos_token_id=2)
    assert stops_of(model, tokenizer) == (2, 3)
