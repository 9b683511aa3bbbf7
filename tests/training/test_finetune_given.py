"""What a fine-tuning run makes of the data and the base that it is given: left out, told, refused. Real runs, tiny."""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import config as tiny_config
from tiny_runs import examples, losses, model_folder, small

from speechkit.errors import DataError, ModelError, PlanError
from speechkit.training.base import open_base
from speechkit.training.data import Example
from speechkit.training.finetune import finetune
from speechkit.training.vocabulary import Vocabulary

TRAIN, DEV = examples(40), examples(8, seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


def test_clips_shorter_than_a_mask_are_trained_on_with_masking(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    short = [Example(rng.normal(0, 0.1, 1800 + i).astype(np.float32), "a", f"s{i}") for i in range(6)]
    made = finetune(small(tmp_path, model, spec_augment=0.5, steps=2), short, DEV)
    assert np.isfinite(losses(tmp_path)).all() and made.train_clips == 6


def test_a_label_that_cannot_fit_is_left_out_and_listed(model: Path, tmp_path: Path) -> None:
    crowded = Example(TRAIN[0].audio[:3200], "abcdefghij" * 3, "crowded")
    made = finetune(small(tmp_path, model, steps=1), [*TRAIN, crowded], DEV)
    assert made.train_clips == 40
    listed = json.loads((tmp_path / "data.json").read_text())["left_out"]
    assert [(row["name"], row["kind"]) for row in listed] == [("crowded", "label longer than frames")]


def test_a_pretrained_checkpoint_gets_a_head_and_a_vocabulary_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Wav2Vec2ForPreTraining(tiny_config(Wav2Vec2Config, proj_codevector_dim=8, codevector_dim=8))
    encoder.save_pretrained(tmp_path / "encoder")
    config = small(tmp_path / "run", tmp_path / "encoder", vocabulary="auto", steps=2)
    made = finetune(config, TRAIN, DEV)
    assert any("has no CTC head" in note for note in made.notes)
    assert any("a new head: 13 outputs" in note for note in made.notes)
    assert made.best is not None
    assert Vocabulary.load(made.best).letters == tuple("abcdefghij")
    with pytest.raises(PlanError, match=r"vocabulary is 'keep', but .* has no CTC head"):
        finetune(config.replace(vocabulary="keep", folder=str(tmp_path / "other")), TRAIN, DEV)


def test_characters_that_the_model_lacks_get_outputs_and_a_foreign_alphabet_a_new_head(
    model: Path, tmp_path: Path
) -> None:
    accented = [replace(row, text=row.text.replace("a", "ä")) for row in TRAIN]
    made = finetune(small(tmp_path / "a", model, vocabulary="auto", steps=1), accented, DEV)
    assert made.best is not None and Vocabulary.load(made.best).tokens[-1] == "ä"
    assert len(Vocabulary.load(made.best)) == 14
    table = str.maketrans("abcdefghij", "абвгдежзик")
    cyrillic = [replace(row, text=row.text.translate(table)) for row in TRAIN]
    dev = [replace(row, text=row.text.translate(table)) for row in DEV]
    made = finetune(small(tmp_path / "b", model, vocabulary="auto", steps=1), cyrillic, dev)
    assert any("cannot write 100% of the letters" in note for note in made.notes)
    assert made.best is not None and set(Vocabulary.load(made.best).letters) == set("абвгдежзик")


def test_a_pretrained_checkpoint_in_the_old_format_is_read_and_a_harmful_pickle_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Wav2Vec2ForPreTraining(tiny_config(Wav2Vec2Config, proj_codevector_dim=8, codevector_dim=8))
    encoder.config.save_pretrained(tmp_path / "encoder")
    torch.save(encoder.state_dict(), tmp_path / "encoder/pytorch_model.bin")
    with pytest.warns(UserWarning, match="restricted unpickler"):
        made = open_base(str(tmp_path / "encoder"))
    assert torch.equal(made.model.wav2vec2.masked_spec_embed, encoder.wav2vec2.masked_spec_embed)
    (tmp_path / "encoder/pytorch_model.bin").write_bytes(pickle.dumps(Harm(str(tmp_path / "harmed"))))
    with pytest.warns(UserWarning), pytest.raises(ModelError, match="cannot be loaded"):
        open_base(str(tmp_path / "encoder"))
    assert not (tmp_path / "harmed").exists()


class Harm:
    """Makes a folder when a careless reader unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_a_script_that_the_model_does_not_write_is_named_and_kept_out_on_request(model: Path, tmp_path: Path) -> None:
    astray = [*TRAIN, *(replace(row, text="привет", name=f"x{row.name}") for row in examples(3, seed=5))]
    made = finetune(small(tmp_path / "a", model, vocabulary="auto", steps=1), astray, DEV)
    assert any("Cyrillic is new to the model" in note and "vocabulary='keep'" in note for note in made.notes)
    made = finetune(small(tmp_path / "b", model, vocabulary="keep", steps=1), astray, DEV)
    assert "left out of 43 training rows: 3 unexpected script (data.json lists them)" in made.notes


def test_the_vocabulary_doctor_and_sounds_on_both_sides_are_in_the_notes(model: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    odd = [*TRAIN, replace(TRAIN[0], text=f"{TRAIN[0].text} ö ö", name="odd", audio=DEV[0].audio)]
    config = small(tmp_path, model, vocabulary="keep", steps=1)
    made = finetune(config, odd, DEV, on_data=lambda name, report: told.update({name: report}))
    assert any(note.startswith("unknown characters: ") and "ö" in note for note in made.notes)
    assert [row.name for row in told["development"].of_kind("in the training data too")] == [DEV[0].name]


def test_what_was_found_in_the_data_is_told_before_anything_is_trained(model: Path, tmp_path: Path) -> None:
    order: list[Any] = []
    odd = replace(TRAIN[0], text="ö ü", name="odd", fault="line 3 has 5 fields for 3 columns")
    finetune(
        small(tmp_path, model, vocabulary="auto", steps=1),
        [*TRAIN, odd],
        DEV,
        on_data=lambda name, report: order.append((name, report.counts)),
        on_point=lambda point: order.append(point.step),
    )
    assert order == [("training", {"malformed row": 1}), ("development", {}), 0, 1]
    assert len(Vocabulary.load(tmp_path / "best")) == 13, "a malformed row adds no letter"


def test_another_architecture_and_a_broken_folder_are_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="bert model, which cannot be given a CTC head"):
        finetune(small(tmp_path / "run", tmp_path / "bert"), TRAIN, DEV)
    with pytest.raises(ModelError, match="does not exist"):
        finetune(small(tmp_path / "run", tmp_path / "nothing"), TRAIN, DEV)
    with pytest.raises(PlanError, match="top-9 was asked of a model with 2 encoder layers"):
        finetune(small(tmp_path / "run", model, strategy="top-9"), TRAIN, DEV)
    with pytest.raises(PlanError, match=r"strategies have no option 'lora_rnk'; did you mean 'lora_rank'\?"):
        finetune(small(tmp_path / "run", model, strategy_options={"lora_rnk": 2}), TRAIN, DEV)


def test_data_that_cannot_be_used_is_refused_before_anything_is_trained(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="development set is empty"):
        finetune(small(tmp_path, model), TRAIN, [])
    with pytest.raises(DataError, match="the training data: none of the 2 rows can be trained on: 2 too short"):
        finetune(small(tmp_path, model, min_s=60, max_s=90), TRAIN[:2], DEV)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_one_speaker_and_speakers_in_both_sets_are_said(model: Path, tmp_path: Path) -> None:
    alone = [replace(row, speaker="anna") for row in TRAIN]
    made = finetune(small(tmp_path, model, steps=1), alone, [replace(row, speaker="anna") for row in DEV])
    assert any("one speaker only (anna)" in note for note in made.notes)
    assert any("1 speakers are in both sets (anna)" in note for note in made.notes)
