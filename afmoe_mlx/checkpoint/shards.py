"""A model's weight files on the Hub, each fetched when it is needed and verified by the hash that the Hub lists."""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from ..errors import AfmoeError, CheckpointError, HubError
from .files import StoredTensor, read_headers
from .hub import CACHED_TIMEOUT, check_listing, missing_files, shard_names
from .hub_errors import explain, few, is_passing
from .remote import read_remote_headers

# Seconds before each new try once the library, which continues a file several times itself, has given up.
PAUSES = (2.0, 8.0, 30.0, 60.0)
CARD = "README.md"
AGAIN = "run the same command again to continue"
SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class StoppedError(Exception):
    """A download was told to stop."""


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub lists it. digest: sha256 of what it stores apart, git's sha1 of what it keeps in git itself.

    Both are None where only the cache was asked, and it does not know.
    """

    size: int | None
    digest: str | None

    def mismatch(self, path: Path) -> str | None:
        """How a local file differs from this one: "1 bytes, expected 2", "sha256 ab…, expected cd…"; None if equal."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size} bytes, expected {self.size}"
        if self.digest is None:
            return None
        algorithm = "sha256" if SHA256.fullmatch(self.digest) else "sha1"
        with path.open("rb") as file:
            start = hashlib.new(algorithm, b"" if algorithm == "sha256" else f"blob {size}\0".encode())
            found = hashlib.file_digest(file, lambda: start).hexdigest()
        return None if found == self.digest else f"{algorithm} {found[:12]}…, expected {self.digest[:12]}…"


