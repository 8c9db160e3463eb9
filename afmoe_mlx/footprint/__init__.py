"""What a model needs of a machine, from its config and its tensors' headers alone, and whether it fits."""

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
