"""Conversion: a checkpoint as published becomes MLX files, smaller if quantized."""

from .pipeline import convert
from .publication import upload

__all__ = ["convert", "upload"]
