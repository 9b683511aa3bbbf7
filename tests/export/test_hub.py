"""Push and pull against a server that keeps the Hub's rules. Oracles: what it holds, huggingface_hub, SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from hub_server import Blob, HubServer, User

from speechkit import demo
from speechkit.errors import ExportError, PlanError
from speechkit.export import hub_errors
from speechkit.export.hub import About, pull, push, versions

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "hf_" + "Qx7" * 11 + "Z"
REPO = "anna/digits"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server, with this process speaking to it as anna."""
    with HubServer() as server:
        server.users[TOKEN] = User("anna", orgs=("choir",))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        huggingface_hub.utils.disable_progress_bars()
        yield server
        huggingface_hub.utils.enable_progress_bars()
        huggingface_hub.close_session()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited, here and in huggingface_hub, which are not."""
    waited: list[float] = []

    class Clock:
        sleep = staticmethod(waited.append)

    monkeypatch.setattr(hub_errors, "pause", waited.append)
    monkeypatch.setattr(huggingface_hub.utils._http, "time", Clock)
    return waited


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return made(tmp_path / "digits")


def made(folder: Path, seed: int = 0, size: int = 64) -> Path:
    """A speech model's folder as save_pretrained leaves it; the weights are of no use."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    save_file({"a.weight": rng.standard_normal((size, size)).astype(np.float32)}, folder / "model.safetensors")
    config = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], "vocab_size": size}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "vocab.json").write_text('{"a": 0}')
    return folder


def results(folder: Path, wer: float) -> None:
    row = {"recipe": {"language": "en"}, "results": {"digits": {"wer": wer, "cer": wer / 2, "clips": 500}}}
    (folder / "recipe.json").write_text(json.dumps(row))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# create, push again, versions


def test_a_first_push_makes_a_private_repository_with_card_changelog_and_tag(hub: HubServer, model: Path) -> None:
    report = push(model, REPO, message="First try.")
    repo = hub.repos[REPO]
    assert repo.private and repo.tags == {"v0.1.0": report.commit} and repo.head.oid == report.commit
    assert len(repo.commits) == 2, "one commit beyond the Hub's first"
    assert repo.head.title == "v0.1.0: First try."
    names = {"config.json", "model.safetensors", "vocab.json", "README.md", "CHANGELOG.md", "versions.json"}
    assert set(repo.head.files) == names | {".gitattributes"}
    assert repo.head.files["model.safetensors"].sha256 == sha256(model / "model.safetensors")
    assert hub.text(REPO, "CHANGELOG.md").startswith("# Changelog\n\n## v0.1.0 (") and "First try." in report.changelog
    assert hub.text(REPO, "README.md") == report.card
    assert {file.path: file.size for file in report.files} == {
        name: len(repo.head.files[name].data) for name in names
    }  # fmt: skip
    assert "pushed v0.1.0 to anna/digits (private): the first version" in report.text()
    assert not (model / "README.md").exists() and not (model / "versions.json").exists(), "the folder stays as it is"


def test_the_hub_and_huggingface_hub_take_the_card(hub: HubServer, model: Path) -> None:
    results(model, 0.264)
    report = push(model, REPO)
    assert [one.status for one in hub.asked("POST", "validate-yaml")] == [200, 200]
    data = ModelCard(report.card).data
    assert (data.pipeline_tag, data.library_name, data.language) == (
        "automatic-speech-recognition",
        "transformers",
        "en",
    )
    assert [(row.metric_type, row.metric_value) for row in data.eval_results] == [("wer", 26.4), ("cer", 13.2)]


def test_a_card_that_the_hub_refuses_is_refused_before_anything_is_sent(hub: HubServer, model: Path) -> None:
    with pytest.raises(ExportError, match=r'the Hub refuses the card.s metadata: "license" must be one of'):
        push(model, REPO, about=About(licence="apache"))
    assert len(hub.repos[REPO].commits) == 1 and not hub.stored


