"""The relative error of a quantized model's matrices, by kind: experts, attention, router and so on."""

from collections import defaultdict
from collections.abc import Callable

import mlx.core as mx

from .matrices import Matrices

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


def weight_errors(model: Matrices, reference: Matrices, tick: Callable[[], None]) -> dict[str, float]:
    """‖W - Ŵ‖ / ‖W‖ over all matrices of a class: W the reference's, Ŵ the model's, dequantized in float32.

    The models are of one shape. tick: called after each matrix.
    """
    wrong: defaultdict[str, float] = defaultdict(float)
    whole: defaultdict[str, float] = defaultdict(float)
    for path in model:
        if path in reference:
            kind = kind_of(path)
            for w, w_hat in zip(reference.float32_rows(path), model.float32_rows(path), strict=True):
                wrong[kind] += _square_sum(w - w_hat)
                whole[kind] += _square_sum(w)
            mx.clear_cache()
        tick()
    found = {kind: (wrong[kind] / whole[kind]) ** 0.5 if whole[kind] else 0.0 for kind in whole}
    return {kind: found[kind] for kind in CLASSES if kind in found}


def kind_of(path: str) -> str:
    """The class of the matrix at a module's path."""
    return next(kind for kind, marks in CLASSES.items() if any(mark in f"{path}." for mark in marks))


def _square_sum(w: mx.array) -> float:
    return mx.square(w).sum().item()  # type: ignore[return-value]
