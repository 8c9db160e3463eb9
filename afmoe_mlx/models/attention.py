"""Attention over cached keys: the causal and sliding masks, the fast kernel, and its twin of plain operations.

B batch, H heads, L new tokens, K keys (the last L of them belong to the new tokens).
"""

import mlx.core as mx

from ..cache import QuantizedArray

Mask = mx.array | str | None


def causal_mask(length: int, keys: int, *, window: int | None = None, valid: mx.array | None = None) -> Mask:
    """What the last `length` of `keys` columns may attend to: themselves and, within `window`, those before.

    `valid` is (B, keys) bool, false at padding. Returns None where everything may be seen, "causal" where the kernel
    needs no array, else (1 or B, 1, length, keys) bool. A column that could see nothing sees itself, so that no
    softmax is over nothing.
    """
    window = None if window is None or keys <= window else window
    if valid is None and window is None:
        return None if length == 1 else "causal"
    columns = mx.arange(keys)
    queries = mx.arange(keys - length, keys)[:, None]
    mask = queries >= columns
    if window is not None:
        mask = mask & (columns > queries - window)
    if valid is None:
        return mask[None, None]
    mask = mask & valid[:, None, None, :]
    return mask | ((queries == columns) & ~mask.any(axis=-1, keepdims=True))


def attend(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask) -> mx.array:
    """softmax(q kᵀ · scale) v, softmax in float32: q (B, H, L, d), k and v (B, K heads, K, d) -> (B, H, L, d)."""
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def attend_plain(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask) -> tuple[mx.array, mx.array]:
    """`attend` in plain operations; also returns the attention weights (B, H, L, K)."""
    groups = q.shape[1] // k.shape[1]
    k, v = mx.repeat(k, groups, axis=1), mx.repeat(v, groups, axis=1)
    scores = (q @ k.swapaxes(-1, -2)).astype(mx.float32) * scale
    if isinstance(mask, str):
        length, keys = scores.shape[-2:]
        mask = mx.arange(keys - length, keys)[:, None] >= mx.arange(keys)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    weights = mx.softmax(scores, axis=-1).astype(q.dtype)
    return weights @ v, weights


def attend_quantized(
    q: mx.array, k: QuantizedArray, v: QuantizedArray, *, scale: float, mask: mx.array | None = None
) -> mx.array:
    """`attend` of queries (B, H, L, d) over quantized keys and values, which are read as they are.

    mask: bool, that broadcasts to (B, H, L, K).
    """
    B, H, L, d = q.shape
    size, bits = k.quantization.group_size, k.quantization.bits
    q = (q * scale).reshape(B, k.weight.shape[1], -1, L, d)
    weight, scales, biases = (mx.expand_dims(part, 2) for part in k.arrays)
    scores = mx.quantized_matmul(q, weight, scales, biases, True, size, bits)
    if mask is not None:
        seen = mx.broadcast_to(mask, (B, H, L, scores.shape[-1])).reshape(scores.shape)
        scores = mx.where(seen, scores, -mx.inf)
    weights = mx.softmax(scores.astype(mx.float32), axis=-1).astype(q.dtype)
    weight, scales, biases = (mx.expand_dims(part, 2) for part in v.arrays)
    return mx.quantized_matmul(weights, weight, scales, biases, False, size, bits).reshape(B, H, L, -1)


def split_heads(x: mx.array, head_dim: int) -> mx.array:
    """(B, L, heads · head_dim), or (B, heads · head_dim) of one token -> (B, heads, L, head_dim)."""
    B, L = x.shape[0], 1 if x.ndim == 2 else x.shape[1]
    return x.reshape(B, -1, 1, head_dim) if L == 1 else x.reshape(B, L, -1, head_dim).swapaxes(1, 2)


def merge_heads(x: mx.array, ndim: int = 3) -> mx.array:
    """(B, heads, L, head_dim) -> (B, L, heads · head_dim), or of one token (B, heads · head_dim) where `ndim` is 2."""
    B, _, L, _ = x.shape
    if ndim == 2:
        return x.reshape(B, -1)
    return x.reshape(B, 1, -1) if L == 1 else x.swapaxes(1, 2).reshape(B, L, -1)
