"""Packing the integer codes of a quantized weight as MLX does."""

import mlx.core as mx


def pack(codes: mx.array, bits: int) -> mx.array:
    """Codes (…, in) below 2**bits, unsigned bytes -> uint32 (…, in · bits / 32), as `mx.quantize` packs affine weights.

    A row is a stream of bits, the lowest of the first code first. `in` is a multiple of 32.
    """
    assert codes.shape[-1] % 32 == 0
    stream = (codes[..., None] >> mx.arange(bits, dtype=mx.uint8)) & 1
    octets = stream.reshape(*codes.shape[:-1], -1, 8) << mx.arange(8, dtype=mx.uint8)
    return mx.contiguous(octets.sum(axis=-1).astype(mx.uint8)).view(mx.uint32)
