"""Conversion: a checkpoint as published becomes MLX files, smaller if quantized."""

from .pipeline import convert

__all__ = ["convert"]
