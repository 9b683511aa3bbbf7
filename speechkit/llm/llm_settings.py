"""What settings of a run have in common: JSON, changes, differences, types. A base for frozen dataclasses.

In: keyword arguments, or JSON. Out: an object that was checked. Knows no torch: the command line reads settings before
anything heavy is loaded.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from dataclasses import replace as replaced
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from speechkit.errors import PlanError
from speechkit.training.settings import check_names, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings", "check_choice", "check_least", "check_positive", "check_shares"]

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,), "tuple": (tuple,), "None": (type(None),),
}  # fmt: skip
_SPOKEN = {"None": "null", "tuple": "a list of strings"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Fields of str, int, float, bool and lists of str; subclasses add them, and check ranges in `__post_init__`."""

    CHANGEABLE: ClassVar[frozenset[str]] = frozenset()  # what may differ when a run is resumed

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, PathLike):
                object.__setattr__(self, one.name, fspath(value))
            elif isinstance(value, list):  # JSON knows no tuple
                object.__setattr__(self, one.name, tuple(value))
        self._check_types()

    def replace(self, **changes: Any) -> Self:
        """The same settings but for `changes`. Raises PlanError for a name that is no setting."""
        check_names(changes, self._names(), f"{type(self).__name__}.replace")
        return replaced(self, **changes)

    def to_json(self) -> str:
        """All settings as indented JSON; the inverse of :meth:`from_json`."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the configuration") -> Self:
        """JSON object → settings; what it does not name keeps its default.

        Raises PlanError for text that is no JSON object, a name that is no setting (naming the nearest that is), or a
        value that a setting cannot have. `where` opens those messages.
        """
        return cls(**read_settings(text, cls._names(), where))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """A JSON file, for example `run.json` of an earlier run → settings. Raises PlanError as :meth:`from_json`."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"{path} cannot be read ({error}); give a JSON file of settings") from error
        return cls.from_json(text, str(path))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the settings as a JSON file; the inverse of :meth:`load`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def differences(self, other: Self) -> tuple[str, ...]:
        """What keeps a run of `other` from going on as this one: `learning_rate is 0.001, was 0.0003`, one each."""
        return tuple(
            f"{name} is {getattr(self, name)!r}, was {getattr(other, name)!r}"
            for name in self._names()
            if name not in self.CHANGEABLE and getattr(self, name) != getattr(other, name)
        )

    @classmethod
    def _names(cls) -> list[str]:
        return [one.name for one in fields(cls)]

    def _check_types(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            names = [name.strip().partition("[")[0] for name in str(one.type).split("|")]
            # JSON writes 24.0 as 24; that True is an int is Python's history
            kinds = tuple(kind for name in names for kind in _KINDS[name])
            right = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
            if isinstance(value, tuple):
                right = right and all(isinstance(part, str) for part in value)
            if not right:
                wanted = " or ".join(_SPOKEN.get(name, name) for name in names)
                raise PlanError(f"{one.name} is {value!r}, which is of the wrong type; it should be {wanted}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise PlanError for a value that is none of `allowed`."""
    if value not in allowed:
        raise PlanError(f"{name} is {value!r}; it can be {', '.join(repr(known) for known in allowed)}")


def check_least(config: Settings, least: Mapping[str, float]) -> None:
    """Raise PlanError for a setting below what it may be at least; None passes."""
    for name, limit in least.items():
        value = getattr(config, name)
        if value is not None and not value >= limit:
            raise PlanError(f"{name} is {value}; it should be {limit} or more")


def check_positive(config: Settings, names: tuple[str, ...]) -> None:
    """Raise PlanError for a setting that is not above 0, or not finite; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise PlanError(f"{name} is {value}; it should be more than 0, and finite")


def check_shares(config: Settings, names: tuple[str, ...]) -> None:
    """Raise PlanError for a share outside [0, 1]."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise PlanError(f"{name} is {value}, a share: it should lie between 0 and 1")
