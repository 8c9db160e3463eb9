"""Resolving a model's name to a local folder: a path, LM Studio's folders, a short name, or a download from the Hub.

`huggingface_hub` is imported inside functions: it costs more than opening a model that is already here.
"""

import fnmatch
import glob
import json
import logging
import os
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from ..errors import AfmoeError, CheckpointError, HubError
from ..interrupts import interruptible
from ..models import read_config
from . import names
from .files import ADAPTER, INDEX, StoredTensor, find_weights, read_config_json, read_headers, refuse_adapter
from .foreign import translate
from .hub_errors import explain, few, one_line
from .parts import restricted
from .save import is_licence
from .verify import Check, Headers

SHARDS = "model*.safetensors"
NUMBERED = re.compile(r"(model.*-)(\d{5})-of-(\d{5})\.safetensors")
LM_STUDIO = ("~/.lmstudio/models", "~/.cache/lm-studio/models")
CACHED_TIMEOUT = 3.0  # seconds to ask for a newer revision when the model could start without an answer

log = logging.getLogger("afmoe_mlx")


def resolve(
    source: str | os.PathLike[str], *, revision: str | None = None, weights: bool = True, check: Check | None = None
) -> Path:
    """The local folder of a model given as a folder, a short name or `owner/name`, fetched from the Hub if need be.

    Without `weights` only the configuration and tokenizer files are fetched. A name on the Hub is also looked for in
    LM Studio's folders unless a revision is given. check: may refuse a model before its weights are fetched. Raises
    CheckpointError for what names no model, HubError when the Hub does not give it.
    """
    found = _locate(source, revision, weights)
    return found if isinstance(found, Path) else _fetch(found, revision, weights, check)


def resolve_small_files(source: str | os.PathLike[str], *, revision: str | None = None) -> tuple[Path, str | None]:
    """What `resolve` gives, but the weights of a model on the Hub stay there: its folder without them, its repository.

    The repository is None for a local model, which is whole. Raises the errors of `resolve`.
    """
    found = _locate(source, revision, True)
    return (found, None) if isinstance(found, Path) else (_fetch(found, revision, False, None), found)


def _locate(source: str | os.PathLike[str], revision: str | None, weights: bool) -> Path | str:
    """The folder of a local model, else the repository that the Hub is to be asked for."""
    text = os.fspath(source)
    if not text.strip():
        raise CheckpointError("no model given: expected a folder, owner/name on the Hub, or a short name")
    folder = os.path.expanduser(text)
    if os.path.isdir(folder):
        if revision is not None:
            raise CheckpointError(f"{text!r} is a local folder, and a local folder has no revisions: leave it out")
        refuse_adapter(Path(folder))
        return Path(folder)
    if os.path.isfile(folder) and folder.endswith(names.GGUF):
        raise CheckpointError(f"{text!r} is a GGUF file, which is llama.cpp's: {names.instead(text)}")
    if os.path.isfile(folder):
        raise CheckpointError(f"{text!r} is a file: give the folder that holds config.json and the safetensors")
    if isinstance(source, os.PathLike) or _looks_like_path(text):
        raise CheckpointError(f"no such folder: {text!r}; give an existing one, or owner/name on the Hub")
    repo = names.repo_id(text)
    if revision is None and (local := _lm_studio_folder(repo, weights)):
        return local
    return repo


def resolve_headers(
    source: str | os.PathLike[str], *, revision: str | None = None
) -> tuple[Path, dict[str, StoredTensor]]:
    """The folder with a model's configuration, and the headers of its weights, none of which are fetched.

    Raises the errors of `resolve`, and CheckpointError for headers that make no sense.
    """
    folder, repo = resolve_small_files(source, revision=revision)
    read_config_json(folder)  # what is no model, or is not read, is told so before its headers are
    if repo is None or not missing_files(folder, os.listdir(folder), True):
        return folder, read_headers(find_weights(folder))
    from .remote import read_kept_headers

    elsewhere = read_kept_headers(folder) or _remote_headers(repo, folder)
    here = [path for name in shard_names(folder, os.listdir(folder)) if (path := folder / name).is_file()]
    return folder, elsewhere | read_headers(here)


