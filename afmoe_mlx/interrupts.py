"""Native work during which Ctrl-C is heard, and steps during which it waits."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
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


@contextmanager
def held() -> Iterator[None]:
    """In which SIGINT waits until the end: for steps that are done all or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    waiting: list[FrameType | None] = []
    handler = signal.getsignal(signal.SIGINT)
    if handler is None:
        yield  # of a program around Python, which alone can put it back
        return
    signal.signal(signal.SIGINT, lambda _, frame: waiting.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting and callable(handler):
            handler(signal.SIGINT, waiting[-1])
        elif waiting:
            signal.raise_signal(signal.SIGINT)  # to be ended by, or ignored
