"""Which files of a folder are published, as what, and which are not, each with its reason. Looks for secrets in them.

In: `Facts`. Out: `Upload`s (a path on disk, or bytes where a machine's folders were taken out) and what was left out.
Allowed are weights as safetensors or GGUF, and text; never pickles, states of a training, data, hidden files, secrets.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError
from speechkit.export.card_facts import DATA_REPORTS
from speechkit.export.card_weights import tensor_header
from speechkit.export.hub_secrets import Mine, refuse_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.export.card_facts import Facts

__all__ = ["OF_RUN", "PICKLED", "Upload", "gather"]

ALLOWED = frozenset({
    ".safetensors", ".gguf", ".json", ".jsonl", ".txt", ".md", ".jinja", ".model", ".csv", ".tsv", ".toml", ".yaml",
    ".yml", ".png", ".svg", ".jpg", ".jpeg",
})  # fmt: skip
PLAIN = frozenset({"Modelfile", "LICENSE", "LICENCE", "NOTICE", "COPYING"})  # without an ending
OF_RUN = ("run.json", "origin.json", "result.json", "curve.jsonl")  # beside best/: what repeats the run
PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack"})
STATES = re.compile(
    r"^(checkpoint(s$|-)|optimizer|scheduler|rng_state|trainer_state|training_args|scaler|global_step)", re.IGNORECASE
)
SECRET = re.compile(
    r"(^|[._-])(token|secrets?|credentials?|passwords?|passwd|api[_-]?keys?)([._-]|$)|^id_(rsa|dsa|ecdsa|ed25519)|"
    r"\.(pem|key|p12|pfx|keystore)$|^\.(env|netrc|git-credentials|pypirc|npmrc)",
    re.IGNORECASE,
)
UNFINISHED = (".new", ".old", ".tmp", ".partial", ".incomplete", ".part")
TOKENS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})  # where "/tmp" is a token, not a folder
PLACE = re.compile(r"(?:/[^/\s][^/\n]*){2,}/?|~/.+|[A-Za-z]:[\\/].+")  # a string that is a path and nothing else
SMALL = 2**20  # larger JSON is a vocabulary, which names no folder


@dataclass(frozen=True)
class Upload:
    """One file of a push."""

    path: str  # in the repository
    size: int  # bytes
    source: Path | bytes


def gather(
    facts: Facts, files: Sequence[str] | None = None, base: str = "", mine: Mine | None = None
) -> tuple[list[Upload], list[tuple[str, str]]]:
    """(what is published, but for card and changelog; what is not, with the reason), both sorted by path.

    files: glob patterns; only what fits one goes. base: the id to put where an adapter names a folder of this machine
    as its base. mine: this machine's token, to be looked for too. Raises ExportError for a file that holds a secret,
    for weights that were cut, and where none are left.
    """
    uploads, left = [], []
    for path, place in _found(facts):
        if reason := _refusal(path, place) or _outside(place, facts) or _unasked(path, files):
            left.append((path, reason))
            continue
        if place.suffix == ".safetensors":
            tensor_header(place)
        refuse_secrets(path, place, mine)
        made = _cleaned(path, place, facts, base)
        uploads.append(Upload(path, len(made) if isinstance(made, bytes) else place.stat().st_size, made))
    if not any(upload.path.endswith((".safetensors", ".gguf")) for upload in uploads):
        asked = f" that fits {', '.join(map(repr, files))}" if files else ""
        raise ExportError(f"{facts.name} holds no weights{asked}: there would be a card without a model")
    return uploads, left


def _found(facts: Facts) -> list[tuple[str, Path]]:
    """(path in the repository, file): all in the model's folder, and records of the run, its own or of its source."""
    found = {}
    if facts.run is not None:
        for place in sorted(facts.run.iterdir()):
            if place.name != "best" and (place.is_dir() or place.is_file()):  # no broken link, no pipe
                found[place.name + ("/" if place.is_dir() else "")] = place
    elif facts.source is not None and facts.source.run is not None:  # its card speaks of these
        found = {name: facts.source.run / name for name in OF_RUN if (facts.source.run / name).is_file()}
    for place in sorted(facts.model.rglob("*")):
        path = place.relative_to(facts.model).as_posix()
        if place.is_file() and not (path == "README.md" and path in found):
            found[path] = place
    written = ("README.md", "CHANGELOG.md", "versions.json")  # by the push
    return [(path, place) for path, place in sorted(found.items()) if path not in written]


def _refusal(path: str, place: Path) -> str:
    """Why a file is not published; "" for one that is."""
    name, ending = place.name, place.suffix.lower()
    parts = Path(path).parts
    if path.endswith("/"):
        return "states to go on training from" if name == "checkpoints" else "a folder beside the model"
    if SECRET.search(name):
        return "its name says that it holds a secret"
    if any(part.startswith(".") or part == "__pycache__" for part in parts):
        return "hidden"
    if any(STATES.match(part) for part in parts):
        return "state of a training"
    if name.endswith(UNFINISHED):
        return "unfinished"
    if ending in PICKLED:
        return "can hold pickled code; publish safetensors"
    if path in DATA_REPORTS:
        return "names rows of the data; its counts are in the card"
    return "" if ending in ALLOWED or name in PLAIN else "not a kind of file that a model needs"


def _outside(place: Path, facts: Facts) -> str:
    """A link may lead into the model's own folders or the Hub's cache, not to any other file of this machine."""
    if not place.is_symlink():
        return ""
    real = place.resolve()
    homes = [home.resolve() for home in (facts.model, facts.run) if home is not None]
    if any(real.is_relative_to(home) for home in homes) or real.parent.name == "blobs":
        return ""
    return "a link to a file outside the folder"


def _unasked(path: str, files: Sequence[str] | None) -> str:
    fits = files is None or any(fnmatch(path, pattern) for pattern in files)
    return "" if fits else "not asked for"


def _cleaned(path: str, place: Path, facts: Facts, base: str) -> Path | bytes:
    """JSON without the folders of this machine; any other file as it is."""
    if place.suffix not in (".json", ".jsonl") or place.name in TOKENS or place.stat().st_size > SMALL:
        return place
    text = place.read_text(encoding="utf-8", errors="replace")
    homes = [str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), str(facts.model.resolve().parent), sys.prefix]
    homes = [home for home in homes if home not in ("/", "", "/usr")]
    config = path == "adapter_config.json"
    try:
        rows = [json.loads(text)] if place.suffix == ".json" else [json.loads(row) for row in text.splitlines() if row]
    except ValueError as error:
        if not config and not any(json.dumps(home)[1:-1] in text for home in homes):
            return place
        raise ExportError(f"{path} is no JSON ({error}): put it right, or take it out of the folder") from error
    clean = [_without_folders(row, homes) for row in rows]
    if config and isinstance(clean[0], dict) and (base or facts.base):
        clean[0]["base_model_name_or_path"] = base or facts.base
    if clean == rows:
        return place
    if place.suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in clean).encode()
    return (json.dumps(clean[0], ensure_ascii=False, indent=2) + "\n").encode()


def _without_folders(value: Any, homes: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(one, homes) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one, homes) for one in value]
    if not isinstance(value, str):
        return value
    if PLACE.fullmatch(value):
        return PureWindowsPath(value).name
    for home in sorted(homes, key=len, reverse=True):
        if value == home:
            return Path(value).name
        value = re.sub(re.escape(home) + r"(?:/[^\s\"':,;]*)?", lambda found: Path(found[0]).name, value)
    return value
