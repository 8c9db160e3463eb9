"""A cache saved in a file of its own, and loaded to continue from."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CacheError
from .cache import Cache
from .fingerprint import content_digest, fingerprint

FORMAT = "afmoe-mlx prompt cache 1"


@dataclass(frozen=True)
class SavedCache:
    """A cache read from a file, with the tokens it has seen."""

    cache: Cache
    tokens: list[int]
    """Those that the cache has seen."""
    note: str
    """What was written with it."""


def save_cache(path: str | Path, model: Any, cache: Cache, tokens: Sequence[int], *, note: str = "") -> None:
    """Write a cache of one row and the tokens it has seen to a safetensors file that its owner alone may read.

    note: any text, given back by `load_cache`. Raises CacheError if it cannot be written.
    """
    if len(tokens) != cache.offset:
        raise CacheError(f"{len(tokens)} tokens for a cache that has seen {cache.offset}")
    path = Path(os.path.expanduser(path))
    arrays = cache.state | {"tokens": mx.array([index(token) for token in tokens], mx.int32)}
    told = {"format": FORMAT, "model": fingerprint(model).hex(), "content": content_digest(arrays), "note": note}
    beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}.safetensors")
    try:
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        mx.save_safetensors(str(beside), arrays, told)
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        raise CacheError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def load_cache(path: str | Path, model: Any, *, slack: int | None = None) -> SavedCache:
    """Read what `save_cache` wrote; CacheError if the file is none of its, damaged or of another model."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise CacheError(f"{path}: not a file: expected a prompt cache that this program has saved")
    try:
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror}") from None
    except (RuntimeError, ValueError):
        expected = "expected a prompt cache that this program has saved"
        raise CacheError(f"{path}: damaged or something else: {expected}: give another name, or delete it") from None
    arrays, told = loaded
    if told.get("format") != FORMAT:
        raise CacheError(f"{path}: not a prompt cache that this program has saved: give another name, or delete it")
    if told.get("model") != fingerprint(model).hex():
        others = "of another model, another quantization, or with other experts in memory"
        raise CacheError(f"{path}: a prompt cache {others}: give another name")
    if told.get("content") != content_digest(arrays):
        raise CacheError(f"{path}: a damaged prompt cache: delete it")
    cache = model.make_cache(slack)
    tokens = arrays.pop("tokens", None)
    cache.state = arrays
    mx.eval(cache.arrays)
    if tokens is None or tokens.size != cache.offset or cache.batch_size not in (None, 1):
        raise CacheError(f"{path}: a damaged prompt cache: delete it")
    return SavedCache(cache, tokens.tolist(), told.get("note", ""))


def shared_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """How many tokens, or characters, two sequences begin with alike."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)
