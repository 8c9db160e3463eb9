"""Finding NaN and infinity in weights by their bits, at a fraction of the cost of quantizing them."""

import mlx.core as mx

from ..errors import ConversionError

# Of each number format that weights have: integers of its width, signed and not, and the bits of infinity. Those of
# NaNs are higher, of either sign.
INFINITY = {
    mx.bfloat16: (mx.int16, mx.uint16, 0x7F80),
    mx.float16: (mx.int16, mx.uint16, 0x7C00),
    mx.float32: (mx.int32, mx.uint32, 0x7F800000),
}


class NotFiniteError(ConversionError):
    """A weight is NaN or infinite."""


def is_finite(array: mx.array) -> mx.array | None:
    """Whether all numbers of an array are finite, as a scalar not yet evaluated; None for integers, which are."""
    if array.dtype not in INFINITY or array.size == 0:
        return None
    signed, unsigned, infinity = INFINITY[array.dtype]
    bits = array.reshape(-1)
    sign = 1 << (8 * array.dtype.size - 1)
    is_below = mx.max(bits.view(signed)) < mx.array(infinity, signed)
    return is_below & (mx.max(bits.view(unsigned)) < mx.array(infinity | sign, unsigned))


def first_not_finite(array: mx.array) -> int:
    """The place of the first number of a flat array (n,) that is not finite."""
    return mx.argmin(mx.isfinite(array).astype(mx.uint8)).item()  # type: ignore[return-value]
