"""An end that others bring about is an exit."""

import os
import signal

import pytest

from afmoe_mlx.chat.keyboard.signals import orderly_end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_that_others_bring_about_is_an_exit(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, orderly_end():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
