"""Other quantizers' checkpoints in plain NumPy: what their tensors stand for, read and written without the package.

Values are exact: each is computed in float64 from its codes and scales, and rounded once to float32.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# safetensors' codes and what their bytes are here; BF16 is the upper half of a float32.
BYTES = {"F8_E4M3": np.uint8, "U8": np.uint8, "I32": np.int32, "I64": np.int64, "F32": np.float32, "BF16": np.uint16}

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

# A tensor by its code and values; BF16's are float32.
Stored = dict[str, tuple[str, np.ndarray]]


def float8(code: int) -> float:
    """E4M3, of which only the codes 127 and 255 are no numbers."""
    sign, exponent, mantissa = 1 - 2 * (code >> 7), code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


FLOAT8 = np.array([float8(code) for code in range(256)])


def read_file(data: bytes) -> Stored:
    """The tensors of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[8 + size + begin : 8 + size + end], BYTES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = (entry["dtype"], values.reshape(entry["shape"]))
    return tensors


def write_file(path: Path, tensors: Stored) -> None:
    """A safetensors file of these tensors."""
    header, parts, end = {}, [], 0
    for name, (dtype, values) in tensors.items():
        exact = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values
        parts.append(np.ascontiguousarray(exact, BYTES[dtype]).tobytes())
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Cut off to what bfloat16 holds."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def plain(tensors: Stored, block: tuple[int, int] = (128, 128)) -> dict[str, np.ndarray]:
    """What the tensors of a checkpoint stand for, in float32, under the names of plain ones."""
    found = {}
    for name, (dtype, values) in tensors.items():
        path, _, kind = name.rpartition(".")
        own = {key.removeprefix(f"{path}."): part for key, part in tensors.items() if key.startswith(f"{path}.weight")}
        if kind == "weight_packed":
            exact = _integers(own) if dtype == "I32" else _nvfp4(own)
        elif kind == "weight" and "weight_scale" in own:
            exact = (
                _nvfp4(own) if dtype == "U8" else FLOAT8[values] * _blocks(own["weight_scale"][1], values.shape, block)
            )
        elif kind.startswith("weight_") or kind.endswith("_scale"):
            continue
        else:
            exact = values
        found[name.replace("weight_packed", "weight")] = np.asarray(exact, np.float32)
    return found


def _float8(own: Stored, block: tuple[int, int]) -> np.ndarray:
    codes = own["weight"][1]
    return FLOAT8[codes] * _blocks(own["weight_scale"][1], codes.shape, block)


def _blocks(scale: np.ndarray, shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """A scale for every weight."""
    scale = scale.astype(np.float64).reshape(-1, 1) if scale.ndim < 2 else scale.astype(np.float64)
    for axis in (0, 1):
        size = 1 if scale.shape[axis] == shape[axis] else shape[axis] if scale.shape[axis] == 1 else block[axis]
        scale = np.repeat(scale, size, axis).take(range(shape[axis]), axis)
    return scale


def _integers(own: Stored) -> np.ndarray:
    rows, width = own["weight_shape"][1]
    words = own["weight_packed"][1].view(np.uint32)
    bits = 32 * words.shape[1] // width
    codes = unpack(words, bits)[:, :width].astype(np.float64)
    scale = own["weight_scale"][1].astype(np.float64)
    zero = np.full(scale.shape, 2.0 ** (bits - 1))
    if "weight_zero_point" in own:
        zero = unpack(own["weight_zero_point"][1].view(np.uint32).T, bits).T[:rows].astype(np.float64)
    group = width // scale.shape[1]
    return (codes - np.repeat(zero, group, 1)) * np.repeat(scale, group, 1)


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """(n, words) uint32 -> (n, integers), the first of a word lowest."""
    parts = [words >> (bits * i) & (2**bits - 1) for i in range(32 // bits)]
    return np.stack(parts, -1).reshape(len(words), -1)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `unpack`, the last word filled up with zeros: int32."""
    each = 32 // bits
    codes = np.pad(codes.astype(np.uint32), ((0, 0), (0, -codes.shape[1] % each))).reshape(len(codes), -1, each)
    return np.bitwise_or.reduce(codes << (bits * np.arange(each, dtype=np.uint32)), -1).view(np.int32)


def _nvfp4(own: Stored) -> np.ndarray:
    codes = (own.get("weight_packed") or own["weight"])[1]
    values = np.stack([FP4[codes & 15], FP4[codes >> 4]], -1).reshape(len(codes), -1)
    if "weight_global_scale" in own:
        whole = 1 / own["weight_global_scale"][1].astype(np.float64).reshape(())
    else:
        whole = own["weight_scale_2"][1].astype(np.float64).reshape(())
    return values * np.repeat(FLOAT8[own["weight_scale"][1]], 16, 1) * whole


def hub_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With LFM2's letters for its experts, which llm-compressor spells out."""
    letters = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    found = {}
    for name, values in tensors.items():
        if ".feed_forward.experts." in name:
            for projection, letter in letters.items():
                name = name.replace(f".{projection}.", f".{letter}.")
        found[name] = values
    return found


GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(path.stem.removeprefix("foreign-") for path in GOLDENS.glob("foreign-*.npz"))


def write_golden(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The checkpoint of a golden, as its writer left it; its inputs and logits."""
    with np.load(GOLDENS / f"foreign-{name}.npz") as golden:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes(golden["config"].tobytes())
        (folder / "model.safetensors").write_bytes(golden["stored"].tobytes())
        return golden["ids"], golden["logits"]
