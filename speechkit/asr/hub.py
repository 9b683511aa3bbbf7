"""Hub id → local folder with config, vocabulary and weights. Says within seconds when the Hub cannot be reached.

Only the files that are needed are fetched, safetensors before anything else. The token is huggingface_hub's affair.
"""

from __future__ import annotations

import errno
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["REPLY_S", "fetch"]

REPLY_S = 5.0  # a Hub that is there answers in well under a second
SIDE_FILES = frozenset({
    "config.json", "vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json", "processor_config.json", "README.md",
})  # fmt: skip
SAFE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
# what a disk says, never a network: httpx wraps the errors of its sockets
DISK = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST,
})  # fmt: skip
OLD = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def fetch(repo: str) -> Path:
    """Download what `repo` needs to run (or find it in the cache) and return the folder.

    Raises ModelError when the repository does not exist, may not be read, has no weights, when the cache cannot be
    written, or when the Hub cannot be reached and the cache does not have it.
    """
    from huggingface_hub import HfApi, constants, snapshot_download, utils
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    # its own httpx: releases differ in which package that is
    http_error: type[Exception] = utils.httpx.HTTPError  # type: ignore[attr-defined]
    try:
        # asked first and by itself because a download waits without limit for a server that accepts and says nothing
        info = HfApi().model_info(repo, timeout=REPLY_S)
        names = {file.rfilename for file in info.siblings or ()}
        wanted = [*(SIDE_FILES & names), *_weights(names, repo)]
        # by branch, not by info.sha: only a branch leaves the reference by which the cache is found offline
        return Path(snapshot_download(repo, allow_patterns=wanted))
    except GatedRepoError as error:
        raise ModelError(
            f"{repo} may only be read after its terms are accepted: open https://huggingface.co/{repo} while signed "
            "in, accept, then run `hf auth login` here"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hub has no public model {repo!r}: check the spelling; for a private one run `hf auth login` first"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{repo!r} is not a valid Hub id: {error}") from error
    except (HfHubHTTPError, http_error, OSError) as error:
        if getattr(error, "errno", None) in DISK:
            raise ModelError(
                f"{repo} cannot be kept in the local cache ({constants.HF_HUB_CACHE}): {error}; make room there, or "
                "set HF_HOME to a folder on a disk with room that you may write to"
            ) from error
        return _cached(repo, error)


def _cached(repo: str, problem: Exception) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    for weights in (SAFE, OLD):
        try:
            # the patterns again: without them a cache that lacks files nobody asked for counts as incomplete
            found = snapshot_download(repo, allow_patterns=[*SIDE_FILES, *weights], local_files_only=True)
        except LocalEntryNotFoundError:
            continue  # not in the cache: the message below says what to do
        folder = Path(found)
        if (folder / "config.json").is_file() and any(p for kind in weights[:2] for p in folder.glob(kind)):
            return folder
    if isinstance(problem, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set"
    else:
        first = (str(problem).splitlines() or [""])[0]
        answered = isinstance(problem, HfHubHTTPError)  # it is there, and says no: too many requests, an outage
        happened = "answered with an error" if answered else "cannot be reached"
        why = f"the Hub at {constants.ENDPOINT} {happened} ({type(problem).__name__}: {first})"
    raise ModelError(
        f"{why}, and {repo} is not in the local cache ({constants.HF_HUB_CACHE}). Without a network use "
        'load_asr("demo/en"), which is embedded, or give a folder: fetch it elsewhere with '
        f"`hf download {repo} --local-dir FOLDER` and copy it here. A cached model needs no network; "
        "HF_HUB_OFFLINE=1 then skips the attempt"
    ) from problem


def _weights(names: Iterable[str], repo: str) -> list[str]:
    for patterns in (SAFE, OLD):
        found = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
        if found:
            return found
    raise ModelError(f"{repo} holds no model.safetensors (nor pytorch_model.bin): choose a repository with weights")
