"""The embedded chat model and the recipe that made it: sizes, answers, held-out questions, notebook 06's new task."""

import json
import random

import pytest
import torch
from safetensors import safe_open

from speechkit import demo, load_llm
from speechkit.demo.readback import one, write_readback
from speechkit.demo.recipes import chat
from speechkit.demo.recipes.chat_card import card
from speechkit.demo.recipes.chat_skills import SHARES, SKILLS, draw, held_out, in_words
from speechkit.errors import DataError
from speechkit.llm.judge import answers, exact_match
from speechkit.llm.rows import read_rows
from speechkit.llm.template_lint import lint

FOLDER = demo.model_path("chat")


@pytest.fixture(scope="module")
def model() -> tuple:
    return load_llm("demo/chat", device="cpu", dtype="float32", kernels=False)  # interpreted here, they are slow


def test_it_is_a_llama_of_at_most_four_million_weights_and_eight_megabytes_whose_widths_suit_k_quants() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert config["model_type"] == "llama" and count <= 4_000_000
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("what is 3 plus 4?", "7."),
        ("What day comes after Monday?", "Tuesday."),
        ("it is 3 o'clock. what time is it in 2 hours?", "5 o'clock."),
        ("Who are you?", "I am the small demo model of speechkit."),
        ("repeat after me: kilo 7, Anna", "kilo 7, Anna."),
    ],
)
def test_prompts_get_sensible_short_answers(model: tuple, asked: str, answer: str) -> None:
    assert answers(*model, [[{"role": "user", "content": asked}]]) == [answer]


@pytest.mark.parametrize("skill", sorted(SHARES))
def test_a_sample_of_held_out_questions_is_answered_nearly_as_well_as_the_card_says(model: tuple, skill: str) -> None:
    stated = json.loads((FOLDER / "recipe.json").read_text())["results"][skill]["exact"]
    found = exact_match(*model, chat.test_questions(skill, 40, seed=5))
    assert found.share >= stated - 0.15, f"{found} but the card says {stated:.1%}"


def test_the_card_is_the_recipes_and_its_figures_are_those_of_the_recipe_file() -> None:
    made = json.loads((FOLDER / "recipe.json").read_text())
    results = made["results"]
    scores = {name: row["exact"] for name, row in results.items()}
    assert (FOLDER / "README.md").read_text() == card(made["recipe"], scores, results["talk"]["questions"])


def test_its_template_passes_the_lint(model: tuple) -> None:
    network, tokenizer = model
    rows = read_rows([{"messages": list(draw(random.Random(n)).messages)} for n in range(20)])
    assert lint(tokenizer, rows.rows, generation_config=network.generation_config).ok


def test_training_and_test_questions_have_no_key_in_common() -> None:
    rng = random.Random(0)
    for skill in SKILLS:
        if skill == "talk":
            continue
        for test in (False, True):
            assert {held_out(draw(rng, skill, test).key) for _ in range(40)} == {test}


def test_every_sum_is_right_in_figures_and_in_words() -> None:
    rng = random.Random(1)
    numbers = {in_words(n): n for n in range(100)} | {str(n): n for n in range(100)}
    signs = {"plus": "+", "+": "+", "and": "+", "minus": "-", "-": "-", "times": "*", "*": "*", "x": "*"}
    for _ in range(500):
        made = draw(rng, "arithmetic", test=True)
        sign, first, second = made.key.split()
        a, b = int(first), int(second)
        assert numbers[made.answer.rstrip(".")] == {"+": a + b, "-": a - b, "*": a * b}[sign]
        assert any(f" {word} " in made.messages[0]["content"] for word, of in signs.items() if of == sign)


def test_the_recipe_trains_goes_on_and_publishes_a_folder_that_opens(tmp_path, monkeypatch) -> None:
    small = [
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
        "--questions",
        "2",
        "--batch-tokens",
        "256",
    ]
    chat.main([*small, "--dialogues", "300", "--steps", "2", "--vocabulary", "300"])
    first = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert first["recipe"]["steps"] == 2 and set(first["results"]) == set(SHARES)
    chat.main([*small, "--dialogues", "300", "--steps", "3", "--vocabulary", "300"])  # from the files made before
    network, tokenizer = load_llm(tmp_path / "out", device="cpu", kernels=False)
    assert network.num_parameters() < 4_000_000 and isinstance(answers(network, tokenizer, [[
        {"role": "user", "content": "hello"}]], 4)[0], str)  # fmt: skip


def test_numbers_and_call_signs_of_the_readbacks_test_never_occur_in_training() -> None:
    rng = random.Random(2)
    trained = {one(rng)[0]["content"].partition(",")[0] for _ in range(300)}
    tested = {one(rng, test=True)[0]["content"].partition(",")[0] for _ in range(300)}
    assert not trained & tested


def test_a_readback_puts_the_call_sign_last() -> None:
    for asked, answer in (one(random.Random(n)) for n in range(50)):
        sign = asked["content"].removeprefix("tower: ").partition(",")[0]
        assert answer["content"].endswith(f", {sign}.")


def test_the_files_of_the_new_task_have_one_broken_row_and_old_dialogues_among_the_new(tmp_path) -> None:
    files = write_readback(tmp_path, train=20, test=8, rehearsal=0.5)
    rows = read_rows(files.train)
    assert len(rows.rows) == 30 and [broken.where for broken in rows.broken] == ["line 3"]
    assert "train.jsonl 31 rows" in str(files)
    assert not read_rows(files.old).broken and len(read_rows(files.old).rows) == 8


@pytest.mark.parametrize("given", [{"train": 0}, {"test": 0}, {"rehearsal": -1.0}])
def test_counts_that_cannot_be_are_refused(given: dict, tmp_path) -> None:
    with pytest.raises(DataError, match="counts from 1, a share from 0 to 10"):
        write_readback(tmp_path, **given)


def test_the_published_weights_are_half_precision() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
