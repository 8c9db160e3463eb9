"""The headers of safetensors files on the Hub, by ranged requests: no weights are fetched."""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError
from .files import StoredTensor

# Each header is one round trip, and large models have a hundred files.
REQUESTS_AT_ONCE = 8


def read_remote_headers(repo: str, commit: str, files: Iterable[str]) -> dict[str, StoredTensor]:
    """All tensors of some safetensors files of a repository's commit, by name.

    CheckpointError for a header that makes no sense; what else `huggingface_hub` raises passes through.
    """
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        parts = list(pool.map(lambda name: _read_header(repo, commit, name), files))
    return {name: tensor for part in parts for name, tensor in part.items()}


def _read_header(repo: str, commit: str, file: str) -> dict[str, StoredTensor]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        metadata = HfApi().parse_safetensors_file_metadata(repo, file, revision=commit)
        tensors = {
            name: StoredTensor(Path(file), tuple(info.shape), info.dtype) for name, info in metadata.tensors.items()
        }
        sizes = [size for tensor in tensors.values() for size in tensor.shape]
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise TypeError("a shape is not of sizes")
    except (SafetensorsParsingError, TypeError, ValueError, AttributeError, KeyError):
        expected = "expected a safetensors header: the upload is damaged, pick another repo or revision"
        raise CheckpointError(f"{repo}: {file} begins with something else: {expected}") from None
    return tensors


def keep_headers(folder: Path, headers: Mapping[str, StoredTensor]) -> None:
    """Keep, if the disk allows it, the headers of all shards of a snapshot in the Hub cache, which lacks some."""
    path = _kept(folder)
    told = {name: (tensor.file.name, tensor.shape, tensor.dtype) for name, tensor in headers.items()}
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        new.write_text(json.dumps(told), encoding="utf-8")
        new.replace(path)


def read_kept_headers(folder: Path) -> dict[str, StoredTensor] | None:
    """What `keep_headers` kept of a snapshot; None if it is not there, or damaged."""
    try:
        told = json.loads(_kept(folder).read_text(encoding="utf-8"))
        return {name: StoredTensor(Path(file), tuple(shape), dtype) for name, (file, shape, dtype) in told.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _kept(folder: Path) -> Path:
    """Beside the snapshots of the repository, to go with them."""
    return folder.parents[1] / "headers" / f"{folder.name}.json"
