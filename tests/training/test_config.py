"""The configuration is checked, written, read back and compared."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import PlanError
from speechkit.training.config import CHANGEABLE, FinetuneConfig


@given(
    st.builds(
        FinetuneConfig,
        model=st.text(max_size=20),
        steps=st.integers(1, 10**6),
        minutes=st.none() | st.floats(0.01, 1e4),
        strategy=st.sampled_from(["head", "all", "adapters", "lora", "distil", "top-1", "top-12"]),
        learning_rate=st.floats(1e-9, 1.0),
        strategy_options=st.dictionaries(st.text(max_size=5), st.integers()),
        augmentation=st.none() | st.dictionaries(st.text(max_size=5), st.floats(0, 1)),
        language=st.none() | st.text(max_size=3),
    )
)
def test_what_is_written_is_what_is_read(config: FinetuneConfig) -> None:
    assert FinetuneConfig.from_json(config.to_json()) == config


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"steps": 3, "model": "demo/en"}', encoding="utf-8-sig")
    assert FinetuneConfig.load(file) == FinetuneConfig(steps=3)


def test_a_misspelt_setting_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(PlanError, match=r"no setting 'learning_rat'; did you mean 'learning_rate'\?"):
        FinetuneConfig.from_json('{"steps": 1, "learning_rat": 1e-3}')
    with pytest.raises(PlanError, match=r"run.json has no setting 'zzzz'; there are: model, folder"):
        FinetuneConfig.from_json('{"zzzz": 1}', "run.json")
    with pytest.raises(PlanError, match="did you mean 'accumulation'"):
        FinetuneConfig(steps=1).replace(acumulation=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "holds a list; it should be an object"),
        ("{", "is not JSON"),
        ('{"steps": "many"}', "steps is 'many', which is of the wrong type; it should be int or null"),
        ('{"steps": 1, "batch_s": null}', "batch_s is None, which is of the wrong type; it should be float"),
        ('{"steps": 2.5}', "steps is 2.5, which is of the wrong type"),
        ('{"steps": true}', "steps is True, which is of the wrong type"),
        ('{"steps": 1, "folder": 7}', "folder is 7, which is of the wrong type; it should be str"),
        ('{"steps": 1, "resume": "no"}', "resume is 'no', which is of the wrong type; it should be bool"),
        ('{"steps": 1, "augmentation": ["noise"]}', "it should be dict or null"),
    ],
)
def test_text_that_is_no_configuration_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        FinetuneConfig.from_json(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.json cannot be read .*give a JSON file"):
        FinetuneConfig.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "the run has no end: give steps, epochs or minutes"),
        ({"steps": 0}, "steps is 0; it should be more than 0"),
        ({"minutes": -1}, "minutes is -1"),
        ({"steps": 1, "strategy": "top-K"}, "with a number of layers for K"),
        ({"steps": 1, "strategy": "top-0"}, "strategy is 'top-0'"),
        ({"steps": 1, "strategy": "bottom"}, "strategy is 'bottom'; it can be 'head'"),
        ({"steps": 1, "precision": "int8"}, "precision is 'int8'; it can be 'auto'"),
        ({"steps": 1, "vocabulary": "mine"}, "vocabulary is 'mine'"),
        ({"steps": 1, "batch_s": 0}, "batch_s is 0"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning_rate is nan"),
        ({"steps": 1, "batch_s": float("inf")}, "batch_s is inf; it should be more than 0, and finite"),
        ({"steps": 1, "seed": -1}, "seed is -1; it should be 0 or more"),
        ({"steps": 1, "accumulation": 0}, "accumulation is 0; it should be 1 or more"),
        ({"steps": 1, "warmup": 0.7, "decay": 0.7}, "more than the whole run together"),
        ({"steps": 1, "layerdrop": 1.5}, "layerdrop is 1.5, a share"),
        ({"steps": 1, "min_s": 3.0, "max_s": 2.0}, "no clip would be left"),
        ({"steps": 1, "head_learning_rate": 0}, "head_learning_rate is 0"),
        ({"steps": 1, "layer_decay": 0}, "layer_decay is 0"),
        ({"steps": 1, "workers": -1}, "workers is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        FinetuneConfig(**settings)  # type: ignore[arg-type]


def test_places_may_be_paths() -> None:
    config = FinetuneConfig(steps=1, model=Path("model"), folder=Path("run"), train=Path("a.csv"))  # type: ignore[arg-type]
    assert config == FinetuneConfig(steps=1, model="model", folder="run", train="a.csv")
    assert FinetuneConfig.from_json(config.to_json()) == config


def test_differences_name_what_a_resumed_run_may_not_change_and_nothing_else() -> None:
    made = FinetuneConfig(steps=10)
    assert made.replace(steps=20, minutes=3.0, patience=2, workers=1, resume=False).differences(made) == ()
    changed = made.replace(seed=7, strategy="head")
    assert changed.differences(made) == ("strategy is 'head', was 'all'", "seed is 7, was 0")


def test_every_setting_carries_a_comment_and_every_changeable_one_exists() -> None:
    source = Path(__file__).parents[2].joinpath("speechkit/training/config.py").read_text(encoding="utf-8")
    names = {one.name for one in dataclasses.fields(FinetuneConfig)}
    commented = set(re.findall(r"^    (\w+): [^\n#]+  # \S", source, re.MULTILINE))
    assert names <= commented
    assert names >= CHANGEABLE
    assert set(json.loads(FinetuneConfig(steps=1).to_json())) == names
