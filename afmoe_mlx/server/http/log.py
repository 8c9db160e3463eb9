"""A line in the log for each request: what it cost and how it ended, never what was said, nor a key."""

import json
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from ...errors import CheckpointError
from ...terminal import note
from ..question import Call


def log_request(call: Call, status: int, *, as_json: bool) -> None:
    """Write a finished request's line to stderr."""
    _write(json.dumps(_fields(call, status)) if as_json else _words(call, status))


class StderrHandler(logging.Handler):
    """What the program's own parts log, a line each: of an error its type and place, as its words may be a prompt's.

    Of what is wrong with the model's files the words, which are of nothing else.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        words = f"{record.levelname.lower()}: {record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        _write(words if error is None else f"{words}: {_told(error.__cause__ or error)}")


def log_to_stderr() -> None:
    """Have what the program's parts log written to stderr."""
    logger = logging.getLogger(__package__.partition(".")[0])
    logger.propagate = False
    logger.handlers = [StderrHandler()]


def _write(line: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads the log: that ends no request
        note(line)


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}{_place(error)}"


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" at {trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"


def _fields(call: Call, status: int) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": call.id,
        "route": call.route,
        "status": status,
        "prompt_tokens": call.prompt_tokens,
        "cached_tokens": call.cached_tokens,
        "completion_tokens": call.completion_tokens,
        "first_token_seconds": None if call.first_token is None else round(call.first_token, 4),
        "seconds": None if call.seconds is None else round(call.seconds, 4),
        "reason": call.reason,
    }


def _words(call: Call, status: int) -> str:
    parts = [time.strftime("%H:%M:%S"), call.route, str(status)]
    if call.prompt_tokens:
        parts.append(f"in {call.prompt_tokens} ({call.cached_tokens} known) out {call.completion_tokens}")
    if call.first_token is not None:
        parts.append(f"first {call.first_token:.2f} s")
    if call.seconds is not None:
        parts.append(f"total {call.seconds:.2f} s")
    return " ".join([*parts, *([call.reason] if call.reason else []), call.id])
