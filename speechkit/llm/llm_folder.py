"""The folder of a language model's run: as `training.runfolder` lays it out. Knows paths and JSON only.

best/ holds an adapter in peft's format, or a whole model; both with the tokenizer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from speechkit.errors import PlanError
from speechkit.llm.llm_config import LlmConfig
from speechkit.training.runfolder import RunFolder

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["LlmFolder"]

PLACES = {"resume", "folder", "train", "dev", "distributed"}  # may change too, and need not be told


class LlmFolder(RunFolder):
    """See the head of the file."""

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> LlmFolder:
        """Make the folder if it is absent. Raises OutputError when nothing can be written there."""
        return cls(super().open(folder).path)

    def start(self, config: LlmConfig, origin: dict[str, Any]) -> int:
        """As `begin`, which asks nothing of its settings but their JSON and `resume`."""
        return self.begin(cast("Any", config), origin)

    def _check_same(self, config: Any, same: dict[str, str], last: int) -> None:
        """Raise PlanError, with every difference, where the run in the folder is another one."""
        made = LlmConfig.load(self.path / "run.json")
        found = list(config.differences(made))
        try:
            before = json.loads((self.path / "origin.json").read_text(encoding="utf-8"))["same"]
        except (OSError, ValueError, KeyError):
            before = same
        found += [f"{name} {same[name]}, was {before.get(name)}" for name in same if same[name] != before.get(name)]
        if found:
            free = ", ".join(sorted(LlmConfig.CHANGEABLE - PLACES))
            raise PlanError(
                f"{self.path} holds a run of other settings (step {last}): {'; '.join(found)}. Name another folder, "
                f"give the old settings back, or remove the folder to start over. Only these may change: {free}"
            )