def test_pushing_other_weights_makes_the_next_minor_version_and_tells_the_difference(
    hub: HubServer, model: Path
) -> None:
    results(model, 0.264)
    push(model, REPO)
    made(model, seed=1)
    results(model, 0.24)
    report = push(model, REPO, message="Longer.")
    assert (report.version, report.previous) == ("v0.2.0", "v0.1.0")
    assert "| WER %, digits | 26.4 | 24 | −2.4 |" in report.changelog
    assert {file.path: file.state for file in report.files}["config.json"] == "same"
    log = hub.text(REPO, "CHANGELOG.md")
    assert log.index("## v0.2.0") < log.index("## v0.1.0")
    assert [one.version for one in versions(REPO)] == ["v0.2.0", "v0.1.0"]
    assert versions(REPO)[1].metrics["WER %, digits"] == 26.4
    assert versions(REPO)[0].commit == report.commit


def test_pushing_the_same_again_sends_nothing(hub: HubServer, model: Path) -> None:
    first = push(model, REPO)
    again = push(model, REPO)
    assert (again.version, again.commit) == ("v0.1.0", "") and "nothing changed since" in again.text()
    assert hub.repos[REPO].head.oid == first.commit and len(hub.asked("POST", "/commit/")) == 1


def test_only_another_card_is_a_patch_and_sends_no_weights(hub: HubServer, model: Path) -> None:
    push(model, REPO)
    report = push(model, REPO, about=About(licence="mit"))
    assert report.version == "v0.1.1" and "- only the card changed" in report.changelog
    assert len(hub.asked("PUT", "/lfs/")) == 1


def test_weights_of_the_version_before_that_would_still_be_loaded_are_removed(hub: HubServer, model: Path) -> None:
    for name in ("model-00001-of-00002", "model-00002-of-00002"):
        shutil.copy(model / "model.safetensors", model / f"{name}.safetensors")
    whole = (model / "model.safetensors").rename(model.parent / "whole")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    push(model, REPO)
    hub.repos[REPO].head.files["notes.txt"] = Blob(b"somebody's", False)
    for path in model.glob("model*"):
        path.unlink()
    whole.rename(model / "model.safetensors")
    report = push(model, REPO)
    gone = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    assert report.removed == gone
    there = hub.repos[REPO].head.files
    assert not set(gone) & set(there) and {"model.safetensors", "notes.txt"} <= set(there)


@pytest.mark.parametrize("version", ["v1.0.0", "1.0.0", "v0.1.0-rc.1"])
def test_an_explicit_version_is_taken(hub: HubServer, model: Path, version: str) -> None:
    assert push(model, REPO, version=version).version == f"v{version.removeprefix('v')}"


def test_a_version_that_is_taken_is_refused_before_anything_is_sent(hub: HubServer, model: Path) -> None:
    push(model, REPO)
    made(model, seed=1)
    before = len(hub.asked("POST", "/commit/"))
    with pytest.raises(ExportError, match=r"v0\.1\.0 is taken: a tag is not moved"):
        push(model, REPO, version="v0.1.0")
    assert len(hub.asked("POST", "/commit/")) == before and len(hub.asked("PUT", "/lfs/")) == 1
    with pytest.raises(PlanError, match="version is 'newest'"):
        push(model, REPO, version="newest")


def test_a_tag_that_appears_meanwhile_is_a_conflict_that_says_what_to_do(hub: HubServer, model: Path) -> None:
    repo = hub.make(REPO)
    hub.before["/tag/"] = lambda: repo.tags.setdefault("v0.1.0", repo.commits[0].oid)
    with pytest.raises(ExportError, match=r"v0\.1\.0 is a tag of anna/digits already, at commit \w{8}"):
        push(model, REPO)
    assert repo.tags["v0.1.0"] == repo.commits[0].oid, "not moved"
    hub.before.clear()
    made(model, seed=2)
    assert push(model, REPO).version == "v0.2.0"


def test_a_commit_of_somebody_else_meanwhile_is_not_written_over(hub: HubServer, model: Path) -> None:
    repo = hub.make(REPO)

    def meanwhile() -> None:
        if len(repo.commits) == 1:
            repo.commits.append(type(repo.head)("f" * 40, "edit", "", dict(repo.head.files)))

    hub.before["/commit/"] = meanwhile
    with pytest.raises(ExportError, match=r"somebody else pushed to anna/digits meanwhile \(412\).*Push again"):
        push(model, REPO)
    assert repo.head.title == "edit" and not repo.tags
    hub.before.clear()
    assert push(model, REPO).version == "v0.1.0"


