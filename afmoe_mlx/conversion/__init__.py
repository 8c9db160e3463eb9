"""Conversion: a checkpoint as published becomes MLX files, smaller if quantized."""

from .convert import convert

__all__ = ["convert"]
