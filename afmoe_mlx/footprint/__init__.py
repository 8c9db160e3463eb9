"""The memory that a model needs, from config and headers alone, and whether this machine has it."""

from .experts import SSD_SPEEDS, TYPICAL_SSD, ExpertMemory, ExpertsInMemory, check_experts_in_memory
from .fit import (
    DEFAULT_CONTEXT,
    check_context,
    check_readable,
    check_shape,
    fit_check,
    is_readable,
    place_experts,
    with_experts,
)
from .footprint import CountAdapters, Footprint
from .macs import MACS, Mac, own_bandwidth, stated_bandwidth
from .weights import Parameters, count_parameters

__all__ = [
    "DEFAULT_CONTEXT",
    "MACS",
    "SSD_SPEEDS",
    "TYPICAL_SSD",
    "CountAdapters",
    "ExpertMemory",
    "ExpertsInMemory",
    "Footprint",
    "Mac",
    "Parameters",
    "check_context",
    "check_experts_in_memory",
    "check_readable",
    "check_shape",
    "count_parameters",
    "fit_check",
    "is_readable",
    "own_bandwidth",
    "place_experts",
    "stated_bandwidth",
    "with_experts",
]
