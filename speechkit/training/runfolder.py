"""The folder of a run: what it was told, what it reported, where it can go on, its best model. Paths and JSON only.

    run.json       the configuration          curve.jsonl    every point of the run
    origin.json    versions, data, base       checkpoints/   to go on from; the newest few
    data.json      which rows were left out   best/          a transformers folder that `load_asr` opens
    result.json    how it ended               README.md      the model card, also in best/

Whatever must not be half there is written beside its place and renamed: a full disk or a kill leaves what was there
before. Knows neither torch nor the trainer.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError, OutputError, PlanError
from speechkit.training.config import CHANGEABLE, FinetuneConfig
from speechkit.training.curve import Curve
from speechkit.training.storage import writing

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from speechkit.training.curve import Point

__all__ = ["RunFolder"]

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class RunFolder:
    """`path` and what is in it; made by :meth:`open`."""

    path: Path

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> RunFolder:
        """Make the folder if it is absent. Raises OutputError when nothing can be written there."""
        path = Path(folder).expanduser()
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror or error}); name another folder") from error
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def staging(self) -> Path:
        """Where a checkpoint is written before it is renamed into place."""
        return self.checkpoints / ".saving"

    @property
    def best(self) -> Path:
        return self.path / "best"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        found = (CHECKPOINT.fullmatch(path.name) for path in self.checkpoints.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"checkpoint-{step}"

    def begin(self, config: FinetuneConfig, origin: dict[str, Any]) -> int:
        """Record what the run is, or check that the one in the folder may go on; returns the step it goes on from.

        `origin["same"]` holds what must not change between sittings besides the configuration: data and base model.
        Raises PlanError when a run is there and `config.resume` is False, when it was another run (the message lists
        the differences and what may be changed), or when only its model is left.
        """
        self.recover()
        last = max(self.steps(), default=0)
        record = self.path / "run.json"
        if last and record.is_file():
            if not config.resume:
                raise PlanError(
                    f"{self.path} holds a run that reached step {last}, and resume is False: name another folder, or "
                    "remove this one to start over"
                )
            self._check_same(config, origin["same"], last)
        if not last and self.best.is_dir() and (self.path / "result.json").is_file():
            raise PlanError(
                f"{self.path} holds the model of a finished run whose checkpoints are gone, and a new run would write "
                "over it: name another folder, or remove this one to start over"
            )
        with self.writing("run.json"):
            self.write("run.json", config.to_json())
            self.write_json("origin.json", origin)
        return last

    def recover(self) -> None:
        """Tidy up after a kill: drop what was half written, put back a best model that was being replaced."""
        shutil.rmtree(self.staging, ignore_errors=True)
        old = self.path / "best.old"
        if old.is_dir() and not self.best.is_dir():
            old.rename(self.best)
        for name in ("best.old", "best.new"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def rewind(self, step: int, total: int) -> Curve:
        """The curve as it stood at `step`, on disk too: what came after is computed again. `total`: planned steps."""
        path = self.path / "curve.jsonl"
        try:
            points = Curve.load(path).points if path.is_file() else ()
        except DataError:
            points = ()  # killed while the first line was written
        kept = tuple(point for point in points if point.step <= step) if step else ()
        curve = Curve(kept, total, self.path.name)
        with self.writing("curve.jsonl"):
            curve.save(path)
        return curve

    def append(self, point: Point) -> None:
        """One more line of the curve."""
        row = {key: value for key, value in asdict(point).items() if value is not None}
        with self.writing("curve.jsonl"), (self.path / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def publish(self, fresh: Path, place: Path) -> None:
        """Put the folder `fresh` where `place` is, or is to be; at every moment one of the two is whole."""
        old = place.with_name(f"{place.name}.old")
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        fresh.rename(place)
        shutil.rmtree(old, ignore_errors=True)

    def prune(self, keep: int) -> None:
        """Remove all checkpoints but the newest `keep`."""
        for step in self.steps()[:-keep]:
            shutil.rmtree(self.checkpoint(step), ignore_errors=True)

    def write(self, name: str, text: str) -> None:
        """A text file, whole or not at all."""
        path = self.path / name
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)

    def write_json(self, name: str, row: Any) -> None:
        self.write(name, json.dumps(row, ensure_ascii=False, indent=2, default=str) + "\n")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """While open, a disk that is full or cannot be written becomes an OutputError that names what survives."""
        with writing(self.path / what, self._survives):
            yield

    def _survives(self) -> str:
        steps = self.steps()
        return f"checkpoint-{steps[-1]} is whole" if steps else ""

    def _check_same(self, config: FinetuneConfig, same: dict[str, str], last: int) -> None:
        made = FinetuneConfig.load(self.path / "run.json")
        # `where` they lie is not part of what they are
        found = list(config.differences(replace(made, folder=config.folder)))
        try:
            before = json.loads((self.path / "origin.json").read_text(encoding="utf-8"))["same"]
        except (OSError, ValueError, KeyError):
            before = same
        found += [f"{name} {same[name]}, was {before.get(name)}" for name in same if same[name] != before.get(name)]
        if found:
            free = ", ".join(sorted(CHANGEABLE - {"resume", "folder", "train", "dev"}))
            raise PlanError(
                f"{self.path} holds a run of other settings (step {last}): {'; '.join(found)}. Name another folder, "
                f"give the old settings back, or remove the folder to start over. Only these may change: {free}"
            )
