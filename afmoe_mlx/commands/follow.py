"""`afmoe-mlx follow`: what a leader starts on other hosts. It reads orders from stdin and ends with it."""

import os
import signal
import sys

from ..api import DEMO
from ..cache import default_directory
from ..hosts.process import FollowerProcess


def run(silence: float) -> None:
    """Follow until stdin ends. silence: seconds without a word after which the leader is taken for lost."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's to hear
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else writes to stdout
    FollowerProcess(
        sys.stdin.buffer,
        answers,
        locate=lambda source: DEMO if source == "demo" else source,
        directory=default_directory(),
        silence=silence,
    ).run()
