"""The work folder of a conversion, beside its destination: locked, continued, and renamed at the end."""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..checkpoint.files import read_config_json
from ..durable import sync_file, sync_folder
from ..errors import CheckpointError, ConfigError, ConversionError


class Workspace:
    """`.NAME.partial` beside a destination called NAME, for one process at a time; `workspace` makes one."""

    def __init__(self, destination: Path, *, overwrite: bool) -> None:
        self.destination = destination
        self.folder = destination.parent / f".{destination.name}.partial"
        self.model = self.folder / "model"
        """What becomes the destination."""
        self.journal = self.folder / "journal.jsonl"
        self.downloads = self.folder / "downloads"
        self.calibration = self.folder / "calibration"
        self._old = self.folder / "old"
        self._overwrite = overwrite
        self._lock = -1

    @property
    def may_be_published(self) -> bool:
        """Whether a run may have been killed after what it made got its name: its journal says what lies there then."""
        return self.journal.exists() and not self.model.exists() and self.destination.exists()

    def check(self) -> None:
        """CheckpointError if the destination exists, unless it is a model's folder that is to be overwritten."""
        path = self.destination
        if path.is_symlink():  # all others are resolved
            raise CheckpointError(f"{path}: is a symbolic link to itself: choose another place")
        if path.exists() and not _is_model(path):
            raise CheckpointError(
                f"{path}: exists already and is not a model's folder: choose another place or remove it"
            )
        if path.exists() and not self._overwrite:
            raise CheckpointError(f"{path}: exists already: choose another place, or pass --overwrite to replace it")

    def check_apart(self, source: Iterable[Path]) -> None:
        """CheckpointError if files of the source lie in the folder that would be replaced."""
        for path in source:
            places = (_resolved(path.parent) / path.name, _resolved(path))  # a link to a file, and the file
            if any(_is_same(self.destination, folder) for place in places for folder in place.parents):
                found = "holds the source, which would be lost"
                raise CheckpointError(f"{self.destination}: {found}: choose another place")

    def enter(self) -> None:
        """Make the folder and lock it, or ConversionError if another process has it; undo what one killed left."""
        for path in (self.folder, self.model, self.downloads, self.calibration):
            if path.is_symlink() or (path.exists() and not path.is_dir()):  # nothing is written through a link
                raise ConversionError(f"{path}: is no folder of an unfinished conversion: remove it yourself")
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._unlock()
                found = "another process is converting to this place"
                raise ConversionError(f"{self.destination}: {found}: wait for it, or choose another one") from None
            except OSError:
                break  # a file system without locks
            with suppress(FileNotFoundError):  # the one before us may have removed it in between
                if os.path.samestat(os.fstat(self._lock), os.stat(self.folder / "lock")):
                    break
            self._unlock()
        if self._old.exists() and not self.destination.exists():
            self._old.rename(self.destination)  # it died while replacing it

    def _unlock(self) -> None:
        os.close(self._lock)
        self._lock = -1

    def discard(self) -> None:
        """Remove all that was made; downloads, which are checked before they are used, may stay."""
        for path in (self.model, self.calibration):
            shutil.rmtree(path, ignore_errors=True)
        self.journal.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all that an earlier run has left."""
        shutil.rmtree(self.downloads, ignore_errors=True)
        self.discard()

    def publish(self) -> None:
        """Give what was made the destination's name; what had it is there until then, and back if that fails."""
        self.check()
        for path in self.model.rglob("*"):
            if path.is_file():
                sync_file(path)
        sync_folder(self.model)
        if not self.destination.exists():
            self.model.rename(self.destination)
        else:
            shutil.rmtree(self._old, ignore_errors=True)  # what a killed run had replaced already
            self.destination.rename(self._old)
            try:
                self.model.rename(self.destination)
            except BaseException:
                self._old.rename(self.destination)
                raise
        sync_folder(self.destination.parent)
        self.clear()

    def leave(self) -> None:
        """Unlock the folder, and remove it unless a next run finds something of use there."""
        if self._lock == -1:
            return
        if not self.is_of_use():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()

    def is_of_use(self) -> bool:
        """Whether there are finished tensors, downloads or activations to continue with."""
        kept = any(folder.is_dir() and any(folder.iterdir()) for folder in (self.downloads, self.calibration))
        return kept or (self.journal.exists() and self.journal.read_bytes().count(b"\n") > 1)


@contextmanager
def workspace(path: Path, *, overwrite: bool = False) -> Iterator[Workspace]:
    """A place to make what becomes `path`, by its `publish`; one that cannot be continued vanishes with the block.

    CheckpointError if `path` exists, unless `overwrite`, and then only a model's folder is replaced; or unless it
    `may_be_published`: whether it is, and if not `check`, is for the block. ConversionError if another process is
    making it.
    """
    space = Workspace(_resolved(path), overwrite=overwrite)
    made: list[Path] = []
    try:
        made += (parent for parent in space.destination.parents if not parent.exists())
        if not space.may_be_published:
            space.check()
        space.enter()
        yield space
    except OSError as error:
        raise CheckpointError(f"{space.destination}: cannot be written: {error.strerror or error}") from None
    finally:
        space.leave()
        with suppress(OSError):  # not empty: all went well, or can be continued
            for parent in made:
                parent.rmdir()


def is_unfinished(path: Path) -> bool:
    """Whether a conversion to `path` was stopped that can be continued."""
    return Workspace(_resolved(path), overwrite=False).is_of_use()


def _resolved(path: Path) -> Path:
    """A path without links, and without a `~` where that means a home; those of pathlib raise RuntimeError."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names stand for one folder: macOS's disks take Model and model for the same."""
    return one == other or (one.exists() and other.exists() and os.path.samefile(one, other))


def _is_model(path: Path) -> bool:
    """Whether a folder holds a config with a `model_type` and weights beside it."""
    try:
        return "model_type" in read_config_json(path) and any(path.glob("*.safetensors"))
    except ConfigError:
        return False
