"""Writing a checkpoint folder, in the layout that mlx-lm and LM Studio read."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError
from .files import INDEX

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


def is_licence(name: str) -> bool:
    """Whether a file's name is that of a licence, which travels too: a model card's `license_link` points to it."""
    return name.casefold().startswith(("license", "licence", "notice"))


def save_weights(folder: Path, weights: Mapping[str, mx.array], *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as safetensors shards of at most `shard_bytes` and an index; the same bytes for the same input."""
    shards = _shards(weights, shard_bytes)
    names = shard_names(len(shards))
    total = sum(array.nbytes for array in weights.values())
    for name, shard in zip(names, shards, strict=True):
        for key in shard:
            mx.eval(weights[key])  # one at a time, so that what they are made of does not pile up
        try:
            mx.save_safetensors(str(folder / name), {key: weights[key] for key in shard}, metadata={"format": "mlx"})
        except RuntimeError as error:
            raise CheckpointError(f"{folder / name}: cannot be written: {error}") from None
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


def shard_names(count: int) -> list[str]:
    """The names of a checkpoint's weight files."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


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
    """Copy the tokenizer, chat templates, generation config and licence that a checkpoint folder has."""
    for name in (*COMPANIONS, *sorted(path.name for path in source.iterdir() if is_licence(path.name))):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / TEMPLATES).is_dir():
        (target / TEMPLATES).mkdir(exist_ok=True)
        for path in sorted((source / TEMPLATES).glob("*.jinja")):
            shutil.copyfile(path, target / TEMPLATES / path.name)
