"""The suggestion of a self-test, to who runs a model on a GPU that has not been checked."""

import sys
from contextlib import suppress

from .. import device
from ..terminal import is_terminal, note


def suggest_self_test(model: str) -> None:
    """Say once for each machine and version that there is a self-test, if it has not passed; the demo needs none.

    model: the name of one that has just been loaded.
    """
    if model == "demo" or device.is_cpu() or not is_terminal(sys.stderr):
        return
    from ..selftest import passed

    if passed.status() is None:
        note("This GPU has not been checked yet: `afmoe-mlx doctor --self-test` takes a minute", dim=True)
        with suppress(OSError):  # then it is said again
            passed.remember("suggested")
