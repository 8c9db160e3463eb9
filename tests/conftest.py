"""One thread for products in each test process, so that some run side by side; and fixtures that many folders use."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.hub_server import FakeHub

os.environ["XDG_CONFIG_HOME"] = str(Path(__file__).parent / "no-configuration")  # not that of who runs the tests

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports MLX
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")


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
