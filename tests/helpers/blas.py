"""The fast BLAS of this machine."""

import ctypes
import sys


def has_openblas() -> bool:
    try:
        ctypes.CDLL("libopenblas.so.0")
    except OSError:
        return False
    return sys.platform.startswith("linux")
