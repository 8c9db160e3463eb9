"""What the tests' Hub does with what is sent to it: repositories made, objects stored, commits, as git-LFS has it."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helpers.hub_server import FakeHub


class Uploads(BaseHTTPRequestHandler):
    """Answers POST and PUT; who has not the Hub's token is refused."""

    hub: FakeHub

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def receive(self, path: str, body: bytes) -> None:
        """Answer a request that `_answer` has recorded."""
        parts = path.strip("/").split("/")
        if self.command == "PUT" and parts[0] == "lfs":  # a signed address needs no token
            self.hub.objects[hashlib.sha256(body).hexdigest()] = body
            return self.reply(200, {})
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.reply(401, {"error": "Invalid username or password."})
        match parts:
            case ["api", "validate-yaml"]:
                return self.reply(200, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case ["api", "models", owner, name, "preupload", _]:
                return self._preupload(f"{owner}/{name}", json.loads(body)["files"])
            case [owner, name, "info", "lfs", "objects", "batch"]:
                return self.reply(200, {"objects": [self._object(item) for item in json.loads(body)["objects"]]})
            case ["api", "models", owner, name, "commit", branch]:
                return self._commit_files(f"{owner}/{name}", branch, [json.loads(x) for x in body.splitlines()])
        return self.reply(404, {"error": "no such page"})

    def reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _create(self, asked: dict[str, Any]) -> None:
        if (owner := asked["organization"] or self.hub.user) not in (self.hub.user, "our-org"):
            return self.reply(403, {"error": f"You don't have the rights to create a model under {owner}"})
        repo = f"{owner}/{asked['name']}"
        if repo in self.hub.refs:
            return self.reply(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
        self.hub.add(repo, {".gitattributes": b""})
        if asked.get("visibility") == "private":
            self.hub.private.add(repo)
        return self.reply(200, {"url": f"{self.hub.url}/{repo}"})

    def _preupload(self, repo: str, files: list[dict[str, Any]]) -> None:
        if repo not in self.hub.refs:
            return self.reply(404, {"error": "Repository not found"})
        modes = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for item in files
        ]
        return self.reply(200, {"files": modes})

    def _object(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.hub.objects:
            return item
        return item | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}}

    def _commit_files(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.content(repo)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.add(repo, files, branch=branch)
        self.reply(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})
