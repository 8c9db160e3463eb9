"""A Hugging Face Hub of the tests' own on loopback: a folder's repositories at commits, with faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from helpers.hub_uploads import Uploads

REPO = "someone/tiny-afmoe"
CONFIG = json.dumps({"model_type": "afmoe"}).encode()
SMALL = {"config.json": CONFIG, "tokenizer.json": b"{}", "chat_template.jinja": b"{{ x }}"}
STORED_APART = (".safetensors",)
MODEL = {**SMALL, "model.safetensors": b"w" * 1000}


def sharded(*named: str) -> dict[str, bytes]:
    """A repository whose index names these shards."""
    index = json.dumps({"weight_map": {f"layer{i}": name for i, name in enumerate(named)}}).encode()
    return {**SMALL, "model.safetensors.index.json": index, **{name: name.encode() for name in named}}


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class FakeHub:
    """Serves `root/owner/name/commit/…` at `url` while entered; `requests` records every request in order.

    `private` repositories exist only with `token`, `gated` ones list but do not serve their files, `failing` maps a
    part of a path to the status it answers, `cut` maps a file to how often its body breaks off (but for what is asked
    for to read a header), `damaged` to how often it comes with a byte changed, `silent` never answers. `objects` are
    uploads by their hash; only `user` makes any.
    """

    root: Path
    token: str = "hf_secret"
    user: str = "someone"
    role: str = "write"
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    failing: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    cut_bytes: int = 0
    damaged: dict[str, int] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    silent: bool = False
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    """Bytes sent of each file."""

    def __enter__(self) -> FakeHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.released = threading.Event()
        self.connections: list[socket.socket] = []
        self.server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Drop every connection and refuse new ones, as a network that is down does."""
        self.released.set()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, repo: str, files: dict[str, bytes], *, branch: str = "main", commit: str | None = None) -> str:
        """Commit `files` as the whole content of `branch`; returns the commit's hash."""
        text = repo + "".join(f"{name}{hashlib.sha1(body).hexdigest()}" for name, body in sorted(files.items()))
        commit = commit or hashlib.sha1(text.encode()).hexdigest()
        for name, body in files.items():
            path = self.root / repo / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        self.refs.setdefault(repo, {})[branch] = commit
        return commit

    def content(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch's last commit."""
        folder = self.root / repo / self.refs[repo][branch]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {
            item.path.split("/", 5)[5] for item in self.requests if item.method == "GET" and "/resolve/" in item.path
        }


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Point `huggingface_hub` at a server and a home; it reads its environment when imported, so set its constants."""
    from huggingface_hub import constants

    settings = {"ENDPOINT": url, "HF_HUB_OFFLINE": False, "HF_HUB_ETAG_TIMEOUT": 1, "HF_HUB_DISABLE_XET": True}
    settings["HUGGINGFACE_CO_URL_TEMPLATE"] = url + "/{repo_id}/resolve/{revision}/{filename}"
    settings |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SSL_CERT_DIR", str(home.parent))  # where no certificate is: reading them all takes a while
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's retries


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Without a word when it is the client that went: on stderr it would stand in another test's output."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(Uploads, BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits for the client to acknowledge the head

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        path = path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")  # as repositories, all alike
        headers = self.headers
        if path != "/api/agent-harnesses":  # the library asks once a process, for its user agent
            self.hub.requests.append(Request(self.command, path, headers.get("Authorization"), headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))  # also of what is refused
        if self.hub.silent:
            self.hub.released.wait(30)
        for part, status in self.hub.failing.items():
            if part in path:
                return self._refuse(status, "", "the Hub is having a bad day")
        if self.command in ("POST", "PUT"):
            return self.receive(path, body)
        parts = path.strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            return self._whoami()
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self._api("/".join(parts[2:4]), parts[4:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._refuse(404, "", "no such page")

    def _whoami(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        token = {"accessToken": {"role": self.hub.role}}
        answer = {"type": "user", "name": self.hub.user, "orgs": [{"name": "our-org"}], "auth": token}
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": message}, json.dumps({"error": message}).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _commit(self, repo: str, revision: str) -> str | None:
        """The commit a revision of a visible repository names; None when the request has been refused."""
        authorization = self.headers.get("Authorization")
        allowed = authorization == f"Bearer {self.hub.token}"
        if authorization and not allowed:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo not in self.hub.refs or (repo in self.hub.private and not allowed):
            self._refuse(404 if allowed else 401, "RepoNotFound", "Repository not found")
        else:
            refs = self.hub.refs[repo]
            commit = refs.get(revision) or (revision if (self.hub.root / repo / revision).is_dir() else None)
            if commit is None:
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return commit
        return None

    def _api(self, repo: str, rest: list[str]) -> None:
        commit = self._commit(repo, "/".join(rest[1:]) or "main")
        if commit is None:
            return
        folder = self.hub.root / repo / commit
        names = sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file())
        if rest[:1] == ["tree"]:
            answer: Any = [self._entry(folder, name) for name in names]
        else:
            has_blobs = "blobs=" in urlsplit(self.path).query
            siblings = [{"rfilename": name} | (self._blob(folder, name) if has_blobs else {}) for name in names]
            answer = {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _entry(self, folder: Path, name: str) -> dict[str, Any]:
        body = (folder / name).read_bytes()
        entry = {"type": "file", "path": name, "size": len(body), "oid": _git_hash(body)}
        if name.endswith(STORED_APART):
            lfs = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
            return entry | {"lfs": lfs}
        return entry

    def _blob(self, folder: Path, name: str) -> dict[str, Any]:
        entry = self._entry(folder, name)
        blob = {"size": entry["size"], "blobId": entry["oid"]}
        if "lfs" in entry:
            blob["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 130}
        return blob

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return None
        path = self.hub.root / repo / commit / name
        if repo in self.hub.gated:
            return self._refuse(403, "GatedRepo", f"Access to model {repo} is restricted")
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        body = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Accept-Ranges": "bytes"}
        first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1 if last else len(body), len(body))
        is_part = start > 0 or end < len(body)
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        is_whole = start == 0 and not self.headers.get("Range")
        if self.command == "GET" and is_whole and self.hub.damaged.get(name, 0) > 0:
            self.hub.damaged[name] -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        is_header = self.headers.get("Range") == "bytes=0-100000"
        if self.command == "GET" and not is_header and self.hub.cut.get(name, 0) > 0:
            self.hub.cut[name] -= 1
            headers["Content-Length"] = str(end - start)
            end, self.close_connection = min(start + self.hub.cut_bytes, end), True
        if self.command == "GET":
            self.hub.served[name] = self.hub.served.get(name, 0) + end - start
        return self._send(206 if is_part else 200, headers, body[start:end])


def _git_hash(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
