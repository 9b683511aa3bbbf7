"""The Hub's endpoints that a push and a pull use, on loopback, with real rules: rights, parents, digests, conflicts.

    with HubServer() as hub:
        hub.users["hf_…"] = User("anna")
        hub.fail("PUT", r"/lfs/", cut=1000)          # the next such request loses its connection after 1000 bytes
        hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "1"}, times=2)

`hub.requests` lists what was asked. What a repository holds is in `hub.repos`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

LICENCES = ("apache-2.0", "cc-by-sa-4.0", "mit", "other")
LARGE = (".safetensors", ".gguf", ".bin", ".model", ".png")  # what .gitattributes sends to large file storage


@dataclass
class User:
    """Whom a token belongs to."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blob:
    """A file in a commit."""

    data: bytes
    large: bool

    @property
    def git(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data, usedforsecurity=False).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Commit:
    """One commit with all its files."""

    oid: str
    title: str
    message: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """One repository; the last commit is the branch's."""

    private: bool
    commits: list[Commit]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        oid = self.tags.get(revision, self.head.oid if revision == "main" else revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


@dataclass
class Fault:
    """What goes wrong at requests that fit."""

    method: str
    path: str  # pattern
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    cut: int | None = None  # bytes of the request after which the connection is closed
    stall: int | None = None  # bytes of the request after which nothing more is read, until the other side is gone
    reached: threading.Event = field(default_factory=threading.Event)  # that far
    after: bool = False  # the request is carried out, and its answer is lost
    times: int = 1


@dataclass(frozen=True)
class Request:
    """One request that came."""

    method: str
    path: str
    received: int  # bytes of the body
    token: str | None
    status: int  # of the answer; 0: none was given


class HubServer:
    """The server; `url` is what HF_ENDPOINT is to be."""

    def __init__(self, page: int = 1000) -> None:
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}  # large file storage, by SHA-256
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.before: dict[str, Any] = {}  # pattern → what happens on the server before such a request is carried out
        self.page = page  # rows of a listing per answer
        self.lock = threading.Lock()

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def fail(self, method: str, path: str, **how: Any) -> Fault:
        self.faults.append(Fault(method, path, **how))
        return self.faults[-1]

    def make(self, repo_id: str, private: bool = True, files: dict[str, str] | None = None) -> Repo:
        """A repository with its first commit, as the Hub makes one."""
        first = {".gitattributes": "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE)}
        made = {path: Blob(text.encode(), False) for path, text in (first | (files or {})).items()}
        self.repos[repo_id] = Repo(private, [_commit("initial commit", "", made, "")])
        return self.repos[repo_id]

    def asked(self, method: str, path: str) -> list[Request]:
        """The requests that fit."""
        return [one for one in self.requests if one.method == method and re.search(path, one.path)]

    def text(self, repo_id: str, path: str, revision: str = "main") -> str:
        commit = self.repos[repo_id].at(revision)
        assert commit is not None
        return commit.files[path].data.decode()


def _commit(title: str, message: str, files: dict[str, Blob], parent: str) -> Commit:
    rows = "".join(f"{path} {blob.git}\n" for path, blob in sorted(files.items()))
    return Commit(hashlib.sha1(f"{parent}\n{title}\n{rows}".encode()).hexdigest(), title, message, files)  # noqa: S324


class _Answer(Exception):
    """The answer to a request."""

    def __init__(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()


class _Cut(Exception):
    """No answer."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def _do(self) -> None:
        self.received = 0
        status = 0
        try:
            fault = self._fault()
            if fault is not None and fault.cut is not None:
                self.received = len(self.rfile.read(fault.cut))
                raise _Cut
            if fault is not None and fault.stall is not None:
                self.received = len(self.rfile.read(fault.stall))
                fault.reached.set()
                with suppress(OSError):
                    while self.rfile.read(2**16):
                        sleep(0.05)
                raise _Cut
            body = self._body()
            if fault is not None and fault.status:
                raise _Answer(fault.status, fault.body.encode(), fault.headers)
            try:
                with self.hub.lock:
                    for pattern, act in self.hub.before.items():
                        if re.search(pattern, self.path):
                            act()
                    self._route(urlsplit(self.path), body)
            except _Answer as answer:
                if fault is not None and fault.after:
                    raise _Cut from answer
                raise
        except _Answer as answer:
            status = answer.status
            self._record(status)
            self._send(answer)
        except _Cut:
            self._record(0)
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _do

    def _record(self, status: int) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, self.path, self.received, token, status))

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()

    def _fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and fault.method == self.command and re.search(fault.path, self.path):
                    fault.times -= 1
                    return fault
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            data = b"".join(parts)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.received = len(data)
        return data

    def _route(self, url: Any, body: bytes) -> None:
        path = unquote(url.path)
        query = parse_qs(url.query)
        for (method, pattern), answer in ROUTES.items():
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                answer(self, found, query, body)
                raise AssertionError("a route answers")
        raise _Answer(404, {"error": f"no such endpoint: {self.command} {path}"})

    def _user(self, must: bool = True) -> User | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.hub.users.get(token)
        if user is None and (must or token):
            said = "Invalid credentials in Authorization header" if token else "Invalid username or password."
            raise _Answer(401, {"error": said}, {"X-Error-Message": said})
        return user

    def _repo(self, name: str, write: bool = False) -> Repo:
        user = self._user(write)
        repo = self.hub.repos.get(name)
        mine = user is not None and name.partition("/")[0] in (user.name, *user.orgs)
        if repo is None or (repo.private and not mine):
            raise _Answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if write and not (mine and user is not None and user.role == "write"):
            said = f"You don't have write access to {name}"
            raise _Answer(403, {"error": said}, {"X-Error-Message": said})
        return repo

    def _at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise _Answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return commit

    # one method per endpoint

    def whoami(self, *_: Any) -> None:
        user = self._user()
        assert user is not None
        orgs = [{"name": org} for org in user.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
        raise _Answer(200, {"type": "user", "name": user.name, "orgs": orgs, "auth": auth})

    def create(self, _: Any, __: Any, body: bytes) -> None:
        user = self._user()
        assert user is not None
        row = json.loads(body)
        owner = row.get("organization") or user.name
        name = f"{owner}/{row['name']}"
        if owner not in (user.name, *user.orgs) or user.role != "write":
            raise _Answer(403, {"error": f"You don't have the rights to create a model under the namespace {owner!r}"})
        there = name in self.hub.repos
        if not there:
            self.hub.make(name, row.get("visibility") == "private")
        said = {"error": "You already created this model repo"} if there else {}
        raise _Answer(409 if there else 200, {"url": f"{self.hub.url}/{name}", "name": name, **said})

    def validate(self, _: Any, __: Any, body: bytes) -> None:
        found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        front = yaml.safe_load(found[1]) if found else {}
        faults = [
            f'"{name}" must be a string'
            for name in ("license", "library_name", "pipeline_tag")
            if not isinstance(front.get(name, ""), str)
        ]
        if front.get("license", "mit") not in LICENCES:
            faults.append('"license" must be one of the licenses that the Hub knows')
        for model in front.get("model-index") or ():
            faults += [] if isinstance(model.get("name"), str) else ['"model-index[0].name" is required']
            for row in model.get("results", [None]):
                whole = row and row["task"].get("type") and row["dataset"].get("type") and row["dataset"].get("name")
                faults += [] if whole and row["metrics"] else ['"model-index[0].results[0]" is incomplete']
        raise _Answer(400 if faults else 200, {"errors": [{"message": one} for one in faults], "warnings": []})

    def info(self, found: Any, *_: Any) -> None:
        repo = self._repo(found[1])
        commit = self._at(repo, found[2] or "main")
        files = [{"rfilename": path} for path in commit.files]
        raise _Answer(200, {"id": found[1], "sha": commit.oid, "private": repo.private, "siblings": files})

    def tree(self, found: Any, query: Any, _: bytes) -> None:
        commit = self._at(self._repo(found[1]), found[2])
        rows = []
        for path, blob in sorted(commit.files.items()):
            row: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git}
            if blob.large:
                row["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
            rows.append(row)
        self._paged(rows, query, found[0])

    def commits(self, found: Any, query: Any, _: bytes) -> None:
        repo = self._repo(found[1])
        rows = [
            {
                "id": one.oid,
                "title": one.title,
                "message": one.message,
                "authors": [],
                "date": "2026-01-01T00:00:00.000Z",
            }
            for one in reversed(repo.commits)
        ]
        self._paged(rows, query, found[0])

    def _paged(self, rows: list[Any], query: Any, path: str) -> None:
        start, size = int(query.get("cursor", ["0"])[0]), self.hub.page
        more = start + size < len(rows)
        link = f'<{self.hub.url}{quote(path)}?recursive=True&cursor={start + size}>; rel="next"'
        raise _Answer(200, rows[start : start + size], {"Link": link} if more else {})

    def refs(self, found: Any, *_: Any) -> None:
        repo = self._repo(found[1])
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repo.tags.items()]
        main = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}]
        raise _Answer(200, {"branches": main, "converts": [], "tags": tags})

    def preupload(self, found: Any, _: Any, body: bytes) -> None:
        head = self._repo(found[1], write=True).head
        rows = []
        for one in json.loads(body)["files"]:
            blob = head.files.get(one["path"])
            large = one["path"].endswith(LARGE) or one["size"] > 10**7
            oid = None if blob is None else blob.sha256 if blob.large else blob.git
            mode = "lfs" if large else "regular"
            rows.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        raise _Answer(200, {"files": rows})

    def batch(self, found: Any, _: Any, body: bytes) -> None:
        self._repo(found[1], write=True)
        rows = []
        for one in json.loads(body)["objects"]:
            actions: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.stored:  # an object that is there needs nothing
                actions["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}?signature=secret"},
                    "verify": {"href": f"{self.hub.url}/{found[1]}.git/verify", "header": {}},
                }
            rows.append(actions)
        raise _Answer(200, {"transfer": "basic", "objects": rows}, {"Content-Type": "application/vnd.git-lfs+json"})

    def store(self, found: Any, _: Any, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != found[1]:
            raise _Answer(400, {"error": "the content is not what its name says"})
        self.hub.stored[found[1]] = body
        raise _Answer(200)

    def verify(self, _: Any, __: Any, body: bytes) -> None:
        row = json.loads(body)
        there = self.hub.stored.get(row["oid"])
        raise _Answer(200 if there is not None and len(there) == row["size"] else 404, {})

    def commit(self, found: Any, _: Any, body: bytes) -> None:
        repo = self._repo(found[1], write=True)
        rows = [json.loads(line) for line in body.splitlines()]
        header = rows[0]["value"]
        if header.get("parentCommit", repo.head.oid) != repo.head.oid:
            raise _Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(repo.head.files)
        for row in rows[1:]:
            path = row["value"]["path"]
            if row["key"] == "file":
                files[path] = Blob(base64.b64decode(row["value"]["content"]), False)
            elif row["key"] == "lfsFile":
                if row["value"]["oid"] not in self.hub.stored:
                    raise _Answer(400, {"error": f"LFS pointer points to a file that does not exist: {path}"})
                files[path] = Blob(self.hub.stored[row["value"]["oid"]], True)
            elif files.pop(path, None) is None:
                raise _Answer(404, {"error": "A file with this name doesn't exist"}, {"X-Error-Code": "EntryNotFound"})
        made = _commit(header["summary"], header.get("description", ""), files, repo.head.oid)
        repo.commits.append(made)
        raise _Answer(200, {"commitUrl": f"{self.hub.url}/{found[1]}/commit/{made.oid}", "commitOid": made.oid})

    def tag(self, found: Any, _: Any, body: bytes) -> None:
        repo = self._repo(found[1], write=True)
        row = json.loads(body)
        if row["tag"] in repo.tags:
            raise _Answer(409, {"error": f"Tag reference exists already: {row['tag']}"})
        repo.tags[row["tag"]] = self._at(repo, found[2]).oid
        raise _Answer(200, {})

    def resolve(self, found: Any, *_: Any) -> None:
        commit = self._at(self._repo(found[1]), found[2])
        blob = commit.files.get(found[3])
        if blob is None:
            raise _Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        etag = blob.sha256 if blob.large else blob.git
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(blob.data))}
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(blob.data))
        raise _Answer(200, blob.data, headers)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: dict[tuple[str, str], Any] = {
    ("GET", "/api/whoami-v2"): _Handler.whoami,
    ("POST", "/api/repos/create"): _Handler.create,
    ("POST", "/api/validate-yaml"): _Handler.validate,
    ("GET", rf"/api/models/{REPO}(?:/revision/([\w.-]+))?"): _Handler.info,
    ("GET", rf"/api/models/{REPO}/tree/([\w.-]+)"): _Handler.tree,
    ("GET", rf"/api/models/{REPO}/commits/([\w.-]+)"): _Handler.commits,
    ("GET", rf"/api/models/{REPO}/refs"): _Handler.refs,
    ("POST", rf"/api/models/{REPO}/preupload/main"): _Handler.preupload,
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch"): _Handler.batch,
    ("PUT", r"/lfs/(\w+)"): _Handler.store,
    ("POST", rf"/{REPO}\.git/verify"): _Handler.verify,
    ("POST", rf"/api/models/{REPO}/commit/main"): _Handler.commit,
    ("POST", rf"/api/models/{REPO}/tag/([\w.-]+)"): _Handler.tag,
    ("GET HEAD", rf"/{REPO}/resolve/([\w.-]+)/(.+)"): _Handler.resolve,
}
