"""A checkpoint folder's files: JSON, the index, and safetensors opened without reading their weights."""

import json
import os
import resource
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import device
from ..errors import CheckpointError, ConfigError
from ..values import listed, shown
from .headers import BITS, read_header
from .methods import check_method
from .names import GGUF, instead

# Open files that a process may need beside a checkpoint's.
SPARE_FILES = 256

ADAPTER = "adapter_config.json"  # beside an adapter's weights, as mlx-lm and PEFT write them
INDEX = "model.safetensors.index.json"
DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "U32": mx.uint32, "U8": mx.uint8}
# What else other tensors are made of, and what MLX reads it as.
FOREIGN_DTYPES = {"I32": mx.int32, "F8_E4M3": mx.uint8}


def read_json(path: Path, error: type[Exception] = CheckpointError) -> dict[str, Any]:
    """The object in a JSON file; `error` names the file where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: no such file: expected the folder of a model, with its {path.name}") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not valid JSON: {problem}") from None
    if not isinstance(value, dict):
        raise error(f"{path}: holds a JSON {type(value).__name__}: expected an object")
    return value


def read_config_json(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model's folder; ConfigError too if its quantizer's files are not read."""
    if not (folder / "config.json").exists() and any(folder.glob(f"*{GGUF}")):
        raise ConfigError(f"{folder}: holds GGUF files, which are llama.cpp's: {instead(folder)}")
    raw = read_json(folder / "config.json", ConfigError)
    check_method(raw, folder)
    return raw


def refuse_adapter(folder: Path) -> None:
    """CheckpointError for a folder that holds an adapter and no model."""
    if (folder / "config.json").exists() or not (folder / ADAPTER).is_file():
        return
    made_for = read_json(folder / ADAPTER)
    model = made_for.get("base_model_name_or_path") or made_for.get("model")
    base = f" ({shown(model)})" if isinstance(model, str) else ""
    raise CheckpointError(f"{folder} holds an adapter, no model: give the model that it was trained on{base}")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors header: dtype, shape, file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """On disk."""
        return prod(self.shape) * BITS[self.dtype] // 8


def find_weights(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those its index names, else every `model*.safetensors`."""
    if (index := folder / INDEX).exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{index}: no weight_map: expected tensor names with their files")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{index}: names {shown(name)}: expected a .safetensors file beside it")
            if not os.path.isfile(folder / name):
                raise CheckpointError(f"{index}: names {shown(name)}: no such file: download it again")
        return [folder / name for name in names]
    if files := sorted(folder.glob("model*.safetensors")):
        return files
    if named := sorted(path.name for path in folder.glob("*.safetensors")):
        expected = f"expected model.safetensors, or shards that {INDEX} names"
        raise CheckpointError(f"{folder}: only {listed(named)}: {expected}: rename it if it is the whole model")
    others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    found = f"only {', '.join(others[:3])}" if others else "no weights"
    raise CheckpointError(f"{folder}: {found}: expected model.safetensors; other formats are not read")


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of some safetensors files by name, from their headers alone, in whatever number format."""
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        try:
            header = read_header(path)
        except ValueError as problem:
            raise CheckpointError(f"{path}: not a whole safetensors file ({problem}): download it again") from None
        except OSError as problem:
            raise CheckpointError(f"{path}: cannot be read: {problem.strerror or problem}") from None
        for name, (dtype, shape) in header.items():
            if name in tensors:
                twice = f"{listed([name])} is in {tensors[name].file.name} too"
                raise CheckpointError(f"{path}: {twice}: expected it once")
            tensors[name] = StoredTensor(path, shape, dtype)
    return tensors


def require_dtypes(tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """The tensors as they are; CheckpointError for one in a number format that is not read."""
    for name, stored in tensors.items():
        if stored.dtype not in DTYPES:
            found = f"{listed([name])} is {stored.dtype}"
            raise CheckpointError(f"{stored.file}: {found}: expected one of {', '.join(DTYPES)}")
    return tensors


def stored_dtype(tensors: Mapping[str, StoredTensor]) -> mx.Dtype:
    """The dtype a checkpoint is meant to be computed in: that of its embeddings, or of their scales."""
    for key in ("weight", "scales"):
        tensor = tensors.get(f"model.embed_tokens.{key}")
        if tensor is not None and mx.issubdtype(DTYPES[tensor.dtype], mx.floating):
            return DTYPES[tensor.dtype]
    return mx.bfloat16  # mxfp4 and its like have 8-bit scales


def load_lazily(files: Collection[Path], streams: "Sequence[device.Stream | None]" = (None,)) -> dict[str, mx.array]:
    """All tensors of some safetensors files, each read when it is first evaluated, by streams that share the bytes."""
    allowed = _allow_open_files(len(files) * len(streams) + SPARE_FILES)
    streams = streams[: max((allowed - SPARE_FILES) // max(len(files), 1), 1)]
    tensors: dict[str, mx.array] = {}
    shares = [0] * len(streams)
    for path in files:
        try:
            loaded: list[Any] = [mx.load(str(path), stream=stream) for stream in streams]
        except (RuntimeError, ValueError) as problem:
            raise CheckpointError(f"{path}: cannot be read: {problem}") from None
        for name, array in loaded[0].items():
            least = shares.index(min(shares))
            shares[least] += array.nbytes
            tensors[name] = loaded[least][name]
    return tensors


def _allow_open_files(count: int) -> int:
    """Let this process have so many files open, if it may: macOS grants 256, and a large model has more. How many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return count if soft == resource.RLIM_INFINITY else min(soft, count)
