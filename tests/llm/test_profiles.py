"""Profiles name classes that transformers has, and each of them is found in a model of the family."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.llm.profiles import PROFILES, profile_of

TYPES = [(kind, profile) for profile in PROFILES for kind in profile.model_types]


@pytest.mark.parametrize(("kind", "profile"), TYPES, ids=[kind for kind, _ in TYPES])
def test_every_class_of_a_profile_is_in_the_model_and_every_norm_in_the_profile(kind: str, profile: object) -> None:
    found = profile_of(kind)
    assert found is profile is not None
    named = {*found.norms, *found.mlps, *found.experts, *found.attentions}
    there = {type(module).__name__ for module in tiny(kind).modules()}
    assert named <= there
    text = {name for name in there if not name.startswith("Siglip")}
    assert {name for name in text if name.endswith(("RMSNorm", "MLP", "Experts"))} <= named


def test_no_type_has_two_profiles_and_an_unknown_one_none() -> None:
    kinds = [kind for kind, _ in TYPES]
    assert len(kinds) == len(set(kinds)) and profile_of("gpt2") is None
