"""The memory that a model needs, from config and headers alone, and whether this machine has it."""

from .fit import check_shape, fit_check
from .footprint import Footprint
from .macs import MACS, Mac, stated_bandwidth
from .weights import Parameters, count_parameters

__all__ = [
    "MACS",
    "Footprint",
    "Mac",
    "Parameters",
    "check_shape",
    "count_parameters",
    "fit_check",
    "stated_bandwidth",
]
