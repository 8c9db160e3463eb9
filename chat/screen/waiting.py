"""A sign of life on the terminal while something else is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .live_region import is_live, region_of
from .sections import spinner
from .silence import silent_keyboard
from .ticker import Ticker

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def waiting(console: Console, word: str, clock: Callable[[], float] = time.monotonic) -> Generator[None, None, None]:
    """Show a printable word with the seconds that the block takes, below what is printed; nothing of it stays.

    What is typed meanwhile is not shown. Nothing is drawn where nothing can be taken back.
    """
    if not is_live(console):
        yield
        return
    region, drawing, started = region_of(console), threading.Lock(), clock()

    def draw() -> None:
        with drawing:
            now = clock()
            region.update([], [spinner(f"{word}, {now - started:.0f} s", now)])

    @contextmanager
    def withdrawn() -> Generator[None, None, None]:
        with drawing:
            region.update([], [])
            yield

    ticker = Ticker(draw)
    with silent_keyboard(withdrawn):
        ticker.start()
        try:
            yield
        finally:
            ticker.stop()
            region.print([])
            region.restore()
