"""Quantized weights chosen by a text: what a layer does with it decides what rounding may cost."""

from .calibration import Calibration
from .encoder import CalibratedEncoder
from .experts import calibrating

__all__ = ["CalibratedEncoder", "Calibration", "calibrating"]
