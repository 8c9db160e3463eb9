"""Calibration: quantized weights are chosen for the least error of a layer's outputs on a text, not of the weights."""

from .calibration import Calibration
from .distilled import DistilledEncoder, encoder_of
from .encoder import CalibratedEncoder
from .experts import calibrating

__all__ = ["CalibratedEncoder", "Calibration", "DistilledEncoder", "calibrating", "encoder_of"]
