"""Models that a service answers with, loaded once for each module."""

import pytest

from afmoe_mlx import load
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer
from helpers.asking import CALLED, THOUGHT
from helpers.scripted import scripted_folder
from helpers.tiny import tiny_folder


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Tokenizer]:
    """Says CALLED, then THOUGHT."""
    return load(scripted_folder(tmp_path_factory.mktemp("scripted") / "m", [CALLED, THOUGHT]))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Tokenizer]:
    return load(scripted_folder(tmp_path_factory.mktemp("endless") / "m", ["again and "], endless=True))


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Tokenizer]:
    return load(tiny_folder(tmp_path_factory.mktemp("random") / "m"))
