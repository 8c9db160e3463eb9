"""What is read from stdin, and JSON on stdout, whatever the encoding."""

import ast
import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import InputError
from afmoe_mlx.terminal import read_stdin, write_json
from helpers.imports import dotted, package_modules

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


class Stream(io.TextIOWrapper):
    def __init__(self, content: bytes = b"", *, encoding: str = "latin-1", is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def printed(value: Any, **stream: Any) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out := Stream(**stream))
        write_json(value)
    return out.buffer.getvalue()  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None)
@given(value=VALUES, is_terminal=st.booleans())
def test_json_is_json_on_every_stream(value: Any, is_terminal: bool) -> None:
    for encoding in ("latin-1", "ascii", "cp437", "utf-8"):
        found = printed(value, encoding=encoding, is_terminal=is_terminal)
        assert json.loads(found.decode("ascii")) == value


def test_numbers_that_json_has_not_are_null() -> None:
    value = {"a": float("inf"), "b": [float("nan"), 1.5], "c": (-float("inf"),)}
    assert json.loads(printed(value)) == {"a": None, "b": [None, 1.5], "c": [None]}


def test_every_command_prints_json_in_the_same_way() -> None:
    fronts = ("afmoe_mlx.commands", "afmoe_mlx.command_line", "afmoe_mlx.cli", "afmoe_mlx.chat.one_shot")
    for module in package_modules():
        if not module.name.startswith(fronts) or module.name == "afmoe_mlx.command_line.prompt_cache":  # it keeps some
            continue
        calls = {dotted(node.func) for node in ast.walk(ast.parse(module.source)) if isinstance(node, ast.Call)}
        assert not calls & {"json.dumps", "json.dump"}, module.name


def test_an_answer_as_json_is_json_in_an_encoding_that_has_not_its_characters(model: str) -> None:
    command = [sys.executable, "-m", "afmoe_mlx", "generate", "--model", model, "-p", "x", "-m", "40", "--temp", "9"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([*command, "--json"], capture_output=True, env=environment, check=True)
    assert json.loads(done.stdout)["text"].encode("latin-1", "replace").count(b"?") > 0


def test_a_byte_order_mark_is_no_part_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stream("\ufeffhé\ufeff".encode()))
    assert read_stdin() == "hé\ufeff"


@pytest.mark.parametrize(("length", "is_read"), [(10, True), (11, False)])
def test_no_more_of_stdin_is_read_than_any_context_takes(
    length: int, is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = Stream(b"a" * length + b"b" * 1000)
    stdin.buffer.seek(1000)
    monkeypatch.setattr(sys, "stdin", stdin)
    if is_read:
        assert len(read_stdin(10)) == 10
        return
    with pytest.raises(InputError, match="stdin has more than"):
        read_stdin(10)
    assert stdin.buffer.tell() == 1011
