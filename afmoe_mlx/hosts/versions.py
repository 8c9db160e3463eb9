"""What must be the same on all hosts."""

import mlx.core as mx

from .. import __version__


def versions() -> tuple[str, str]:
    """Of this package and of MLX."""
    return __version__, str(mx.__version__)  # type: ignore[attr-defined]
