"""A chat of given lines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.talk import Talk


@pytest.fixture
def talk(tmp_path: Path) -> Callable[..., Talk]:
    return lambda *lines, **options: Talk(tmp_path, *lines, **options)
