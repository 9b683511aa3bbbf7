"""Hub id → local folder of a language model. Configuration first, so that a mistake costs no download of weights.

safetensors only. Says within seconds when the Hub cannot be reached. The token is huggingface_hub's affair.
"""

from __future__ import annotations

from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from speechkit.asr.hub import DISK, REPLY_S
from speechkit.errors import ModelError
from speechkit.llm.registry import known_names, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fetch"]

SIDE_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "README.md", "[0-9]_*/config.json")
WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model.safetensors", "[0-9]_*/model.safetensors")
NOT_OURS = ("onnx/*", "openvino/*", "original/*")


def fetch(repo: str, revision: str | None, check: Callable[[Path], None]) -> Path:
    """Download what `repo` needs to run (or find it in the cache) and return the folder.

    `check` is called with the folder as soon as the small files are there; what it raises ends the download. Raises
    ModelError when the repository does not exist (naming the nearest known ones), may not be read, has no safetensors,
    when the cache cannot be written, or when the Hub cannot be reached and the cache does not have it.
    """
    from huggingface_hub import HfApi, constants, snapshot_download, utils
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # its own httpx: releases differ in which package that is
    http_error: type[Exception] = utils.httpx.HTTPError  # type: ignore[attr-defined]
    try:
        # asked first and by itself because a download waits without limit for a server that accepts and says nothing
        info = HfApi().model_info(repo, revision=revision, timeout=REPLY_S)
        weights = _weights([file.rfilename for file in info.siblings or ()], repo)
        get = partial(snapshot_download, repo, revision=revision, ignore_patterns=list(NOT_OURS))
        check(Path(get(allow_patterns=list(SIDE_FILES))))
        return Path(get(allow_patterns=[*SIDE_FILES, *weights]))
    except GatedRepoError as error:
        raise ModelError(
            f"{repo} may only be read after its terms are accepted: open https://huggingface.co/{repo} while signed "
            "in, accept, then run `hf auth login` here"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r}: give one of its branches, tags or commits") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hub has no public model {repo!r}: check the spelling{_near(repo)}; for a private one run "
            "`hf auth login` first"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{repo!r} is not a valid Hub id: {error}") from error
    except (HfHubHTTPError, http_error, OSError) as error:
        if getattr(error, "errno", None) in DISK:
            raise ModelError(
                f"{repo} cannot be kept in the local cache ({constants.HF_HUB_CACHE}): {error}; make room there, or "
                "set HF_HOME to a folder on a disk with room that you may write to"
            ) from error
        return _cached(repo, revision, error)


def _cached(repo: str, revision: str | None, problem: Exception) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = [*SIDE_FILES, *WEIGHTS]
    try:
        # the patterns again: without them a cache that lacks files nobody asked for counts as incomplete
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=wanted, ignore_patterns=list(NOT_OURS), local_files_only=True
            )
        )
        if any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
            return folder
    except LocalEntryNotFoundError:
        pass  # not in the cache: the message below says what to do
    if isinstance(problem, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set"
    else:
        first = (str(problem).splitlines() or [""])[0]
        answered = isinstance(problem, HfHubHTTPError)  # it is there, and says no: too many requests, an outage
        happened = "answered with an error" if answered else "cannot be reached"
        why = f"the Hub at {constants.ENDPOINT} {happened} ({type(problem).__name__}: {first})"
    embedded = next((name for name in known_names() if name.startswith("demo/")), "")
    offline = f"Without a network use load_llm({embedded!r}), which is embedded, or " if embedded else "Without one, "
    raise ModelError(
        f"{why}, and {repo} is not in the local cache ({constants.HF_HUB_CACHE}){_near(repo)}. {offline}give a folder: "
        f"fetch it elsewhere with `hf download {repo} --local-dir FOLDER` and copy it here. A cached model needs no "
        "network; HF_HUB_OFFLINE=1 then skips the attempt"
    ) from problem


def _weights(names: list[str], repo: str) -> list[str]:
    found = [name for name in names if any(fnmatch(name, pattern) for pattern in WEIGHTS)]
    if found:
        return found
    if any(fnmatch(name, "*.gguf") for name in names):
        raise ModelError(
            f"{repo} holds GGUF files only, which are for llama.cpp; choose the repository they were made from"
        )
    pickled = any(fnmatch(name, pattern) for name in names for pattern in ("*.bin", "*.pt", "*.pth"))
    why = "pickled weights only, which can run code when they are read" if pickled else "no weights"
    raise ModelError(f"{repo} holds {why}; choose a repository or a revision with model.safetensors")


def _near(repo: str) -> str:
    close = [name for name in nearest(repo) if name != repo]
    return f" (nearest known: {', '.join(close)})" if close else ""
