"""What the program's parts log is a line each, and no error's words are in it, which may be a prompt's."""

import logging
from collections.abc import Iterator

import pytest

from afmoe_mlx.errors import CheckpointError
from afmoe_mlx.server.engine.writer import EngineError
from afmoe_mlx.server.http.log import log_to_stderr


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    top = logging.getLogger("afmoe_mlx")
    before = top.handlers, top.propagate
    log_to_stderr()
    yield logging.getLogger("afmoe_mlx.server.engine")
    top.handlers, top.propagate = before


def test_an_error_is_told_by_its_type_and_place(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("a secret\nof two lines")
    except ValueError:
        logger.exception("request %s failed", "17")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: request 17 failed: ValueError at ")
    assert "test_log:" in line


def test_of_the_models_files_it_is_told_what_is_wrong(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise EngineError from CheckpointError("m.safetensors: cannot be read")
    except EngineError:
        logger.exception("the model failed")
    assert capsys.readouterr().err == "error: the model failed: m.safetensors: cannot be read\n"


def test_a_log_that_cannot_be_written_ends_nothing(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(line: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("afmoe_mlx.server.http.log.note", fail)
    logger.warning("nobody reads this")
