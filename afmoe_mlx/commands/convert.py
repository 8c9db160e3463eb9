"""`afmoe-mlx convert`: a checkpoint becomes MLX files."""

from typing import Any

from ..conversion import convert
from ..terminal import note, size
from .progress import progress_bar


def run(source: str, destination: str, **options: Any) -> None:
    """Convert with a progress bar on stderr, and say where the result is and how large."""
    with progress_bar("converting") as show:
        target = convert(source, destination, on_progress=show, **options)
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    note(f"Wrote {target} ({size(written)}). Try it: afmoe-mlx generate --model {target} --prompt hello")
