"""`Page`: the files of the chat page, read as package data, and the headers that keep it to itself."""

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
"""Of the files that are handed out; licences, and what the vendored files are checked by, are not."""

# No script but these files', nothing from or to anywhere else, in nobody's frame; and markup becomes elements by way of
# DOMPurify alone.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    ]
)
HEADERS = {
    "cache-control": "no-cache",  # asked for again each time, and not sent again unless it is another
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every response with a file."""


@dataclass(frozen=True)
class File:
    """A file of the page."""

    body: bytes
    kind: str
    """As in content-type."""

    @cached_property
    def packed(self) -> bytes:
        """The body, gzipped."""
        return gzip.compress(self.body, mtime=0)

    @cached_property
    def tag(self) -> str:
        """What an ETag of it holds: another for another body."""
        return sha256(self.body).hexdigest()[:32]

    def response(self, headers: Mapping[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """(status, body, headers) for a request with these headers, their names in lower case."""
        is_packed = "gzip" in headers.get("accept-encoding", "")
        etag = f'"{self.tag}{"-gzip" if is_packed else ""}"'
        told = {**HEADERS, "etag": etag}
        if etag in headers.get("if-none-match", ""):
            return 304, b"", told
        told["content-type"] = self.kind
        if is_packed:
            return 200, self.packed, {**told, "content-encoding": "gzip"}
        return 200, self.body, told


def read_page() -> dict[str, File]:
    """All files of the page by the paths that they are asked for: `/` is index.html, the others are in `/page/`."""
    return dict(_files(files(__package__) / "static", "/page"))


def _files(folder: Traversable, path: str) -> Iterator[tuple[str, File]]:
    for entry in folder.iterdir():
        kind = KINDS.get(entry.name[entry.name.rfind(".") :])
        if entry.is_dir():
            yield from _files(entry, f"{path}/{entry.name}")
        elif kind is not None:
            yield "/" if entry.name == "index.html" else f"{path}/{entry.name}", File(entry.read_bytes(), kind)
