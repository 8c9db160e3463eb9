"""Calibration: quantized weights are chosen for the least error of a layer's outputs on a text, not of the weights."""

from .calibration import Calibration
from .encoder import CalibratedEncoder, encoder_of
from .experts import calibrating

__all__ = ["CalibratedEncoder", "Calibration", "calibrating", "encoder_of"]
