"""A model in four shards on the fake Hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from afmoe_mlx.checkpoint.files import INDEX
from afmoe_mlx.conversion.source import HubSource, LocalSource, open_source
from helpers.hub_server import SMALL, FakeHub

NAMES = [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]

SHARDS = {name: save({f"layer{i}": np.full((10, 100), i, np.float32)}) for i, name in enumerate(NAMES)}

WEIGHT_MAP = {f"layer{i}": name for i, name in enumerate(NAMES)}

MODEL = SMALL | SHARDS | {INDEX: json.dumps({"weight_map": WEIGHT_MAP}).encode()}


def settle(source: HubSource) -> None:
    """Wait for what is fetched in the background."""
    for fetch in source._fetches.values():
        fetch.join(10)


def shards_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.safetensors")}


def shards_fetched(hub: FakeHub) -> list[str]:
    """The shards whose whole content was asked for, in order."""
    paths = [item.path for item in hub.requests if item.method == "GET" and item.range is None]
    return [path.rpartition("/")[2] for path in paths if path.endswith(".safetensors")]


def local(folder: Path) -> LocalSource:
    folder.mkdir(parents=True)
    for name, body in MODEL.items():
        (folder / name).write_bytes(body)
    source = open_source(folder)
    assert isinstance(source, LocalSource)
    return source
