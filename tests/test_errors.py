"""Errors are part of the interface: each is caught by its own name, by the family name and by the built-in it is."""

from __future__ import annotations

import pytest

from speechkit import errors


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("AudioError", ValueError),
        ("ModelError", ValueError),
        ("DataError", ValueError),
        ("OutputError", OSError),
        ("PlanError", ValueError),
        ("ExportError", RuntimeError),
        ("MissingExtra", ImportError),
    ],
)
def test_an_error_is_also_the_built_in_that_callers_already_catch(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    with pytest.raises(builtin, match="what was given") as caught:
        raise kind("what was given")
    assert isinstance(caught.value, errors.SpeechkitError)
    assert str(caught.value) == "what was given"


def test_every_error_class_is_listed_and_documented() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds == set(errors.__all__)
    assert all(getattr(errors, name).__doc__ for name in kinds)
