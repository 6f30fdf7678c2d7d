"""A Hub on loopback, for tests: the few endpoints that the real huggingface_hub client uses.

Paths, fields and status codes are those that the client's source (huggingface_hub 2.4: hf_api.py,
_commit_api.py, lfs.py, file_download.py) sends and reads. It keeps everything in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, TOKEN = "somebody", "hf_" + "localHubTestToken0123456789abcdefg"
LFS = re.compile(r"\.(safetensors|bin|flac|pt)$")
Tree = dict[str, bytes]


@dataclass
class Repo:
    """A repository: its commits, oldest first, each with its whole tree."""

    private: bool
    commits: list[tuple[str, Tree]] = field(default_factory=list)

    @property
    def head(self) -> tuple[str, Tree]:
        return self.commits[-1]

    def commit(self, tree: Tree) -> str:
        seed = f"{len(self.commits)}{sorted(tree)}".encode()
        oid = hashlib.sha1(seed + b"".join(tree[name] for name in sorted(tree))).hexdigest()
        self.commits.append((oid, tree))
        return oid


@dataclass
class Fault:
    """Request number `at` (and all behind it, if `lasting`) fails `how`.

    A number is the status that is answered; "timeout" is no answer, "reset" a connection that is
    cut, "truncated" half of the answer; `after`: what was asked has been done all the same.
    """

    at: int
    how: int | str
    after: bool = False
    lasting: bool = False


class Hub(ThreadingHTTPServer):
    """The server, what it holds, and every request that it has had."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[tuple[str, bytes]] = []
        self.fault: Fault | None = None
        self.patience_s = 1.0  # how long a request that times out is held
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub that serves until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class Refused(Exception):
    def __init__(self, status: int, said: str, code: str = ""):
        self.status, self.said, self.code = status, said, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's kernel
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        body, hub = self.body(), self.server
        with hub.lock:
            number = len(hub.requests)
            hub.requests.append((f"{self.command} {self.path}", body))
            fault = hub.fault
        hit = fault and (number == fault.at or (fault.lasting and number > fault.at))
        if fault and hit and not fault.after:
            return self.fail(fault)
        try:
            with hub.lock:
                status, made = self.route(body)
        except Refused as refused:
            status, made = refused.status, {"error": refused.said}
            if fault and hit:
                return self.fail(fault, made)
            return self.reply(status, made, {"X-Error-Code": refused.code})
        if fault and hit:
            return self.fail(fault, made)
        return self.reply(status, made, {})

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        held = b""
        while size := int(self.rfile.readline(), 16):
            held += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return held

    def fail(self, fault: Fault, made: Any = b"") -> None:
        self.close_connection = True
        if fault.how == "truncated":
            whole = json.dumps(made).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
            return None
        if isinstance(fault.how, int):
            return self.reply(fault.how, {"error": "made to fail"}, {})
        if fault.how == "timeout":
            time.sleep(self.server.patience_s)
        # Closed without lingering, the kernel answers with a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def reply(self, status: int, made: Any, headers: dict[str, str]) -> None:
        content = made if isinstance(made, bytes) else json.dumps(made).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if isinstance(made, bytes):
            self.send_header("ETag", f'"{hashlib.sha256(made).hexdigest()}"')
            self.send_header("X-Repo-Commit", self.commit_served)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self, body: bytes) -> tuple[int, Any]:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/storage/"):  # signed addresses need no token
            return self.store(path.rpartition("/")[2], body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid username or password.")
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": OWNER}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        for pattern, act in (
            (r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", self.preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/main", self.commit),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self.tree),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.info),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ):
            if found := re.fullmatch(pattern, path):
                return act(body, *found.groups())
        raise Refused(404, f"no such endpoint here: {path}")

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked["organization"] or OWNER
        name = f"{owner}/{asked['name']}"
        if name in self.server.repos:
            raise Refused(409, "You already created this model repo")
        if owner != OWNER:
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        repo = self.server.repos[name] = Repo(asked.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return 200, {"url": f"{self.server.url}/{name}"}

    def repo(self, name: str) -> Repo:
        if name not in self.server.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.server.repos[name]

    def at(self, name: str, revision: str | None) -> tuple[str, Tree]:
        repo = self.repo(name)
        for commit, tree in repo.commits:
            if revision == commit:
                return commit, tree
        if revision in (None, "main"):
            return repo.head
        raise Refused(404, "Revision not found", "RevisionNotFound")

    def info(self, _: bytes, name: str, revision: str | None) -> tuple[int, Any]:
        commit, tree = self.at(name, revision)
        files = [{"rfilename": path} for path in tree]
        private = self.repo(name).private
        return 200, {"id": name, "sha": commit, "private": private, "siblings": files, "tags": []}

    def tree(self, _: bytes, name: str, revision: str) -> tuple[int, Any]:
        return 200, [_entry(path, data) for path, data in self.at(name, revision)[1].items()]

    def preupload(self, body: bytes, name: str) -> tuple[int, Any]:
        tree = self.repo(name).head[1]
        files = []
        for one in json.loads(body)["files"]:
            path = one["path"]
            held = _entry(path, tree[path]) if path in tree else {}
            oid = held.get("lfs", held).get("oid")
            mode = "lfs" if LFS.search(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}

    def batch(self, body: bytes, _: str) -> tuple[int, Any]:
        objects = []
        for one in json.loads(body)["objects"]:
            if one["oid"] not in self.server.large:
                href = f"{self.server.url}/storage/{one['oid']}"
                one = one | {"actions": {"upload": {"href": href}}}
            objects.append(one)
        return 200, {"transfer": "basic", "objects": objects}

    def store(self, oid: str, body: bytes) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content is not what was announced")
        self.server.large[oid] = body
        return 200, {}

    def commit(self, body: bytes, name: str) -> tuple[int, Any]:
        """All of it, or none: on top of the parent that the client has seen."""
        repo = self.repo(name)
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repo.head[0]:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.head[1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.large:
                    raise Refused(
                        400, f"LFS pointer pointed to a file that does not exist: {value}"
                    )
                tree[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                raise Refused(400, f"not known here: {line['key']}")
        oid = repo.commit(tree)
        return 200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid}

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> tuple[int, Any]:
        self.commit_served, tree = self.at(name, revision)
        if path not in tree:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return 200, tree[path]


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file of a tree, with the hashes that the Hub gives."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if LFS.search(path):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry
