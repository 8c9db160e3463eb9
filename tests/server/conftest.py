"""What several tests of the server need."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def run() -> Iterator[Any]:
    """Gives what a coroutine gives, all of them in one event loop: the packages' clients keep theirs."""
    with asyncio.Runner() as runner:
        yield runner.run
