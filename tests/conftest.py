"""One core for each test process, so that they run side by side; and fixtures that many folders use."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from helpers.hub_server import FakeHub

settings.register_profile("untimed", deadline=None)  # of busy cores
settings.load_profile("untimed")

os.environ["XDG_CONFIG_HOME"] = str(Path(__file__).parent / "no-configuration")  # not that of who runs the tests


def take_a_core(number: int) -> None:
    """Run this process, what it starts too, on one core, and let none of its threads interrupt another.

    MLX's thread for the CPU would else wake for each operation that it is given, and wait for the next: most of the
    time of the tests' small models. So it finds many at once.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        with suppress(OSError):  # where a container does not allow it
            os.sched_setaffinity(0, {cores[number % len(cores)]})
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process that a test starts compiles the package anew

# A shell ignores Ctrl-C for what it runs in the background, and what that starts inherits it: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # before anything imports MLX
    take_a_core(int(worker.removeprefix("gw")))


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: now and then a test waits, for a terminal or a server."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of garbage collection, which some tests ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny AFMoE with a tokenizer and a chat template, which no test changes."""
    from helpers.tiny import tiny_folder

    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeHub"]:
    """A Hub on loopback that the program takes for the real one, and an empty cache."""
    from huggingface_hub import close_session

    from helpers.hub_server import FakeHub, use_hub

    with FakeHub(tmp_path / "served") as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        yield server
        close_session()
