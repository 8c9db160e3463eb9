"""Native work in which Ctrl-C is heard."""

import os
import signal
import threading

import pytest

from afmoe_mlx.interrupts import interruptible


def test_work_gives_what_it_gives_and_raises_what_it_raises() -> None:
    assert interruptible(lambda: 3) == 3
    with pytest.raises(LookupError, match="gone"):
        interruptible(lambda: (_ for _ in ()).throw(LookupError("gone")))


def test_a_signal_is_heard_while_the_work_goes_on() -> None:
    is_over, was_released = threading.Event(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        was_released.wait()
        is_over.set()

    with pytest.raises(KeyboardInterrupt):
        interruptible(work)
    assert not is_over.is_set()
    was_released.set()
    assert is_over.wait(10)