# rights


def test_without_a_token_the_way_to_log_in_is_told(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ExportError, match=r"a push needs a token, and none is found: log in with `hf auth login`"):
        push(model, REPO)
    assert not hub.requests


def test_a_wrong_token_is_401(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    with pytest.raises(ExportError, match=r"does not know who asks \(401\).*`hf auth login`.*HF_TOKEN goes before"):
        push(model, REPO)


def test_somebody_elses_namespace_is_403(hub: HubServer, model: Path) -> None:
    with pytest.raises(ExportError, match=r"the token may not do this \(403\).*write permission for 'bert'"):
        push(model, "bert/digits")
    assert not hub.repos


def test_a_repository_that_may_be_read_but_not_written_is_403(hub: HubServer, model: Path) -> None:
    hub.make("bert/digits", private=False)
    with pytest.raises(ExportError, match=r"\(403\)"):
        push(model, "bert/digits", private=False)
    assert len(hub.repos["bert/digits"].commits) == 1


def test_a_token_that_may_only_read_is_told_apart_before_anything_else(hub: HubServer, model: Path) -> None:
    hub.users[TOKEN] = User("anna", role="read")
    with pytest.raises(ExportError, match="the token may only read"):
        push(model, REPO)
    assert not hub.repos


def test_an_organisation_can_be_pushed_to_and_a_bare_name_is_ones_own(hub: HubServer, model: Path) -> None:
    assert push(model, "choir/digits").repo_id == "choir/digits"
    assert push(model, "plain").repo_id == "anna/plain"


def test_private_never_goes_to_a_public_repository(hub: HubServer, model: Path) -> None:
    hub.make(REPO, private=False)
    with pytest.raises(ExportError, match="is public, and private is True"):
        push(model, REPO)
    assert len(hub.repos[REPO].commits) == 1
    assert push(model, REPO, private=False).version == "v0.1.0"


def test_a_password_in_the_endpoint_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "https://anna:letmein@hub.example.org")
    with pytest.raises(ExportError, match="HF_ENDPOINT holds a name or password") as caught:
        push(model, REPO)
    assert "letmein" not in str(caught.value)


@pytest.mark.parametrize("name", ["an na/x", "a/b/c", "-x/y", "anna/" + "x" * 97, "anna/x..y"])
def test_a_misspelt_id_is_refused_before_anything_is_asked(hub: HubServer, model: Path, name: str) -> None:
    with pytest.raises(ExportError, match="is no id of the Hub; it is owner/name"):
        push(model, name)
    assert not hub.requests


def test_http_beyond_this_machine_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    with pytest.raises(ExportError, match="over http:// the token could be read on its way"):
        push(model, REPO)


# waiting, breaking, going on


@pytest.mark.parametrize(
    "where", ["whoami", "repos/create", "/tree/", "/refs", "/commit/", "/tag/", "batch", "preupload"]
)
def test_429_is_waited_for_as_long_as_it_asks(hub: HubServer, model: Path, pauses: list[float], where: str) -> None:
    method = "GET" if where in ("whoami", "/tree/", "/refs") else "POST"
    hub.fail(method, where, status=429, headers={"Retry-After": "7"}, times=2)
    assert push(model, REPO).version == "v0.1.0"
    assert len(pauses) == 2 and all(7 <= wait <= 8 for wait in pauses)
    assert len(hub.repos[REPO].commits) == 2


def test_429_with_a_date_is_waited_for_until_then(hub: HubServer, model: Path, pauses: list[float]) -> None:
    hub.fail("GET", "whoami", status=429, headers={"Retry-After": formatdate(time.time() + 30, usegmt=True)})
    assert push(model, REPO).version == "v0.1.0"
    assert len(pauses) == 1 and 25 < pauses[0] <= 30


