"""A model's fingerprint: a hash of its config and weights, so that no other model's cached keys are ever used."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

# Raised with every change of what models compute: keys on disk from before it are of no use.
NUMERICS = 1

# Numbers of 16 bits that are summed, each with an odd weight of its own, before they are mixed: what is mixed is a 32nd
# of the weights, yet no change of one number and no exchange goes unseen.
RUN = 64

# Numbers digested at a time: an axis of more than 2**31 bytes cannot be.
PIECE = 1 << 28


def fingerprint(model: Any) -> bytes:
    """32 bytes that are the same for the same config, weights, quantization and dtype, after a restart too.

    Every bit of the weights counts: they are read once, on the device, which takes as long as decoding a few tokens.
    Of experts that are not in memory it is their files' samples, sizes and times.
    """
    names, arrays = zip(*sorted(tree_flatten(model.parameters())), strict=True)
    digests = [_digest(array).tolist() for array in arrays]  # one at a time: each takes twice an array's memory
    quantized = {
        name: [getattr(module, key, None) for key in ("bits", "group_size", "mode")]
        for name, module in model.named_modules()
        if "scales" in module
    }
    told = {
        "numerics": NUMERICS,
        "config": repr(model.config),
        "dtype": str(model.dtype),
        "quantized": quantized,
        "kept": repr(model.kv_quantization and model.kv_quantization.of_heads(model.config.head_dim)),
        "weights": [(name, str(a.dtype), a.shape) for name, a in zip(names, arrays, strict=True)],
        "digests": digests,
    }
    if pools := getattr(model, "expert_pools", ()):  # experts that are read when they are wanted
        told["experts"] = [pool.identity for pool in pools]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()


def content_digest(arrays: Mapping[str, mx.array]) -> str:
    """A digest of named arrays that depends on every bit of them."""
    told = [(name, str(a.dtype), a.shape, _digest(a).tolist()) for name, a in sorted(arrays.items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _digest(array: mx.array) -> mx.array:
    """(2,) uint32 that depend on every bit of an array and on its place."""
    flat = array.reshape(-1)
    pieces = []
    for i in range(0, flat.size, PIECE):
        pieces.append(_digest_piece(flat[i : i + PIECE], i))
        mx.eval(pieces[-1])  # each by itself: less memory, and Ctrl-C is heard after it
    return mx.stack(pieces).sum(axis=0) if pieces else mx.zeros((2,), mx.uint32)


def _digest_piece(numbers: mx.array, start: int) -> mx.array:
    octets = numbers.view(mx.uint8)
    whole = octets.size // (2 * RUN) * 2 * RUN
    runs = octets[:whole].view(mx.uint16).reshape(-1, RUN).astype(mx.uint32)
    sums = (runs * (2 * mx.arange(RUN, dtype=mx.uint32) + 1)).sum(axis=-1)
    words = mx.concatenate([sums, octets[whole:].astype(mx.uint32)])
    places = (mx.arange(words.size, dtype=mx.uint32) + start % 2**32) * 0x9E3779B1
    return mx.stack([_mixed(words ^ places ^ seed).sum() for seed in (0, 0x5BD1E995)])


def _mixed(x: mx.array) -> mx.array:
    """A bijection of uint32 in which every bit of the input changes about half of those of the result."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)
