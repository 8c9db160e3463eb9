"""Examples for a tiny model, and what trains on them."""

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afmoe_mlx.models import CausalLM
from afmoe_mlx.training.examples import Example
from afmoe_mlx.training.group import Group
from afmoe_mlx.training.saved import AdapterFolder
from afmoe_mlx.training.training import Event, Options, start, training


def examples(count: int = 6, *, least: int = 4, most: int = 20, seed: int = 0, vocab: int = 40) -> list[Example]:
    """Of random tokens and lengths, the first two of each not learned."""
    drawn = np.random.default_rng(seed)
    lengths = drawn.integers(least, most + 1, count)
    return [
        Example(array("i", map(int, drawn.integers(0, vocab, n))), 2, f"train.jsonl:{i}")
        for i, n in enumerate(lengths, 1)
    ]


def trained_on(
    model: CausalLM, taught: Sequence[Example], folder: Path, options: Options, *, resumes: bool = False
) -> list[Event]:
    """Train a model, from where its folder stands if it `resumes`."""
    start(model, options)
    adapter = AdapterFolder(folder)
    saved = adapter.last() if resumes else None
    if saved is None:
        adapter.begin(config_of(options))
    return list(training(model, taught, [], options, adapter, Group(), saved=saved))


def config_of(options: Options, **changes: Any) -> dict[str, Any]:
    kind = options.fine_tune_type.value
    return {"fine_tune_type": kind, "num_layers": options.num_layers, "lora_parameters": {"scale": 20.0}} | changes


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
