"""`Ticker`: a thread that draws again and again, as long as something goes on."""

import threading
import time
from collections.abc import Callable

FRAME = 1 / 15  # seconds between two drawings
MOST_WORK = 0.25  # of the time may go into drawing, however long the tail of an answer is


class Ticker:
    """Calls `draw` again and again in a thread, the more seldom the longer it takes."""

    def __init__(self, draw: Callable[[], None]) -> None:
        self._draw = draw
        self._error: Exception | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait for the drawing under way, then there is no other."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raise here what went wrong in the thread."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        pause = FRAME
        while not self._done.wait(pause):
            begun = time.monotonic()
            try:
                self._draw()
            except Exception as error:
                self._error = error
                return
            pause = max(FRAME, (time.monotonic() - begun) / MOST_WORK)
