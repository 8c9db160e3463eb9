"""Progress bars where stderr is a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..terminal import is_terminal, note, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..conversion.pipeline import ConversionProgress


@contextmanager
def progress_bar(label: str, *, at_least: int = 0) -> Iterator[Callable[[int, int], None] | None]:
    """A function of what is done and the total, None where stderr is no terminal; totals below `at_least` draw none.

    The bar vanishes when the work is done, and at the latest with the block.
    """
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    # what is printed meanwhile stays on stdout, and is not drawn on stderr
    bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = bar.add_task(label)

    def show(done: int, total: int) -> None:
        if total < at_least:
            return
        if done == total:
            bar.stop()
            return
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()


# Seconds between two lines of progress where stderr is no terminal.
EVERY = 30.0


class ConversionLines:
    """How far a conversion has come as a line of text now and then, for a file or a pipe."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._last_bytes: int | None = None

    def converted(self, progress: "ConversionProgress") -> None:
        """Show what is written."""
        now, done = time.monotonic(), progress.bytes_done
        if self._last_bytes is None:
            self._last_bytes = done
        if now - self._last < EVERY or done == progress.bytes_total:
            return
        found = f"converting: {size(done)} of {size(progress.bytes_total)}, {_place(progress)}"
        if done > self._last_bytes:
            seconds = (progress.bytes_total - done) * (now - self._last) / (done - self._last_bytes)
            found += f", about {_duration(seconds)} left"
        note(found)
        self._last, self._last_bytes = now, done

    def fetched(self, done: int, total: int) -> None:
        """Downloads are waited for, and show in the time that is left."""


class ConversionBars:
    """How far a conversion has come, as bars on a terminal: one of what is written, one of what is fetched."""

    def __init__(self, bars: "Progress") -> None:
        self._bars = bars
        self._written: TaskID | None = None
        self._fetched: TaskID | None = None

    def converted(self, progress: "ConversionProgress") -> None:
        """Show what is written."""
        if self._written is None:
            self._written = self._bars.add_task("converting", total=progress.bytes_total, layers="")
        self._bars.update(
            self._written, completed=progress.bytes_done, total=progress.bytes_total, layers=_place(progress)
        )

    def fetched(self, done: int, total: int) -> None:
        """Show what is fetched; called from another thread."""
        if self._fetched is None:
            self._fetched = self._bars.add_task("downloading", total=total, layers="")
        self._bars.update(self._fetched, completed=done, total=total)


@contextmanager
def conversion_progress() -> Iterator[ConversionBars | ConversionLines]:
    """What shows bytes, layers and the time that is left while a conversion runs; bars vanish with the block."""
    if not is_terminal(sys.stderr):
        yield ConversionLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    text = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[layers]}"))
    with Progress(*text, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        yield ConversionBars(bars)


def _place(progress: "ConversionProgress") -> str:
    """Which layer, or how much of what is learned once all are done."""
    if progress.to_learn:
        return f"learned from {progress.learned:,} of {progress.to_learn:,} tokens"
    return f"layer {progress.layer} of {progress.layers}"


def _duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