@dataclass(frozen=True)
class HubModel:
    """A commit of a repository: `folder` has its small files, `shards` are its weights by name."""

    repo: str
    commit: str
    folder: Path
    shards: dict[str, HubFile]
    has_card: bool

    def cached(self, name: str) -> Path | None:
        """Where the Hub cache holds a shard, unverified; None if it does not."""
        path = self.folder / name
        return path if path.is_file() else None

    def headers(self) -> dict[str, StoredTensor]:
        """All tensors of the shards by name; headers that are not here are fetched alone, by ranged requests."""
        held = [path for name in self.shards if (path := self.cached(name))]
        with suppress(CheckpointError):  # a damaged file, which is fetched again when it is needed
            if len(held) == len(self.shards):
                return read_headers(held)
        return self._persist(lambda: read_remote_headers(self.repo, self.commit, self.shards), "its headers", Event())

    def fetch(
        self,
        name: str,
        *,
        into: Path | None = None,
        stopped: Event | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Path:
        """The local path of a shard, verified: as the Hub cache holds it, else downloaded there or into a folder.

        What differs from what the Hub lists is removed and fetched once more. A lost connection is tried again after
        each of PAUSES. stopped: ends it early, with StoppedError. on_bytes: called with the bytes of every piece that
        comes. Raises HubError.
        """
        stopped = stopped or Event()
        found = None
        for _ in range(2):
            path = self.cached(name) or self._persist(
                lambda: self._download(name, into, stopped, on_bytes), name, stopped, into
            )
            found = self.shards[name].mismatch(path)
            if found is None:
                return path
            _remove(path)
        advice = "try again later, or pick another repo or revision"
        raise HubError(f"{self.repo}: {name} came as {found} by the Hub's listing, twice: {advice}")

    def card(self) -> Path | None:
        """The local path of the repository's README.md, fetched if need be; None if it has none. Raises HubError."""
        from huggingface_hub import hf_hub_download

        def fetch() -> Path:
            return Path(hf_hub_download(self.repo, CARD, revision=self.commit))

        return self._persist(fetch, CARD, Event()) if self.has_card else None

    def _persist(self, work: Callable[[], T], what: str, stopped: Event, into: Path | None = None) -> T:
        """What `work` gives, asked for again after a pause where that may help."""
        for pause in (*PAUSES, None):
            if stopped.is_set():
                break
            try:
                return work()
            except (AfmoeError, StoppedError):
                raise
            except Exception as error:
                if pause is None or not is_passing(error):
                    line = explain(error, self.repo, self.commit, [what], folder=into, again=AGAIN)
                    raise HubError(line) from error
                stopped.wait(pause)
        raise StoppedError(what)

    def _download(self, name: str, into: Path | None, stopped: Event, on_bytes: Callable[[int], None] | None) -> Path:
        from huggingface_hub import hf_hub_download

        if into is None:
            self._remove_leftovers(name)
        watch = _watch(stopped, on_bytes)
        return Path(hf_hub_download(self.repo, name, revision=self.commit, local_dir=into, tqdm_class=watch))

    def _remove_leftovers(self, name: str) -> None:
        """Remove what killed processes left of a shard in the cache, unless another one is fetching it now.

        The library gives every download a name of its own, and so never continues nor removes these.
        """
        from filelock import FileLock, Timeout

        digest = self.shards[name].digest
        storage = self.folder.parents[1]
        left = list((storage / "blobs").glob(f"{digest}.????????.incomplete")) if digest else []
        with suppress(Timeout, OSError):
            if left:
                with FileLock(storage.parent / ".locks" / storage.name / f"{digest}.lock", timeout=0):
                    for path in left:
                        path.unlink(missing_ok=True)


def find_hub_model(repo: str, folder: Path) -> HubModel:
    """The shards of a repository at the commit whose small files the Hub cache has in `folder`.

    Without a network it is told from the cache alone, if that holds them all. Raises HubError and CheckpointError.
    """
    from huggingface_hub import HfApi, constants

    commit = folder.name
    missing = missing_files(folder, [path.name for path in folder.iterdir()], True)
    timeout = float(constants.HF_HUB_ETAG_TIMEOUT) if missing else CACHED_TIMEOUT
    try:
        info = HfApi().model_info(repo, revision=commit, files_metadata=True, timeout=timeout)
    except Exception as error:
        if missing:
            raise HubError(explain(error, repo, commit, missing)) from error
        return HubModel(repo, commit, folder, _cached_shards(folder), (folder / CARD).is_file())
    listed = {item.rfilename: item for item in info.siblings or ()}
    check_listing(repo, listed, True)
    names = shard_names(folder, listed)
    if absent := [name for name in names if name not in listed]:
        raise HubError(f"{repo} lacks {few(absent)}: its upload is incomplete, pick another repo or revision")
    return HubModel(repo, commit, folder, {name: _hub_file(listed[name]) for name in names}, CARD in listed)


def _hub_file(item: Any) -> HubFile:
    return HubFile(item.size, item.lfs.sha256 if item.lfs else item.blob_id)


def _cached_shards(folder: Path) -> dict[str, HubFile]:
    """The shards of a whole snapshot: the cache names the files it links to by their hashes."""
    names = shard_names(folder, [path.name for path in folder.iterdir()])
    targets = {name: (folder / name).readlink().name if (folder / name).is_symlink() else "" for name in names}
    return {name: HubFile(None, target if SHA256.fullmatch(target) else None) for name, target in targets.items()}


def _remove(path: Path) -> None:
    """Remove a file and, of the cache's, what it links to."""
    try:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(f"{path} is damaged and cannot be removed ({error.strerror}): remove it yourself") from error


def _watch(stopped: Event, on_bytes: Callable[[int], None] | None) -> type[Any]:
    """A progress bar that shows nothing: it counts, and ends the download when told to."""
    from huggingface_hub.utils import tqdm

    class Watch(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})
            # Of what comes compressed there are two bars: of the network's bytes, and of the file's.
            self.is_of_file = "downloading bytes" not in str(kwargs.get("desc"))

        def update(self, n: float | None = 1) -> None:
            if stopped.is_set():
                raise StoppedError
            if on_bytes is not None and self.is_of_file and n:
                on_bytes(int(n))

    return Watch
