"""What tells two models apart: a cache of one means nothing to another."""

import hashlib
import json
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

# Numbers of 16 bits that are summed before they are mixed: what is mixed is a 32nd of the weights, yet no change of
# one number, no change of signs and no exchange over more than these few goes unseen.
RUN = 64


def fingerprint(model: Any) -> bytes:
    """32 bytes that are the same for the same config, weights, quantization and dtype, after a restart too.

    Every bit of the weights counts: they are read once, on the device, which takes as long as decoding a few tokens.
    """
    names, arrays = zip(*sorted(tree_flatten(model.parameters())), strict=True)
    digests = mx.stack([_digest(array) for array in arrays])
    quantized = {
        name: [getattr(module, key, None) for key in ("bits", "group_size", "mode")]
        for name, module in model.named_modules()
        if "scales" in module
    }
    told = {
        "config": repr(model.config),
        "dtype": str(model.dtype),
        "quantized": quantized,
        "kept": repr(model.kv_quantization),
        "weights": [(name, str(a.dtype), a.shape) for name, a in zip(names, arrays, strict=True)],
        "digests": digests.tolist(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()


def _digest(array: mx.array) -> mx.array:
    """(2,) uint32 that depend on every bit of an array and, beyond a run, on its place."""
    octets = array.reshape(-1).view(mx.uint8)
    whole = octets.size // (2 * RUN) * 2 * RUN
    sums = octets[:whole].view(mx.uint16).reshape(-1, RUN).sum(axis=-1)  # in 32 bits: none can wrap
    words = mx.concatenate([sums, octets[whole:].astype(mx.uint32)])
    places = mx.arange(words.size, dtype=mx.uint32) * 0x9E3779B1
    return mx.stack([_mixed(words ^ places ^ seed).sum() for seed in (0, 0x5BD1E995)])


def _mixed(x: mx.array) -> mx.array:
    """A bijection of uint32 in which every bit of the input changes about half of those of the result."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)
