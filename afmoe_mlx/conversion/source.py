"""The source of a conversion: a folder, or a model on the Hub whose shards are fetched as they are needed."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Protocol

from ..checkpoint.files import StoredTensor, find_weights, read_config_json, read_headers
from ..checkpoint.hub import LM_STUDIO, resolve_small_files
from ..checkpoint.shards import CARD, HubModel, find_hub_model
from ..errors import ConversionError

# What a thread is waited for when it is told to stop; it is killed with the process if it does not listen.
PATIENCE = 2.0


class SourceChangedError(ConversionError):
    """A source is no more what it was when the conversion began."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: changed while it was converted: expected it left alone; run the same command again")


class Source(Protocol):
    """A checkpoint to read.

    folder: where everything but the weights is: config.json, tokenizer files. headers: every stored tensor by name,
    known before any weight is here; `headers[name].file.name` is the shard to ask `file` for. identity: a digest that
    changes when the source does. origin, commit: of the repository on the Hub it is, None where that is not known.
    downloads: the folder that shards are fetched into. removes: whether `done` removes them from there.
    """

    @property
    def folder(self) -> Path: ...
    @property
    def headers(self) -> Mapping[str, StoredTensor]: ...
    @property
    def identity(self) -> str: ...
    @property
    def origin(self) -> str | None: ...
    @property
    def commit(self) -> str | None: ...
    @property
    def downloads(self) -> Path: ...
    @property
    def removes(self) -> bool: ...

    def expect(self, order: Sequence[str]) -> None:
        """Say which shards will be asked for, and in which order: the first one is fetched from now on."""

    def file(self, name: str) -> Path:
        """The local path of a shard, whole and verified; the next one expected is fetched in the background."""

    def done(self, name: str) -> None:
        """Say that all of a shard is read and what was made of it is safe: it may be removed."""

    def bytes_to_fetch(self, needs: Sequence[Collection[str]]) -> int:
        """Room that shards still to be fetched take at the most at one time. needs: those needed together, in order."""

    def check_unchanged(self) -> None:
        """SourceChangedError if the source is not what it was when it was opened."""

    def card(self) -> Path | None:
        """The local path of the model card it was published with, fetched if need be; None if it has none."""

    def close(self) -> None:
        """End what runs in the background; shards not done with stay for the next run."""


def open_source(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    downloads: Path | None = None,
    on_fetched: Callable[[int, int], None] | None = None,
) -> Source:
    """The source that a folder, a short name or `owner/name` on the Hub names; no weights are fetched yet.

    downloads: for a low disk, a folder of this run's own that shards are fetched into, no more than two at a time but
    where more are asked for, and removed from when done with; what the Hub cache holds is used, and left there. By
    default shards stay in the Hub cache. on_fetched: called from a thread with the bytes that came and those of all
    that was expected.
    Raises the errors of `resolve`, and CheckpointError for headers that make no sense.
    """
    folder, repo = resolve_small_files(source, revision=revision)
    if repo is None:
        return LocalSource(folder)
    return HubSource(find_hub_model(repo, folder), downloads=downloads, on_fetched=on_fetched)


class LocalSource:
    """A folder with a whole checkpoint. Raises CheckpointError if it has none."""

    removes = False

    def __init__(self, folder: Path) -> None:
        self.folder = self.downloads = folder
        self.origin, self.commit = _published(folder)
        read_config_json(folder)  # what is no model's folder is told so, before its weights are missed
        self.headers = read_headers(find_weights(folder))
        self.identity = self._digest()

    def _digest(self) -> str:
        """Of the config, and of every weight file's header, size and time of the last change."""
        digest = hashlib.sha256()
        with suppress(OSError):
            digest.update((self.folder / "config.json").read_bytes())
        tensors = [(name, str(t.file.name), t.shape, t.dtype) for name, t in sorted(self.headers.items())]
        files = {tensor.file for tensor in self.headers.values()}
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files) if path.exists()]
        digest.update(json.dumps([tensors, stats]).encode())
        return digest.hexdigest()

    def expect(self, order: Sequence[str]) -> None:
        pass

    def file(self, name: str) -> Path:
        return self.folder / name

    def done(self, name: str) -> None:
        pass

    def bytes_to_fetch(self, needs: Sequence[Collection[str]]) -> int:
        return 0

    def check_unchanged(self) -> None:
        if self._digest() != self.identity:
            raise SourceChangedError(self.folder)

    def card(self) -> Path | None:
        path = self.folder / CARD
        return path if path.is_file() else None

    def close(self) -> None:
        pass


def _published(folder: Path) -> tuple[str | None, str | None]:
    """The repository and commit of a folder in the Hub cache, the repository of one of LM Studio's."""
    path = folder.absolute()
    match path.parts:
        case [*_, storage, "snapshots", commit] if storage.startswith("models--"):
            return storage.removeprefix("models--").replace("--", "/", 1), commit
        case [_, _, *_, owner, name] if path.parents[1] in [Path(root).expanduser() for root in LM_STUDIO]:
            return f"{owner}/{name}", None
    return None, None