def _remote_headers(repo: str, folder: Path) -> dict[str, StoredTensor]:
    """All tensors, by name, of the shards that a snapshot lacks."""
    from huggingface_hub import HfApi

    from .remote import read_remote_headers

    commit = folder.name
    try:
        listing = [item.rfilename for item in HfApi().model_info(repo, revision=commit).siblings or ()]
        check_listing(repo, listing, True)
        shards = shard_names(folder, listing)
        return read_remote_headers(repo, commit, [name for name in shards if not (folder / name).is_file()])
    except AfmoeError:
        raise
    except Exception as error:
        raise HubError(explain(error, repo, commit, ["its weights"])) from error


def commit_of(source: str | os.PathLike[str], folder: Path, *, revision: str | None = None) -> str | None:
    """The commit that a model is of whose files `resolve` found in `folder`; None for one that is not the Hub's."""
    return None if isinstance(_locate(source, revision, True), Path) else folder.name


def _looks_like_path(text: str) -> bool:
    return text.startswith(("./", "../", "/", "~")) or text.count("/") > 1 or text.endswith(("/", os.sep))


def _lm_studio_folder(repo: str, weights: bool) -> Path | None:
    for root in LM_STUDIO:
        folder = Path(os.path.expanduser(root), *repo.split("/"))
        if (folder / "config.json").is_file() and not missing_files(folder, os.listdir(folder), weights):
            return folder
    return None


def _fetch(repo: str, revision: str | None, weights: bool, check: Check | None) -> Path:
    """The snapshot of a repository in the Hub cache, brought up to date when the Hub can be reached."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RevisionNotFoundError

    missing: list[str] = []
    try:
        cached = _cached_snapshot(repo, revision)
        missing = missing_files(cached, os.listdir(cached), weights) if cached else []
        complete = cached if cached and not missing else None
        if complete and complete.name == revision:  # a commit never changes: nothing to ask
            return complete
        timeout = CACHED_TIMEOUT if complete else float(constants.HF_HUB_ETAG_TIMEOUT)
        try:
            info = HfApi().model_info(repo, revision=revision, timeout=timeout)
        except Exception as error:
            if complete is None or isinstance(error, RevisionNotFoundError):
                raise
            log.info("using the cached copy of %s: %s", repo, one_line(error))
            return complete
        listing = [item.rfilename for item in info.siblings or ()]
        if cached and cached.name == info.sha and not missing_files(cached, listing, weights):
            return cached
        check_listing(repo, listing, weights)
        return _download(repo, revision, str(info.sha), listing, weights, check)
    except AfmoeError:
        raise
    except Exception as error:
        raise HubError(explain(error, repo, revision, missing)) from error


def _cached_snapshot(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # One file is asked for, since the library cannot know which of the listed ones a model needs.
        return Path(snapshot_download(repo, revision=revision, allow_patterns="config.json", local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def check_listing(repo: str, listing: Collection[str], weights: bool) -> None:
    """Refuse a repository that cannot be a model for us before anything of it is fetched."""
    other = {Path(name).suffix for name in listing} & {".bin", ".pt", ".pth", names.GGUF, ".ckpt", ".npz"}
    if names.GGUF in other and not fnmatch.filter(listing, SHARDS):
        raise HubError(f"{repo} holds GGUF files, which are llama.cpp's: {names.instead(repo)}")
    if "config.json" not in listing and ADAPTER in listing:
        raise HubError(f"{repo} is an adapter, no model: give the model that it was trained on")
    if "config.json" not in listing:
        raise HubError(f"{repo} has no config.json: expected a model in the layout of Transformers or MLX")
    if weights and not fnmatch.filter(listing, SHARDS):
        if named := [name for name in listing if "/" not in name and name.endswith(".safetensors")]:
            raise HubError(f"{repo} has only {few(named)}, expected {SHARDS}: pick another repo or revision")
        held = f"only {', '.join(sorted(other))} weights" if other else "no weights"
        raise HubError(f"{repo} has {held}, expected {SHARDS}: convert to safetensors first")


def _download(
    repo: str, revision: str | None, commit: str, listing: Collection[str], weights: bool, check: Check | None
) -> Path:
    """Fetch the small files of a commit, the config first, then exactly the shards that the index among them names."""
    from huggingface_hub import hf_hub_download

    read_config_json(_snapshot(repo, commit, ["config.json"]))  # which may be of a quantizer that is not read
    folder = _snapshot(repo, commit, _small_files(listing))
    if weights:
        shards = shard_names(folder, listing)
        if absent := [name for name in shards if name not in listing]:
            raise HubError(f"{repo} lacks {few(absent)}: its upload is incomplete, pick another repo or revision")
        if check is not None:
            from .remote import read_remote_headers

            check_first(folder, read_remote_headers(repo, commit, shards), check)
        _snapshot(repo, commit, shards)
    if missing := missing_files(folder, listing, weights):
        raise HubError(f"the download of {repo} lacks {few(missing)}: run it again, finished files are kept")
    if revision != commit:
        # The cache's branch moves last: offline, a half-fetched update must not hide the copy before it.
        hf_hub_download(repo, "config.json", revision=revision)
    return folder


def check_first(folder: Path, headers: Headers, check: Check, part: range | None = None) -> None:
    """Have a model, or a part of it, refused, if it is to be, before gigabytes of it are fetched."""
    with warnings.catch_warnings(action="ignore"):  # loading warns of the same
        raw, headers = translate(read_config_json(folder), headers)
        config = read_config(raw)
    check(*restricted(config, headers, part or range(config.num_hidden_layers)))


def _snapshot(repo: str, commit: str, files: Iterable[str]) -> Path:
    """Files of a commit in the Hub cache; interrupted, what is under way ends with its next piece."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    stopped = Event()

    class Bar(tqdm):
        """The library's bar, where it forgets to ask as well: only on a terminal. It ends a download that is not
        waited for, which its threads would not."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{"disable": None} | kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            if stopped.is_set():
                raise InterruptedError("the download was interrupted")
            return super().update(n)  # type: ignore[no-any-return, unused-ignore]

    patterns = [glob.escape(name) for name in files]
    try:
        return Path(
            interruptible(lambda: snapshot_download(repo, revision=commit, allow_patterns=patterns, tqdm_class=Bar))
        )
    except BaseException:
        stopped.set()
        raise


def fetch_shards(repo: str, commit: str, shards: Sequence[str]) -> None:
    """Fetch some of a commit's weights into the Hub cache. Raises HubError."""
    try:
        _snapshot(repo, commit, shards)
    except Exception as error:
        raise HubError(explain(error, repo, commit, shards)) from error


