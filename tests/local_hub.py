"""A hub on 127.0.0.1 that speaks the Hub's HTTP interface to the real huggingface_hub, with faults on demand.

It keeps repositories in memory as commits: {file: bytes}. What it answers follows huggingface_hub's own requests:
model info, tree, resolve (HEAD and GET with ETag, commit header and range), creation and deletion of repositories and
branches, preupload, LFS batch and upload, commit.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_localhubtokenlocalhubtoken"
LARGE = (".safetensors", ".onnx")  # what the Hub keeps in LFS
GITATTRIBUTES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Fault:
    """What goes wrong with requests whose line, ``METHOD /path``, matches.

    Kinds: a status code as a string; ``slow`` (no answer for ``seconds``); ``cut`` (half the body, then silence);
    ``short`` (half the body, consistently); ``corrupt`` (same size, other bytes); ``drop`` (no answer at all).
    """

    kind: str
    match: str = "."
    times: int = 10**9
    seconds: float = 3.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        content = json.dumps([len(self.commits), *((name, sha(files[name])) for name in sorted(files))])
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class LocalHub:
    """The hub; ``log`` has the line of every request, ``received`` its body.

    ``watch`` is called with the line of every request and ``"half"`` when half its body has come in, ``"received"``
    when all has, ``"done"`` when what it asks for has been done and before the answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.received: list[bytes] = []
        self.watch: Callable[[str, str], None] = lambda moment, line: None
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository, without those the hub itself made."""
        repository = self.repositories[name]
        files = repository.commits[repository.resolve(revision)]
        return {path: data for path, data in files.items() if path not in GITATTRIBUTES}

    def commits(self, name: str) -> int:
        return len(self.repositories[name].commits)

    def put(self, name: str, files: dict[str, bytes]) -> str:
        """Commit files as somebody else would."""
        return self.repositories.setdefault(name, Repository()).commit("main", GITATTRIBUTES | files)

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, line):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length // 2)
        self.hub.watch("half", line)
        body += self.rfile.read(length - length // 2)
        if len(body) < length:  # the sender is gone
            self.close_connection = True
            return
        self.hub.log.append(line)
        self.hub.received.append(body)
        self.hub.watch("received", line)
        self.now = self.hub.fault(line)
        if self.now and self.now.kind == "slow":
            threading.Event().wait(self.now.seconds)  # tests replace time.sleep
        if self.now and self.now.kind == "drop":
            self.close_connection = True
        elif self.now and self.now.kind.isdecimal():
            self.answer(int(self.now.kind), {"error": "asked to fail"}, **self.now.headers)
        else:
            self.dispatch(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def dispatch(self, path: str, body: bytes) -> None:
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return getattr(self, action)(body, *match.groups())
        self.missing("EntryNotFound")

    # answers

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        self.hub.watch("done", f"{self.command} {self.path}")
        data = self.damaged(body) if self.now else body
        self.send_response(status)
        announced = body if self.now and self.now.kind == "cut" else data
        for name, value in {"Content-Length": str(len(announced)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        if self.now and self.now.kind == "cut":
            self.close_connection = True

    def damaged(self, body: bytes) -> bytes:
        kind = self.now.kind if self.now else ""
        if kind in ("cut", "short") and self.command in ("GET", "POST"):
            return body[: len(body) // 2]
        if kind == "corrupt" and self.command == "GET":
            middle = len(body) // 2
            return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        return body

    def missing(self, what: str, status: int = 404, **headers: str) -> None:
        self.answer(status, {"error": what}, X_Error_Code=what, X_Error_Message=what, **headers)

    # reading

    def repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.logged_in()):
            self.missing("RepoNotFound", 401 if not self.logged_in() else 404)
            return None
        return repository

    def logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def info(self, _: bytes, name: str, revision: str | None) -> None:
        if (repository := self.repository(name)) is None:
            return
        oid = repository.resolve(revision or "main")
        if oid is None:
            return self.missing("RevisionNotFound")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[oid])]
        self.answer(200, {"id": name, "sha": oid, "private": repository.private, "tags": [], "siblings": siblings})

    def tree(self, _: bytes, name: str, revision: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        oid = repository.resolve(revision)
        if oid is None:
            return self.missing("RevisionNotFound")
        self.answer(200, [_tree_entry(path, data) for path, data in repository.commits[oid].items()])

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        oid = repository.resolve(revision)
        if oid is None:
            return self.missing("RevisionNotFound")
        if path not in repository.commits[oid]:
            return self.missing("EntryNotFound", X_Repo_Commit=oid)
        data = repository.commits[oid][path]
        etag = sha(data) if path.endswith(LARGE) else git_oid(data)
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": oid, "Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and self.command == "GET":
            start = int(wanted[1])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[start:], **headers)
        self.answer(200, data, **headers)

    # writing

    def writable(self, name: str) -> Repository | None:
        if not self.logged_in():
            self.missing("Unauthorized", 401, WWW_Authenticate="Bearer")
            return None
        return self.repository(name)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.logged_in():
            return self.answer(401, {"error": "Invalid username or password."})
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo"})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit("main", GITATTRIBUTES)
        self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def branch(self, _: bytes, name: str, branch: str) -> None:
        if (repository := self.writable(name)) is not None:
            repository.branches.setdefault(branch, repository.branches["main"])
            self.answer(200, {})

    def delete(self, body: bytes) -> None:
        asked = json.loads(body)
        if self.writable(name := f"{asked['organization']}/{asked['name']}") is not None:
            del self.hub.repositories[name]
            self.answer(200, {})

    def delete_branch(self, _: bytes, name: str, branch: str) -> None:
        if (repository := self.writable(name)) is not None:
            del repository.branches[branch]
            self.answer(200, {})

    def validate(self, _: bytes) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, branch: str) -> None:
        if (repository := self.writable(name)) is None:
            return
        there = repository.commits[repository.branches[branch]]
        self.answer(200, {"files": [_upload_mode(file["path"], there) for file in json.loads(body)["files"]]})

    def batch(self, body: bytes, name: str) -> None:
        if self.writable(name) is None:
            return
        objects = [_upload_action(self.hub, asked) for asked in json.loads(body)["objects"]]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if sha(body) != oid:
            return self.answer(400, {"error": "the bytes are not those announced"})
        self.hub.large[oid] = body
        self.answer(200, b"", ETag=f'"{oid}"')

    def commit(self, body: bytes, name: str, branch: str) -> None:
        if (repository := self.writable(name)) is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        with self.hub.lock:
            head = repository.branches[branch]
            if lines[0]["value"].get("parentCommit", head) != head:
                return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            files = dict(repository.commits[head])
            for line in lines[1:]:
                _apply(files, self.hub, line["key"], line["value"])
            oid = repository.commit(branch, files)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})


ROUTES = [
    ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", "info"),
    ("GET", r"/api/models/([^/]+/[^/]+)/tree/(.+)", "tree"),
    ("GET HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", "branch"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("DELETE", r"/api/models/([^/]+/[^/]+)/branch/(.+)", "delete_branch"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/([0-9a-f]{64})", "upload"),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", "commit"),
]


def _tree_entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": sha(data), "size": len(data), "pointerSize": 132}
    return entry


def _upload_mode(path: str, there: dict[str, bytes]) -> dict[str, Any]:
    large = path.endswith(LARGE)
    mode: dict[str, Any] = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    if path in there:
        mode["oid"] = sha(there[path]) if large else git_oid(there[path])
    return mode


def _upload_action(hub: LocalHub, asked: dict[str, Any]) -> dict[str, Any]:
    answer = {"oid": asked["oid"], "size": asked["size"]}
    if asked["oid"] not in hub.large:
        answer["actions"] = {"upload": {"href": f"{hub.url}/lfs/{asked['oid']}"}}
    return answer


def _apply(files: dict[str, bytes], hub: LocalHub, key: str, value: dict[str, Any]) -> None:
    if key == "file":
        files[value["path"]] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        files[value["path"]] = hub.large[value["oid"]]
    elif key == "deletedFile":
        del files[value["path"]]


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A fresh hub, a fresh cache, and huggingface_hub pointed at both and logged in.

    huggingface_hub reads its environment once, at import: so its constants are set, and the environment for children.
    """
    hub = LocalHub()
    home = tmp_path_factory.mktemp("huggingface")
    token = home / "token"
    token.write_text(TOKEN)
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(token),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "SDZOO_HUB"))]:
        monkeypatch.delenv(name)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield hub
    hub.close()
