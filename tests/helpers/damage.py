"""Ways to damage a checkpoint's folder, and how its error has to read."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx import convert, load_model
from afmoe_mlx.errors import AfmoeError
from helpers.checkpoints import golden, write, write_golden
from helpers.command_line import invoke
from helpers.tiny_tokenizers import save

Break = Callable[[Path], Any]
# What a bad folder is made of, the error's class, and what its message says.
Case = tuple[Break, type[AfmoeError], tuple[str, ...]]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def config(name: str = "afmoe-base", **changes: Any) -> Break:
    """A golden with config keys changed; `...` takes one out."""

    def make(folder: Path) -> None:
        made = golden(name)
        kept = {key: value for key, value in (made.config | changes).items() if value is not ...}
        write(folder, kept, made.tensors)

    return make


def tensors(change: Callable[[dict[str, np.ndarray]], Any], name: str = "afmoe-base", **options: Any) -> Break:
    """A golden whose tensors were changed in place."""

    def make(folder: Path) -> None:
        made = golden(name)
        stored = options.get("layout", dict)(made.tensors)
        change(stored)
        write(folder, made.config, stored)

    return make


def put(**arrays: np.ndarray) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda stored: stored.update({name.replace("__", "."): array for name, array in arrays.items()})


def file(name: str, content: bytes | str) -> Break:
    """A golden with one file overwritten."""

    def make(folder: Path) -> None:
        write_golden(folder, "afmoe-base")
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def cut(keep: Callable[[int], int]) -> Break:
    """A golden whose weights end after the first `keep(size)` bytes."""

    def make(folder: Path) -> None:
        path = write_golden(folder, "afmoe-base") / WEIGHTS
        path.write_bytes(path.read_bytes()[: keep(path.stat().st_size)])

    return make


def lying(change: Callable[[dict[str, Any]], Any]) -> Break:
    """A golden whose safetensors header was changed."""

    def make(folder: Path) -> None:
        path = write_golden(folder, "afmoe-base") / WEIGHTS
        stored = path.read_bytes()
        (size,) = struct.unpack("<Q", stored[:8])
        header = json.loads(stored[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + stored[8 + size :])

    return make


def index(weight_map: Any) -> Break:
    return file(INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}))


def quantized(after: Callable[[Path], Any], **options: Any) -> Break:
    def make(folder: Path) -> None:
        source = write_golden(folder.with_name(f"{folder.name}-source"), "afmoe-base")
        convert(source, folder, **{"group_size": 32} | options)
        after(folder)

    return make


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


def retype(name: str, dtype: mx.Dtype) -> Break:
    def make(folder: Path) -> None:
        stored = mx.load(str(folder / WEIGHTS))
        stored[name] = stored[name].astype(dtype)
        mx.eval(stored)
        mx.save_safetensors(str(folder / WEIGHTS), stored)

    return make


def only_named(name: str) -> Break:
    """A checkpoint whose weights have another name."""

    def make(folder: Path) -> None:
        (write_golden(folder, "afmoe-base") / WEIGHTS).rename(folder / name)

    return make


only_bin = only_named("pytorch_model.bin")


def adapter(config: dict[str, Any], weights: str) -> Break:
    """A folder with what training has added to a model, and no model."""

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / weights).write_bytes(b"")

    return make


def shard_gone(folder: Path) -> None:
    made = golden("afmoe-base")
    write(folder, made.config, made.tensors, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()


def shard_gone_without_index(folder: Path) -> None:
    shard_gone(folder)
    (folder / INDEX).unlink()


def twice(folder: Path) -> None:
    shard_gone_without_index(folder)
    first = folder / "model-00001-of-00003.safetensors"
    (folder / "model-00002-of-00003.safetensors").write_bytes(first.read_bytes())


def odd_packed(stored: dict[str, np.ndarray]) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    stored[name] = np.concatenate([stored[name], stored[name][:, :1]], axis=1)


def flat_packed(stored: dict[str, np.ndarray]) -> None:
    stored["model.layers.1.mlp.experts.gate_up_proj"] = np.zeros(4, np.float32)


def drop(*names: str) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda stored: [stored.pop(name) for name in names]


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


LINEAR = {"rope_type": "linear", "rope_theta": 1e4}
LLAMA3 = LINEAR | {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
YARN = LINEAR | {"rope_type": "yarn", "factor": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
TYPES = ["sliding_attention"] * 4


def cases(**groups: dict[str, Case]) -> dict[str, Case]:
    """All cases of some groups, named after both."""
    return {f"{group}: {name}": case for group, of_group in groups.items() for name, case in of_group.items()}


def one_of_each(cases: dict[str, Case]) -> list[str]:
    """The name of one case for each group and class of error: `generate` does the same with all of a kind."""
    return list({(name.partition(":")[0], error): name for name, (_, error, _) in cases.items()}.values())


def assert_message(text: str, folder: Path, words: tuple[str, ...]) -> None:
    assert text.isprintable(), text
    assert len(text) < 400 + 2 * len(str(folder))
    for word in words:
        assert word.format(folder=folder) if "{folder}" in word else word in text, text


def check_load(make: Break, error: type[AfmoeError], words: tuple[str, ...], folder: Path) -> None:
    """From Python, the error is of this type and has these words."""
    make(folder)
    with pytest.raises(AfmoeError) as raised:
        load_model(folder)
    assert type(raised.value) is error, raised.value
    assert_message(str(raised.value), folder, words)


def check_convert(make: Break, words: tuple[str, ...], folder: Path) -> None:
    """`convert`, which reads checkpoints in another way, says it in a line, exits with 1 and writes nothing."""
    make(folder)
    if folder.is_dir():
        save(folder)
    target = folder.parent / "out"
    _check_command(["convert", "--hf-path", str(folder), "--mlx-path", str(target)], folder, words)
    assert not list(folder.parent.glob("*out*"))


def check_generate(make: Break, folder: Path) -> None:
    """`generate` says it in a line and exits with 1: of the tokenizer, which it reads first, if the config is bad."""
    make(folder)
    if folder.is_dir():
        save(folder)
    _check_command(["generate", "--model", str(folder), "--prompt", "hello"], folder, ())


def _check_command(arguments: list[str], folder: Path, words: tuple[str, ...]) -> None:
    result = invoke(arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert_message(result.stderr.strip(), folder, words)
