"""afmoe-mlx: AFMoE (Arcee's Trinity) and LFM2-MoE on MLX.

    from afmoe_mlx import load, generate

    model, tokenizer = load("trinity-nano")
    print(generate(model, tokenizer, "Why is the sky blue?", max_tokens=100))

Names are resolved when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .device import prepare

if TYPE_CHECKING:
    from .api import convert, load, upload
    from .checkpoint import load_model
    from .generation import batch_generate, generate, stream_generate

__all__ = ["__version__", "batch_generate", "convert", "generate", "load", "load_model", "stream_generate", "upload"]

_HOMES = {
    "load": "api",
    "load_model": "checkpoint",
    "convert": "api",
    "upload": "api",
    "batch_generate": "generation",
    "generate": "generation",
    "stream_generate": "generation",
}

# The one thing done at import: MLX looks for a BLAS, and at its environment, while it is itself imported.
prepare()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("afmoe-mlx")
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
