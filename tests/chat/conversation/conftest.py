"""Each architecture as a model that can chat."""

from typing import Any

import pytest

from helpers.conversations import loaded_model
from helpers.tiny import ARCHITECTURES


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest) -> Any:
    return loaded_model(request.param)
