"""Conversion: a checkpoint as published becomes MLX files, smaller if quantized."""

from .job import Options
from .pipeline import convert
from .publication import upload

__all__ = ["Options", "convert", "upload"]