def test_429_without_end_is_given_up(hub: HubServer, model: Path, pauses: list[float]) -> None:
    hub.fail("GET", "whoami", status=429, times=100)
    with pytest.raises(ExportError, match=r"the Hub asks to wait \(429\).*after several tries"):
        push(model, REPO)
    assert pauses == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("GET", "whoami"),
        ("POST", "preupload"),
        ("POST", "batch"),
        ("PUT", "/lfs/"),
        ("POST", "verify"),
        ("POST", "/commit/"),
    ],
)
def test_a_wait_of_hours_is_reported_instead(
    hub: HubServer, model: Path, pauses: list[float], method: str, where: str
) -> None:
    hub.fail(method, where, status=429, headers={"Retry-After": "3600"}, times=100)
    with pytest.raises(ExportError, match=r"\(429\).*do the same again in 3,600 s"):
        push(model, REPO)
    assert not pauses and not hub.repos.get(REPO, hub.make("anna/none")).tags
    assert not huggingface_hub.get_session().event_hooks["response"], "huggingface_hub is left as it was"


def test_the_hubs_own_header_of_limits_is_read(hub: HubServer, model: Path, pauses: list[float]) -> None:
    hub.fail("GET", "/refs", status=429, headers={"RateLimit": '"api";r=0;t=42'})
    assert push(model, REPO).version == "v0.1.0" and pauses == [42]


def test_a_fault_of_the_hub_is_tried_again_and_then_called_one(
    hub: HubServer, model: Path, pauses: list[float]
) -> None:
    hub.fail("POST", "/commit/", status=503, times=1)
    assert push(model, REPO).version == "v0.1.0"
    made(model, seed=1)
    hub.fail("POST", "/commit/", status=500, times=100)
    with pytest.raises(ExportError, match=r"the Hub has a fault \(500\) while sending v0\.2\.0"):
        push(model, REPO)
    assert hub.repos[REPO].head.title == "v0.1.0"


def test_a_connection_cut_in_the_middle_of_an_upload_is_tried_again(
    hub: HubServer, tmp_path: Path, pauses: list[float]
) -> None:
    model = made(tmp_path / "big", size=512)  # 1 MiB
    hub.fail("PUT", "/lfs/", cut=100_000, times=2)
    assert push(model, REPO).version == "v0.1.0"
    assert [one.status for one in hub.asked("PUT", "/lfs/")] == [0, 0, 200]
    assert hub.repos[REPO].head.files["model.safetensors"].sha256 == sha256(model / "model.safetensors")


def test_an_upload_that_broke_off_goes_on_without_sending_what_arrived(
    hub: HubServer, tmp_path: Path, pauses: list[float]
) -> None:
    model = made(tmp_path / "big", size=512)
    save_file({"b": np.ones((300, 300), np.float32)}, model / "model-2.safetensors")
    second = sha256(model / "model.safetensors")
    hub.fail("PUT", second, cut=50_000, times=6)  # huggingface_hub tries six times
    with pytest.raises(ExportError, match=r"the connection broke while sending v0\.1\.0.*Nothing is half there.*again"):
        push(model, REPO)
    assert len(hub.repos[REPO].commits) == 1 and not hub.repos[REPO].tags
    assert set(hub.stored) == {sha256(model / "model-2.safetensors")}
    sent = len(hub.asked("PUT", "/lfs/"))
    report = push(model, REPO)
    assert report.version == "v0.1.0"
    more = hub.asked("PUT", "/lfs/")[sent:]
    assert [second in one.path for one in more] == [True], "only what had not arrived"


def test_a_killed_push_goes_on_in_another_process(hub: HubServer, tmp_path: Path) -> None:
    model = made(tmp_path / "big", size=512)
    second = sha256(model / "model.safetensors")
    save_file({"b": np.ones((300, 300), np.float32)}, model / "model-2.safetensors")
    stalled = hub.fail("PUT", second, stall=100_000)
    first = start(f"from speechkit.export.hub import push; push({str(model)!r}, {REPO!r})", hub, tmp_path / "home")
    try:
        assert stalled.reached.wait(60)
        for _ in range(600):  # the other file goes at the same time
            if len(hub.stored) == 1:
                break
            stalled.reached.clear()
            stalled.reached.wait(0.1)
    finally:
        first.kill()
        first.communicate()
    assert set(hub.stored) == {sha256(model / "model-2.safetensors")} and len(hub.repos[REPO].commits) == 1
    before = len(hub.asked("PUT", "/lfs/"))
    assert push(model, REPO).version == "v0.1.0"
    more = [one for one in hub.asked("PUT", "/lfs/")[before:] if one.status]
    assert [second in one.path for one in more] == [True]


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubServer, model: Path, pauses: list[float]) -> None:
    hub.fail("POST", "/commit/", after=True, status=0)
    report = push(model, REPO)
    assert [one.title for one in hub.repos[REPO].commits] == ["initial commit", "v0.1.0"]
    assert hub.repos[REPO].tags == {"v0.1.0": report.commit}


