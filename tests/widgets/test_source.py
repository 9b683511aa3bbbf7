"""Source as it was written, of functions and of what wraps them."""

import functools

import pytest

from speechkit.widgets.source import FENCE, source_of


def twice(x: float) -> float:
    """Of `x`."""
    return 2 * x


class Kernel:
    """As Triton's JITFunction holds what it was made of."""

    fn = staticmethod(twice)


@pytest.mark.parametrize("thing", [twice, functools.wraps(twice)(lambda x: x), Kernel()], ids=["plain", "wraps", "fn"])
def test_the_source_is_that_of_the_function(thing: object) -> None:
    found = source_of(thing)
    assert repr(found) == 'def twice(x: float) -> float:\n    """Of `x`."""\n    return 2 * x'
    assert found._repr_markdown_() == f"{FENCE}python\n{found!r}\n{FENCE}"


def test_what_has_no_source_is_refused() -> None:
    with pytest.raises(TypeError):
        source_of(len)
