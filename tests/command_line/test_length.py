"""A prompt that cannot fit is refused before the model is loaded, whoever asks."""

from pathlib import Path

import pytest

from afmoe_mlx.checkpoint import files
from afmoe_mlx.command_line.length import check_length
from afmoe_mlx.errors import ContextFullError
from afmoe_mlx.tokenizer.encoding import LONG
from helpers.command_line import run
from helpers.tiny import tiny_folder

TEXT = "hello " * LONG


@pytest.mark.parametrize("command", [("generate", "-p", "-"), ("chat",), ("chat", "--json", "and this?")])
def test_no_weights_are_read_for_a_prompt_that_cannot_fit(
    command: tuple[str, ...], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "load_lazily", lambda *_: pytest.fail("weights are read"))
    result = run(*command, "--model", model, stdin=TEXT)
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("error: the prompt has more tokens than fit: expected fewer than")


def test_a_prompt_that_may_fit_is_left_to_the_model(tmp_path: Path) -> None:
    check_length(TEXT, str(tiny_folder(tmp_path / "wide", max_position_embeddings=len(TEXT))), revision=None)
    with pytest.raises(ContextFullError):
        check_length(TEXT, "demo", revision=None)