@pytest.mark.parametrize("version", ["auto", "v0.1.0"])
def test_a_push_that_ended_before_its_tag_is_finished_by_the_next(
    hub: HubServer, model: Path, pauses: list[float], version: str
) -> None:
    hub.fail("POST", "/tag/", status=500, times=5)
    with pytest.raises(ExportError, match=r"tagging v0\.1\.0"):
        push(model, REPO, version=version)
    repo = hub.repos[REPO]
    first = repo.head.oid
    assert not repo.tags
    again = push(model, REPO, version=version)
    assert repo.tags == {"v0.1.0": first} and again.commit == "" and again.version == "v0.1.0"
    made(model, seed=1)
    assert push(model, REPO).version == "v0.2.0"


def test_a_hub_out_of_reach_is_said_so(model: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ExportError, match=r"the Hub cannot be reached.*look at the network"):
        push(model, REPO)


def test_offline_mode_is_said_so(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set: unset it"):
        push(model, REPO)
    assert not hub.requests


# dry run


def test_a_dry_run_shows_files_and_card_and_asks_nobody(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (model / "optimizer.pt").write_bytes(b"x")
    planned = push(model, REPO, dry_run=True, message="First.")
    assert not hub.requests
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    real = push(model, REPO, message="First.")
    assert planned.card == real.card
    sizes = [{file.path: file.size for file in one.files if file.path != "versions.json"} for one in (planned, real)]
    assert sizes[0] == sizes[1]
    assert planned.left_out == real.left_out == (("optimizer.pt", "state of a training"),)
    text = planned.text()
    assert "would push v0.1.0" in text and real.card in text and "optimizer.pt: state of a training" in text
    assert "model.safetensors" in text and "16.5 kB" in text


# pull


def test_a_pulled_version_is_what_was_pushed(hub: HubServer, model: Path, tmp_path: Path) -> None:
    old = sha256(model / "model.safetensors")
    push(model, REPO)
    made(model, seed=1)
    push(model, REPO)
    for name in ("pytorch_model.bin", "scaler.joblib", "features.npy"):
        hub.repos[REPO].head.files[name] = Blob(b"pickle", True)
    latest = pull(REPO)
    assert sha256(latest / "model.safetensors") == sha256(model / "model.safetensors")
    assert not {one.suffix for one in latest.iterdir()} & {".bin", ".joblib", ".npy"}, "pickles stay there"
    for name in ("v0.1.0", "0.1.0"):
        assert sha256(pull(REPO, name) / "model.safetensors") == old
    placed = pull(REPO, "v0.1.0", folder=tmp_path / "placed")
    assert placed == tmp_path / "placed" and sha256(placed / "model.safetensors") == old


def test_weights_of_another_version_in_the_folder_that_is_pulled_to_are_warned_of(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    push(model, REPO)
    place = tmp_path / "placed"
    with warnings.catch_warnings(action="error"):
        pull(REPO, folder=place)
    (place / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"holds model-00001-of-00002\.safetensors besides, which v0\.1\.0 of"):
        pull(REPO, folder=place)


def test_a_version_that_is_not_there_names_those_that_are(hub: HubServer, model: Path) -> None:
    push(model, REPO)
    with pytest.raises(ExportError, match=r"has no version v0\.3\.0; it has: v0\.1\.0"):
        pull(REPO, "v0.3.0")
    hub.make("anna/bare")
    with pytest.raises(ExportError, match=r"has no versions; pull\('anna/bare', 'main'\)"):
        pull("anna/bare")
    assert (pull("anna/bare", "main") / ".gitattributes").is_file()
    with pytest.raises(ExportError, match="check the spelling"):
        pull("anna/digtis")


def test_without_a_network_the_cache_answers_and_says_which_version(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(model, REPO)
    online = pull(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.warns(UserWarning, match=r"v0\.1\.0 of anna/digits is taken from the local cache"):
        assert pull(REPO) == online
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set"):
        pull("anna/never")


def test_long_listings_come_in_pages(hub: HubServer, model: Path) -> None:
    push(model, REPO)
    hub.page = 2
    again = push(model, REPO)
    assert again.commit == "" and len(hub.asked("GET", "/tree/")) > 3


# the card on the Hub


def test_what_was_written_on_the_hub_survives(hub: HubServer, model: Path) -> None:
    push(model, REPO)
    text = hub.text(REPO, "README.md").replace("tags:", "license: mit\ntags:\n- favourite")
    files = hub.repos[REPO].head.files
    files["README.md"] = Blob(f"{text}\n## Known faults\n\nMishears eleven.\n".encode(), False)
    made(model, seed=1)
    report = push(model, REPO)
    card = hub.text(REPO, "README.md")
    assert "## Known faults\n\nMishears eleven." in card and ModelCard(card).data.license == "mit"
    assert "favourite" in ModelCard(card).data.tags
    assert "kept from the card on the Hub: Known faults" in report.notes
    assert push(model, REPO).commit == "", "and does not make a new version each time"


# secrets


def test_the_token_is_nowhere(hub: HubServer, model: Path, tmp_path: Path) -> None:
    """Pushes that succeed and fail, in a process of their own, with all of huggingface_hub's debug output."""
    code = f"""
import logging, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from speechkit.export.hub import pull, push, versions
print(push({str(model)!r}, {REPO!r}))
print(pull({REPO!r}), versions({REPO!r}), push({str(model)!r}, {REPO!r}, dry_run=True).as_dict())
for repo in ("bert/x", "anna/digtis"):
    try:
        push({str(model)!r}, repo) if repo[0] == "b" else pull(repo)
    except Exception as error:
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        print("".join(shown.format(chain=True)), error.__cause__, error.__context__, file=sys.stderr)
        print("refused", type(error).__name__)
        assert error.__cause__ is None and error.__context__ is None
"""
    home = tmp_path / "home"
    process = start(code, hub, home, HF_DEBUG="1")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert out.count("refused ExportError") == 2 and "curl" in err, "the debug output is there"
    assert any(one.token == TOKEN for one in hub.requests), "it was sent"
    assert TOKEN not in out + err
    written = [path for path in [*home.rglob("*"), *model.rglob("*")] if path.is_file()]
    assert written and not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert not any(TOKEN.encode() in blob.data for repo in hub.repos.values() for blob in repo.head.files.values())


def start(code: str, hub: HubServer, home: Path, **more: str) -> subprocess.Popen[str]:
    """A process of its own that knows the server by its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    out = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**kept, **settings, **more}, stdout=out, stderr=out, text=True
    )


def test_a_hub_that_repeats_the_token_is_not_repeated(hub: HubServer, model: Path) -> None:
    hub.fail("POST", "repos/create", status=403, body=json.dumps({"error": f"token {TOKEN} may not do that"}))
    with pytest.raises(ExportError) as caught:
        push(model, REPO)
    assert "token hf_… may not do that" in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_a_message_with_a_token_is_refused(hub: HubServer, model: Path) -> None:
    with pytest.raises(ExportError, match="message, line 1, holds what looks like") as caught:
        push(model, REPO, message=f"made with {TOKEN}")
    assert TOKEN not in str(caught.value) and not hub.requests


# kinds of what is pushed


def test_a_second_gguf_joins_the_first_in_card_and_figures(hub: HubServer, tmp_path: Path) -> None:
    for quant, top1 in (("Q8_0", 0.99), ("Q4_K", 0.93)):
        gguf_file(tmp_path / f"m-{quant}.gguf", quant, top1)
    push(tmp_path / "m-Q8_0.gguf", "anna/m")
    report = push(tmp_path / "m-Q4_K.gguf", "anna/m")
    there = hub.repos["anna/m"].head.files
    assert {"m-Q8_0.gguf", "m-Q4_K.gguf", "m-Q8_0.proof.json", "m-Q4_K.proof.json"} <= set(there) and not report.removed
    assert report.card.count("| `m-Q8_0.gguf` |") == 2 and report.card.count("| `m-Q4_K.gguf` |") == 2
    assert "| m-Q8_0.gguf: top-1 agreement % | 99 | 99 | 0 |" in report.changelog
    assert "| m-Q4_K.gguf: top-1 agreement % | – | 93 | new |" in report.changelog
    assert "stays there from before: m-Q8_0.gguf, m-Q8_0.proof.json" in report.notes
    assert push(tmp_path / "m-Q4_K.gguf", "anna/m").commit == ""


def gguf_file(path: Path, quant: str, top1: float) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a.weight", np.full((4, 32), top1, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    row = {"file": path.name, "source": "chat", "quant": quant, "tokens": 9, "top1": top1, "verdict": "passed"}
    (path.parent / f"{path.stem}.proof.json").write_text(json.dumps(row))


def test_an_embedded_model_and_a_model_in_memory_can_be_pushed(hub: HubServer) -> None:
    from speechkit import load_asr

    report = push("demo/pl", "anna/pl")
    assert ModelCard(report.card).data.language == "pl"
    recognizer = load_asr(pull("anna/pl"), device="cpu")
    report = push(recognizer, "anna/pl-again")
    assert {"model.safetensors", "vocab.json", "config.json"} <= {file.path for file in report.files}
    places = demo.model_path("pl"), pull("anna/pl-again")
    ours, theirs = (load_file(place / "model.safetensors") for place in places)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name].astype(np.float32), theirs[name].astype(np.float32)) for name in ours)


def test_a_run_goes_with_what_repeats_it_and_without_its_data(hub: HubServer, tmp_path: Path) -> None:
    import tiny_runs

    from speechkit import load_asr
    from speechkit.training.finetune import finetune

    base = tiny_runs.model_folder(tmp_path / "base")
    spoken = tiny_runs.examples(6), tiny_runs.examples(3, seed=1)
    result = finetune(tiny_runs.small(tmp_path / "letters", base, steps=2, language="pl"), *spoken)
    report = push(result, "anna/letters", about=About(hardware="two cores"))
    there = hub.repos["anna/letters"].head.files
    repeats = {"run.json", "origin.json", "result.json", "curve.jsonl"}
    assert {"model.safetensors", "vocab.json", *repeats} <= set(there)
    assert not {"data.json", "data-dev.json"} & set(there) and "checkpoints/" in dict(report.left_out)
    assert not any(str(tmp_path).encode() in blob.data for blob in there.values()), "no folder of this machine"
    assert json.loads(there["run.json"].data)["folder"] == "letters"
    pulled = load_asr(pull("anna/letters"), device="cpu")
    again = push(pull("anna/letters"), "anna/again", dry_run=True, about=About(hardware="two cores"))
    assert {one.path for one in again.files} == {one.path for one in report.files}, "what was pulled can be pushed"
    mine = load_asr(result.best, device="cpu")
    assert pulled.alphabet == mine.alphabet
    assert all((a == b).all() for a, b in zip(pulled.model.parameters(), mine.model.parameters(), strict=True))


def test_a_peft_model_in_memory_goes_as_its_adapter(hub: HubServer) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    plain, base = (LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)) for _ in range(2))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    report = push(model, "anna/adapter", about=About(base="owner/tiny"))
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {file.path for file in report.files}
    there = json.loads(hub.text("anna/adapter", "adapter_config.json"))
    assert there["base_model_name_or_path"] == "owner/tiny" and there["r"] == 2
    assert ModelCard(report.card).data.base_model == "owner/tiny"
    assert "model.safetensors" in {file.path for file in push(plain, "anna/whole", dry_run=True).files}


def test_a_dry_run_needs_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from speechkit.export.hub import push
assert "huggingface_hub" not in sys.modules
assert push({str(made(tmp_path / "m"))!r}, "anna/m", dry_run=True).files
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_what_is_no_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="a dict cannot be pushed"):
        push({}, REPO, dry_run=True)
    with pytest.raises(ExportError, match="is no folder here"):
        push(tmp_path / "nowhere", REPO, dry_run=True)
    with pytest.raises(ExportError, match="is a file; give the folder"):
        push(model / "config.json", REPO, dry_run=True)
