"""What must be the same on all hosts."""

from importlib.metadata import version


def versions() -> tuple[str, str]:
    """Of this package and of MLX."""
    return version("afmoe-mlx"), version("mlx")
