"""The only file that asks which device this is: number formats, fast BLAS, memory."""

import ctypes
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

# Any of these gives MLX's CPU backend matrix products many times faster than the reference BLAS in its wheel.
FAST_BLAS = ("libopenblas.so.0", "libmkl_rt.so.2", "libmkl_rt.so.1")


def preload_blas() -> str | None:
    """Load a fast BLAS where one is installed, so that MLX finds its symbols first; the library's name, or None.

    Only Linux wheels need it, and only before `mlx.core` is imported does it help.
    """
    if not sys.platform.startswith("linux") or "mlx.core" in sys.modules:
        return None
    for name in FAST_BLAS:
        try:
            ctypes.CDLL(name, mode=os.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return None


def is_cpu() -> bool:
    """Whether MLX computes on the CPU by default."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu


def compute_dtype(stored: "mx.Dtype") -> "mx.Dtype":
    """The dtype to compute in for weights stored as `stored`: the same, but float32 on the CPU.

    There bfloat16 and float16 products are 7 to 30 times slower, and `gather_mm` has none.
    """
    import mlx.core as mx

    return mx.float32 if is_cpu() else stored


def one_kernel(function: Callable[..., "mx.array"]) -> Callable[..., "mx.array"]:
    """A function of pointwise operations as one kernel, for any shapes; on the CPU as it is.

    There each kernel would cost half a second of the C++ compiler when it first runs, where one is installed.
    """
    import mlx.core as mx

    return function if is_cpu() else mx.compile(function, shapeless=True)


def peak_memory() -> int:
    """Bytes that MLX held at most since the process began."""
    import mlx.core as mx

    return mx.get_peak_memory()