def _small_files(listing: Iterable[str]) -> list[str]:
    """Configuration, tokenizer, template and licence files at the top level, without other formats' indexes."""
    return [
        name
        for name in listing
        if "/" not in name
        and (name.endswith((".json", ".jinja")) or is_licence(name))
        and (name == INDEX or not name.endswith(".index.json"))
    ]


def shard_names(folder: Path, listing: Iterable[str]) -> list[str]:
    """The weight files: those the folder's index names, else those listed that match, with their numbered siblings."""
    index = folder / INDEX
    if not index.is_file():
        shards = set(fnmatch.filter(listing, SHARDS))
        for match in [match for name in shards if (match := NUMBERED.fullmatch(name))]:
            prefix, _, total = match.groups()
            shards.update(f"{prefix}{i:05}-of-{total}.safetensors" for i in range(1, int(total) + 1))
        return sorted(shards)
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({one_line(error)}): remove it and fetch it again") from error
    for name in shards:
        # The index is a stranger's: a shard outside the folder is not to be read.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r} as a shard: expected safetensors in the same folder")
    return sorted(shards)


def missing_files(folder: Path, listing: Iterable[str], weights: bool) -> list[str]:
    """What the folder still lacks of a model whose files are `listing`."""
    listing = list(listing)
    needed = ["config.json", *_small_files(listing)]
    if weights:
        needed += shard_names(folder, listing) or [SHARDS]
    return [name for name in dict.fromkeys(needed) if not (folder / name).is_file()]
