"""How far a model's matrices are from another's, by what they are for, read from disk a tensor at a time."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..models import CausalLM
from ..models.moe import NVFP4_LARGEST

# Weights that are compared at a time, in float32.
PIECE = 1 << 22

# The class of a matrix is the first whose mark is in its path.
CLASSES = {
    "embeddings": ("model.embed_tokens",),
    "head": ("lm_head",),
    "router": (".router.gate", ".feed_forward.gate."),
    "experts": (".experts.", ".switch_mlp."),
    "shared": (".shared_experts.",),
    "attention": (".self_attn.",),
    "convolution": (".conv.",),
    "dense": (".mlp.", ".feed_forward."),
}


def matrices(model: CausalLM) -> dict[str, nn.Module]:
    """The modules of an unfused model that hold a matrix, by path; norms hold none."""
    return {path: module for path, module in model.named_modules() if "weight" in module and module.weight.ndim > 1}


def weight_errors(model: CausalLM, reference: CausalLM, tick: Callable[[], None]) -> dict[str, float]:
    """‖W - Ŵ‖ / ‖W‖ over all matrices of a class: W the reference's, Ŵ the model's, dequantized in float32.

    The models are of one shape, unfused and not yet read, as `open_model(…, keep_dtypes=True)` gives them; they are
    used up: a matrix is dropped once it is counted. tick: called after each.
    """
    wrong: defaultdict[str, float] = defaultdict(float)
    whole: defaultdict[str, float] = defaultdict(float)
    others = matrices(reference)
    for path, module in matrices(model).items():
        if path in others:
            kind = kind_of(path)
            for w, w_hat in zip(float32_rows(others[path]), float32_rows(module), strict=True):
                wrong[kind] += _square_sum(w - w_hat)
                whole[kind] += _square_sum(w)
            _drop(others[path])
            _drop(module)
            mx.clear_cache()
        tick()
    found = {kind: (wrong[kind] / whole[kind]) ** 0.5 if whole[kind] else 0.0 for kind in whole}
    return {kind: found[kind] for kind in CLASSES if kind in found}


def kind_of(path: str) -> str:
    """The class of the matrix at a module's path."""
    return next(kind for kind, marks in CLASSES.items() if any(mark in f"{path}." for mark in marks))


def float32_rows(module: Any) -> Iterator[mx.array]:
    """A module's weight in float32, dequantized, as pieces of its rows (n, in); experts' rows one after another."""
    parts = {key: module[key] for key in ("weight", "scales", "biases") if module.get(key) is not None}
    mx.eval(parts)
    flat = {key: array.reshape(-1, array.shape[-1]) for key, array in parts.items()}
    count = flat["weight"].shape[0]
    width = module.scales.shape[-1] * module.group_size if "scales" in parts else flat["weight"].shape[-1]
    step = max(PIECE // width, 1)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        piece = {key: array[rows] for key, array in flat.items()}
        if "scales" not in piece:
            yield piece["weight"].astype(mx.float32)
            continue
        weight = mx.dequantize(
            piece["weight"],
            piece["scales"] if piece["scales"].dtype == mx.uint8 else piece["scales"].astype(mx.float32),
            piece["biases"].astype(mx.float32) if "biases" in piece else None,
            group_size=module.group_size,
            bits=module.bits,
            mode=module.mode,
            dtype=mx.float32,
        )
        yield weight * _expert_scales(module, count)[rows] if "global_scale" in module else weight


def _expert_scales(module: Any, rows: int) -> mx.array:
    """The further scale of each expert of nvfp4, (rows, 1)."""
    scales = module.global_scale / NVFP4_LARGEST
    return mx.repeat(scales, rows // scales.size)[:, None]


def _square_sum(w: mx.array) -> float:
    return mx.square(w).sum().item()  # type: ignore[return-value]


def _drop(module: nn.Module) -> None:
    for key in ("weight", "scales", "biases"):
        module.pop(key, None)
