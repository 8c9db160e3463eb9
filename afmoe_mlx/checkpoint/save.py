"""From weights in memory to a checkpoint folder, in the layout that mlx-lm and LM Studio read."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, ConfigError
from .files import INDEX, read_config_json

SHARD_BYTES = 5 << 30

# What travels with the weights unchanged.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
TEMPLATES = "additional_chat_templates"


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `path` to write into, which takes its name when the block ends well and vanishes otherwise.

    CheckpointError if `path` exists, unless `overwrite`, and then only a model's folder is replaced.
    """
    path = path.resolve()
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path}: exists already: choose another place, or pass --overwrite to replace it")
    if path.exists() and not _is_model(path):
        raise CheckpointError(f"{path}: is not a model's folder, and so not overwritten: remove it yourself")
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        beside.mkdir(parents=True)
        yield beside
        _replace(path, beside)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        with suppress(OSError):  # not empty: all went well
            for parent in made:
                parent.rmdir()


def _is_model(path: Path) -> bool:
    """Whether a folder holds a config with a `model_type` and weights beside it."""
    try:
        return "model_type" in read_config_json(path) and any(path.glob("*.safetensors"))
    except ConfigError:
        return False


def _replace(path: Path, new: Path) -> None:
    """Give `new` the name `path`; the folder that had it is there until then, and back if that fails."""
    if not path.exists():
        new.rename(path)
        return
    old = new.with_suffix(".old")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def save_weights(
    folder: Path,
    weights: Mapping[str, mx.array],
    *,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write tensors as safetensors shards of at most `shard_bytes` and an index; the same bytes for the same input.

    on_progress is called with the bytes computed and their total.
    """
    shards = _shards(weights, shard_bytes)
    count = len(shards)
    names = [
        "model.safetensors" if count == 1 else f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)
    ]
    total = sum(array.nbytes for array in weights.values())
    done = 0
    for name, shard in zip(names, shards, strict=True):
        for key in shard:
            mx.eval(weights[key])  # one at a time, so that what they are made of does not pile up
            done += weights[key].nbytes
            if on_progress is not None:
                on_progress(done, total)
        try:
            mx.save_safetensors(str(folder / name), {key: weights[key] for key in shard}, metadata={"format": "mlx"})
        except RuntimeError as error:
            raise CheckpointError(f"{folder / name}: cannot be written: {error}") from None
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


def _shards(weights: Mapping[str, mx.array], shard_bytes: int) -> list[list[str]]:
    """Names in order, as many a shard as fit; a larger tensor has one of its own."""
    shards: list[list[str]] = []
    size = 0
    for name in sorted(weights):
        if not shards or size + weights[name].nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weights[name].nbytes
    return shards


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_companions(source: Path, target: Path) -> None:
    """Copy the tokenizer, chat templates and generation config that a checkpoint folder has."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / TEMPLATES).is_dir():
        (target / TEMPLATES).mkdir(exist_ok=True)
        for path in sorted((source / TEMPLATES).glob("*.jinja")):
            shutil.copyfile(path, target / TEMPLATES / path.name)