class HubSource:
    """A commit of a repository, which never changes. One shard more than is asked for is fetched at a time."""

    def __init__(
        self,
        model: HubModel,
        *,
        downloads: Path | None = None,
        on_fetched: Callable[[int, int], None] | None = None,
    ) -> None:
        self.folder = model.folder
        self.downloads = downloads or model.folder
        self.origin, self.commit = model.repo, model.commit
        self.identity = hashlib.sha256(f"{model.repo}@{model.commit}".encode()).hexdigest()
        self.headers = model.headers()
        self._model = model
        self.removes = downloads is not None
        self._on_fetched = on_fetched
        self._fetched = self._to_fetch = 0
        self._order: list[str] = []
        self._asked: set[str] = set()
        self._fetches: dict[str, _Fetch] = {}
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        if downloads is not None:  # what a killed run left half fetched is not continued
            for path in downloads.glob(".cache/huggingface/download/*.incomplete"):
                path.unlink(missing_ok=True)

    def expect(self, order: Sequence[str]) -> None:
        self._order = list(order)
        if self.removes:  # what a killed run was done with
            for path in self.downloads.glob("*.safetensors"):
                if path.name not in self._order:
                    path.unlink()
        self._to_fetch = sum(self._size(name) for name in self._absent(order))
        self._fetch_next()

    def file(self, name: str) -> Path:
        with self._lock:
            self._asked.add(name)
            fetch = self._fetches.get(name) or self._start(name)
        try:
            path = fetch.result()
        except BaseException:
            with self._lock:
                self._fetches.pop(name, None)
            raise
        self._fetch_next()
        return path

    def done(self, name: str) -> None:
        if not self.removes:
            return
        (self.downloads / name).unlink(missing_ok=True)
        with self._lock:
            self._fetches.pop(name, None)
        self._fetch_next()

    def bytes_to_fetch(self, needs: Sequence[Collection[str]]) -> int:
        absent = self._absent(name for names in needs for name in names)
        if not self.removes:
            return sum(self._size(name) for name in absent)
        uses = {name: [i for i, names in enumerate(needs) if name in names] for name in absent}
        most = 0
        for i in range(len(needs)):
            held = [name for name in absent if uses[name][0] <= i <= uses[name][-1]]
            ahead = [name for name in absent if uses[name][0] > i][: max(0, 2 - len(held))]
            most = max(most, sum(self._size(name) for name in held + ahead))
        return most

    def check_unchanged(self) -> None:
        pass

    def card(self) -> Path | None:
        return self._model.card()

    def close(self) -> None:
        self._stopped.set()
        for fetch in list(self._fetches.values()):
            fetch.join(PATIENCE)
        if self.removes and not any(self.downloads.glob("*.safetensors")):
            rmtree(self.downloads, ignore_errors=True)

    def _absent(self, order: Iterable[str]) -> list[str]:
        """The shards of `order` that have yet to be downloaded."""
        places = (self.folder, self.downloads)
        return [name for name in dict.fromkeys(order) if not any((folder / name).is_file() for folder in places)]

    def _size(self, name: str) -> int:
        return self._model.shards[name].size or 0

    def _fetch_next(self) -> None:
        """Start on the next shard expected, if no other is ahead of what was asked for and there is room for it."""
        with self._lock:
            ahead = self._fetches.keys() - self._asked
            is_full = self.removes and len(self._fetches) > 1
            if ahead or is_full or self._stopped.is_set():
                return
            for name in self._order:
                if name not in self._asked:
                    self._start(name)
                    return

    def _start(self, name: str) -> "_Fetch":
        def fetch() -> Path:
            into = self.downloads if self.removes else None
            return self._model.fetch(name, into=into, stopped=self._stopped, on_bytes=self._count)

        self._fetches[name] = _Fetch(fetch)
        self._fetches[name].start()
        return self._fetches[name]

    def _count(self, count: int) -> None:
        with self._lock:
            self._fetched += count
            fetched = self._fetched
        if self._on_fetched is not None:
            self._on_fetched(min(fetched, self._to_fetch), self._to_fetch)


class _Fetch(threading.Thread):
    """A path being fetched in a thread, which does not keep an interrupted process alive."""

    def __init__(self, fetch: Callable[[], Path]) -> None:
        super().__init__(name="afmoe-mlx fetch", daemon=True)
        self._work = fetch
        self._path: Path | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._path = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Path:
        """The path when it is there; what went wrong is raised here."""
        self.join()
        if self._path is None:
            raise self._error or RuntimeError("the fetch has not run")
        return self._path
