"""Sample texts for evaluation and calibration, read from a .txt or .jsonl as token ids."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError, TokenizerError
from .tokenizer import Tokenizer


def read_samples(path: str | Path, tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of every sample in a file: the whole of a text, or each line of a `.jsonl`.

    A line is a JSON object with "text", or with "messages" (and "tools"), which go through the chat template without a
    prompt for one more answer. Raises InputError, naming the line, for what is neither, or no UTF-8; and for a file
    that cannot be read or holds no text.
    """
    path = Path(path)
    text = _read(path)
    if path.suffix.lower() == ".jsonl":
        samples = [_line(path, number, line, tokenizer) for number, line in _lines(text)]
    else:
        samples = [tokenizer.encode(text)] if text.strip() else []
    if not samples:
        raise InputError(f"{path}: holds no text: expected a text, or a .jsonl with a sample a line")
    return samples


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}): convert it first, with iconv for example") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): expected a text or .jsonl file") from None


def _lines(text: str) -> Iterable[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; only a newline ends one."""
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _line(path: Path, number: int, line: str, tokenizer: Tokenizer) -> list[int]:
    where = f"{path}, line {number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
    try:
        return _encode(value, tokenizer)
    except TokenizerError as error:
        raise InputError(f"{where}: {error}") from None
    except _NoSampleError as error:
        raise InputError(
            f'{where}: {error}: expected {{"text": "…"}} or {{"messages": [{{"role", "content"}}, …]}}'
        ) from None


class _NoSampleError(ValueError):
    """What is in a line instead of a sample."""


def _encode(value: Any, tokenizer: Tokenizer) -> list[int]:
    if not isinstance(value, dict):
        raise _NoSampleError(f"a JSON {type(value).__name__}")
    if "messages" not in value:
        if not isinstance(value.get("text"), str):
            raise _NoSampleError("no messages, and no text" if "text" not in value else "text is no string")
        return tokenizer.encode(value["text"])
    messages, tools = value["messages"], value.get("tools")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise _NoSampleError("messages is no list of messages with a role")
    if not (tools is None or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools))):
        raise _NoSampleError("tools is no list of objects")
    return tokenizer.apply_chat_template(messages, tools=tools or None)
