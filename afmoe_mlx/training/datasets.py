"""Where examples come from: a folder with JSON lines, or a dataset on the Hub."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.hub_errors import explain
from ..errors import HubError, InputError
from ..interrupts import interruptible

SPLITS = ("train", "valid", "test")

Row = tuple[str, Mapping[str, Any]]


class Dataset:
    """The rows of each split, as (where it is, row): of `train.jsonl`, `valid.jsonl` and `test.jsonl`.

    Those of a folder, or of a dataset on the Hub, given as owner/name, of which these files alone are fetched. One
    without them is read by the library `datasets`, if it is installed. Raises InputError for a folder that has none,
    HubError when the Hub does not give it.
    """

    def __init__(self, name: str) -> None:
        folder = Path(name).expanduser()
        self._splits: Mapping[str, Any] | None = None
        if folder.is_dir():
            self._folder = folder
        elif folder.exists():
            raise InputError(f"{name}: is a file: expected the folder, with train.jsonl in it")
        elif name.count("/") == 1 and not name.startswith((".", "~", "/")):
            self._folder = _fetch(name)
            if not self._files():
                self._splits = _by_library(name)
        else:
            raise InputError(f"no such folder: {name!r}; expected one with train.jsonl, or owner/name on the Hub")
        if self._splits is None and not self._files():
            raise InputError(f"{name}: no train.jsonl, valid.jsonl or test.jsonl: expected examples, a line each")

    def _files(self) -> list[Path]:
        return [path for split in SPLITS if (path := self._folder / f"{split}.jsonl").is_file()]

    def rows(self, split: str) -> Iterator[Row]:
        """Of a split, none where there is no such; InputError for a line that is no JSON object."""
        if self._splits is not None:
            found = self._splits.get(split, self._splits.get("validation", ()) if split == "valid" else ())
            for i, row in enumerate(found):
                yield f"{split}[{i}]", row
        elif (path := self._folder / f"{split}.jsonl").is_file():
            yield from _lines(path)


def _lines(path: Path) -> Iterator[Row]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no UTF-8 at byte {error.start}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        origin = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{origin}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{origin}: expected a JSON object")
        yield origin, row


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    wanted = [f"{split}.jsonl" for split in SPLITS]
    try:
        return Path(interruptible(lambda: snapshot_download(name, repo_type="dataset", allow_patterns=wanted)))
    except RepositoryNotFoundError:
        raise HubError(f"no folder and no dataset on the Hub is called {name!r}, or it is private") from None
    except Exception as error:
        raise HubError(explain(error, name, None, wanted)) from error


def _by_library(name: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name} has no train.jsonl: `pip install datasets` reads other formats") from None
    try:
        return datasets.load_dataset(name)
    except Exception as error:
        raise HubError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
