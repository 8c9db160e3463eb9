"""Native work during which Ctrl-C is heard."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def interruptible(work: Callable[[], T]) -> T:
    """What `work` gives, or raises, done in a thread of its own while this one waits and hears signals.

    For a long native call that lets other threads run: Python handles a signal in the main thread alone, and only
    between two steps of its own. Work that was interrupted is left to itself, and does not keep the process alive.
    """
    return begun(work).result()


def begun(work: Callable[[], T]) -> Future[T]:
    """What `work` will give, or raise, in a thread of its own that does not keep the process alive."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="afmoe-mlx work", daemon=True).start()
    return done
