"""The models in the local Hub cache: which there are, and removing one."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HubError
from ..models import ARCHITECTURES
from . import names
from .hub_errors import one_line

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo


@dataclass(frozen=True)
class CachedModel:
    """A model in the Hub cache: `path` is its main (else newest) revision, `revisions` its commits, newest first."""

    repo: str
    bytes: int
    path: Path
    revisions: tuple[str, ...]
    model_type: str


def cached_models() -> list[CachedModel]:
    """The AFMoE and LFM2-MoE models in the local Hub cache, by repository; empty when there is no cache."""
    found = []
    info = _scan_cache()
    for repo in info.repos if info else ():
        newest_first = sorted(repo.revisions, key=lambda item: item.last_modified, reverse=True)
        for item in sorted(newest_first, key=lambda item: "main" not in item.refs):
            model_type = _model_type(item.snapshot_path)
            if repo.repo_type == "model" and model_type in ARCHITECTURES:
                commits = tuple(item.commit_hash for item in newest_first)
                found.append(CachedModel(repo.repo_id, repo.size_on_disk, item.snapshot_path, commits, model_type))
                break
    return sorted(found, key=lambda model: model.repo)


def remove_cached(name: str) -> int:
    """Delete every revision of a model, a short name or `owner/name`, from the Hub cache; returns the bytes freed.

    Raises HubError when the cache does not hold it or it cannot be deleted.
    """
    repo = names.repo_id(name)
    info = _scan_cache()
    held = [item for item in info.repos if item.repo_type == "model" and item.repo_id == repo] if info else []
    if info is None or not held or not held[0].revisions:
        raise HubError(f"{repo!r} is not in the Hub cache: nothing to remove")
    # The library finds revisions by hash alone, and copies of a repository share theirs: show it this one only.
    alone = dataclasses.replace(info, repos=frozenset(held))
    strategy = alone.delete_revisions(*(item.commit_hash for item in held[0].revisions))
    with _silent_library(), suppress(OSError):
        strategy.execute()
    if held[0].repo_path.exists():
        raise HubError(f"{repo!r} could not be removed from {held[0].repo_path}: check the folder's permissions")
    return int(strategy.expected_freed_size)


@contextmanager
def _silent_library() -> Iterator[None]:
    """Without what the library logs of a file that it cannot delete, traceback and all: we look at what is left."""
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def _scan_cache() -> "HFCacheInfo | None":
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None
    except (OSError, ValueError) as error:
        raise HubError(f"cannot read the Hub cache ({one_line(error)}): check HF_HOME and its permissions") from error


def _model_type(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None
