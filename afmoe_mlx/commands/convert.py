"""`afmoe-mlx convert`: a checkpoint becomes MLX files."""

import sys
from collections.abc import Callable
from typing import Any

from ..conversion import convert
from ..terminal import note, size


def run(source: str, destination: str, **options: Any) -> None:
    """Convert with a progress bar on stderr, and say where the result is and how large."""
    target = convert(source, destination, on_progress=_progress_bar(), **options)
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    note(f"Wrote {target} ({size(written)}). Try it: afmoe-mlx generate --model {target} --prompt hello")


def _progress_bar() -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("converting")
    bar.start()

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    return show
