"""One check of the self-test, and what came of it."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from .. import device
from .anonymous import in_one_line
from .twin import Twin

# How MLX says that an operation is not there for a device or dtype.
_ABSENT = re.compile(r"not (yet )?(been )?(implemented|supported)|only supports|has no (CPU|GPU|Metal|CUDA) ", re.I)

TF32 = "MLX_ENABLE_TF32=0 in the environment makes float32 products exact on a GPU that multiplies in TF32, of 10 bits"


@dataclass(frozen=True)
class Result:
    """What came of a check: a difference, the reason why it was skipped, or the error that it ended with."""

    name: str
    dtype: str
    limit: float
    difference: float | None = None
    seconds: float = 0.0
    skipped: str | None = None
    error: str | None = None

    @property
    def is_failed(self) -> bool:
        return self.error is not None or (self.difference is not None and not self.difference <= self.limit)

    @property
    def problem(self) -> str:
        """What is wrong, in one line."""
        where = f"{self.name}, {self.dtype}"
        if self.error is not None:
            return f"{where}: {self.error}"
        hint = f"; {TF32}" if self.dtype == "float32" and not device.is_cpu() else ""
        return f"{where}: off by {self.difference:.2g}, expected {self.limit:.2g} at most{hint}"


@dataclass(frozen=True)
class Check:
    """A comparison with the twin."""

    name: str
    dtype: str
    limit: float
    measure: Callable[[Twin], float]
    """The difference that it is about."""
    skipped: str | None = None
    """Why it is not made here, if it is not."""
    is_optional: bool = False
    """Whether a device may do without what is checked."""

    def make(self, twin: Twin) -> Result:
        """Measure, whatever that ends with."""
        difference, skipped, error = None, self.skipped, None
        began = time.perf_counter()
        try:
            difference = None if skipped else self.measure(twin)
        except Exception as raised:  # whatever a device does not do, or does wrong
            words = in_one_line(str(raised)) or type(raised).__name__
            skipped, error = (words, None) if self.is_optional and _ABSENT.search(words) else (None, words)
        if difference == math.inf:
            difference, error = None, "its results are not finite, or of another shape"
        return Result(self.name, self.dtype, self.limit, difference, time.perf_counter() - began, skipped, error)
