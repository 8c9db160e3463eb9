"""Gradients of a grid's model: the loss, its adapters, and what goldens keep of a gradient.

A gradient is kept as its norm and its inner products with a few random directions. Whatever element of another is off,
those differ, in root mean square by about the norm of the difference: standard normal directions lose none of it.
"""

import zlib
from collections.abc import Mapping
from functools import cache, lru_cache

import numpy as np

from helpers.checkpoints import GOLDENS, golden
from helpers.grid import TRACED

FILE = GOLDENS / "gradients.npz"
RANK, SCALE = 3, 1.5
DIRECTIONS = 8
NAMES = "/names"

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids, mask and labels, (B, L) each


def batches(name: str) -> dict[str, Batch]:
    """By name: rows padded on either side, and for some such rows of several windows.

    No real token is predicted from padding, of which Transformers makes something else than we do. Nor is one 0, by
    whose embedding torch does not differentiate in LFM2-MoE, which pads with it.
    """
    arrays = golden(name).arrays
    ids = np.concatenate([arrays["padded_ids"]] * 2)
    made = {"padded": _with_labels(ids, np.concatenate([arrays["mask_right"], arrays["mask_left"]]))}
    if name in TRACED:
        long = arrays["long_ids"]
        ids, columns = np.concatenate([np.roll(long, shift) for shift in (0, 20, 40)]), np.arange(long.shape[1])
        made["long"] = _with_labels(ids, np.array([columns >= 0, columns < 130, columns >= 30]).astype(np.int64))
    return made


def _with_labels(ids: np.ndarray, mask: np.ndarray) -> Batch:
    ids, counted = np.maximum(ids, 1), np.zeros_like(mask)
    counted[:, 1:] = mask[:, 1:] * mask[:, :-1]
    return ids, mask, np.where(counted == 1, ids, -100)


def adapter(path: str, weight: tuple[int, ...], *, dora: bool = False) -> dict[str, np.ndarray]:
    """By their names, lora_a (…, in, r) and lora_b (…, r, out) of our module `path`, whose weight is (…, out, in).

    dora: for a map that is not of experts m (out,) as well, the lengths that its changed weight's rows are to have.
    """
    *experts, out, width = weight
    shapes = {f"{path}.lora_a": (*experts, width, RANK), f"{path}.lora_b": (*experts, RANK, out)}
    drawn = {name: _drawn(name, shape) for name, shape in shapes.items()}
    return drawn | {f"{path}.m": 1 + _drawn(f"{path}.m", (out,))} if dora and not experts else drawn


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return (0.15 * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)).astype(np.float32)


def sketch(gradient: np.ndarray) -> np.ndarray:
    """What is kept of a gradient, (1 + DIRECTIONS,) float32."""
    values = gradient.astype(np.float64).reshape(-1)
    return np.array([np.linalg.norm(values), *(_directions(values.size) @ values)], np.float32)


@lru_cache(maxsize=100)
def _directions(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((DIRECTIONS, size))


def difference(gradient: np.ndarray, kept: np.ndarray) -> float:
    """About the norm of what a gradient differs by from one of which this is kept."""
    return float(np.sqrt(np.square(sketch(gradient)[1:] - kept[1:]).mean()))


def kept_gradients(name: str, kind: str) -> Mapping[str, np.ndarray]:
    """What is kept of a configuration's gradients of `kind`, by our parameters' names."""
    arrays = _kept()
    key = f"{name}/{kind}"
    return dict(zip(arrays[key + NAMES].tolist(), arrays[key], strict=True))


@cache
def _kept() -> dict[str, np.ndarray]:
    with np.load(FILE) as stored:
        return {key: stored[key] for key in stored.files}
