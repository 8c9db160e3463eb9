"""How far a result may be from its float32 twin, and why.

A difference is the largest of any number, over the root mean square of the twin's. Weights are the same numbers in all
dtypes, so that roundings of what is computed remain. One rounding moves a number by half a unit in its last place at
most: 2^-8 of it in bfloat16, 2^-11 in float16, 2^-24 in float32.

A kernel accumulates in float32 and rounds its result once or twice. The largest of some ten thousand numbers is about
four times their root mean square: 4 to 8 roundings. A model of three layers rounds some ten times a layer, one after
the other; being random they add up as their square root, and with the largest of a few thousand logits that makes 10
to 20 of them. In float32 what counts instead is the order in which sums of some hundred products are added up, and
the last digits of exponentials and sines, which a GPU need not have.

Measured on the CPU of an x86 machine (MLX 0.32.4, OpenBLAS), the worst of all checks:

              float32   bfloat16   float16
  operations    7e-6      0.048      0.007
  models        5e-6      0.039      0.005

with quantized weights in float32 alone: in other dtypes the CPU sums their products in that dtype, which is off by up
to 0.33. Unpacked to bfloat16 first, as a GPU does for many rows, they move logits by 0.028.

And what faults do there: another expert moves logits by 0.9 to 1.5 in any dtype, heads in another order by 1.5, a
window short of a position by 0.2. A position that is off by one (0.1), norms off by 1 % (0.05 to 0.1) and attention's
scale off by 5 % (0.03 to 0.05) are hidden by roundings in bfloat16, and are a hundred times the limit in float32.
"""

import mlx.core as mx

from .. import device

ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}

# In float32, for kernels and models alike; and otherwise in roundings.
FLOAT32 = 3e-4
KERNEL_ROUNDINGS = 24
MODEL_ROUNDINGS = 32


def kernel_limit(dtype: str, *, is_tf32: bool = False) -> float:
    """What a single operation may differ by."""
    return _limit(dtype, KERNEL_ROUNDINGS, is_tf32)


def model_limit(dtype: str, *, key_bits: int | None = None, is_tf32: bool = False) -> float:
    """What logits may differ by; key_bits: of quantized keys, some of whose codes fall to the other side of a tie."""
    return _limit(dtype, MODEL_ROUNDINGS, is_tf32) + (0 if key_bits is None else 2.0**-key_bits)


def _limit(dtype: str, roundings: int, is_tf32: bool) -> float:
    if dtype == "float32":
        return roundings * ROUNDING["float16"] if is_tf32 else FLOAT32  # TF32 has float16's digits
    return roundings * ROUNDING[dtype]


def difference(found: mx.array, expected: mx.array) -> float:
    """The largest difference over the root mean square of what is expected; infinite where anything is not finite."""
    with mx.stream(mx.cpu):  # a device that is being checked does not check itself
        found, expected = found.astype(mx.float32), expected.astype(mx.float32)
        if found.shape != expected.shape:
            return float("inf")
        apart = mx.abs(found - expected)
        worst = mx.where(mx.isfinite(apart), apart, mx.inf).max()
        return float(worst / mx.sqrt(mx.mean(expected * expected)))


def multiplies_in_tf32() -> bool:
    """Whether the device rounds the factors of float32 products to TF32's 10 bits, as CUDA and Apple's M5 may."""
    if device.is_cpu():
        return False
    try:
        x = mx.full((128, 512), 1 + 2.0**-16)
        return not mx.array_equal(x @ mx.eye(512), x).item()
    except RuntimeError:  # a check will say so
        return False
