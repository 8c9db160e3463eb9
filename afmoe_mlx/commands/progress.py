"""How far a long piece of work has come, drawn on a terminal's stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, *, at_least: int = 0) -> Iterator[Callable[[int, int], None] | None]:
    """A function of what is done and the total, None where stderr is no terminal; totals below `at_least` draw none.

    The bar vanishes when the work is done, and at the latest with the block.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
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
