"""The clipboard of the desktop, or of the terminal by OSC 52."""

import base64
import io
from pathlib import Path

import pytest

from afmoe_mlx.chat.screen import clipboard
from afmoe_mlx.errors import InputError


def test_osc_52_carries_the_text_and_nothing_that_is_obeyed() -> None:
    text = "wide 日本\x1b]0;title\x07\x1b\\ end"
    sequence = clipboard.osc52(text)
    payload = sequence.removeprefix("\x1b]52;c;").removesuffix("\x07")
    assert base64.b64decode(payload, validate=True).decode() == text
    in_tmux = clipboard.osc52(text, in_tmux=True)
    assert in_tmux.startswith(clipboard.osc52(text) + "\x1bPtmux;\x1b\x1b]52;c;")
    assert in_tmux.endswith("\x07\x1b\\")


def test_the_desktops_own_program_is_used_where_there_is_one(tmp_path: Path) -> None:
    for name in ("pbcopy", "wl-copy", "xclip"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n/bin/cat > {tmp_path}/copied\n")
        program.chmod(0o755)
    path = {"PATH": str(tmp_path)}
    assert clipboard.desktop_command(path, "darwin") == ["pbcopy"]
    assert clipboard.desktop_command(path | {"WAYLAND_DISPLAY": "w", "DISPLAY": ":0"}, "linux") == ["wl-copy"]
    assert clipboard.desktop_command(path | {"DISPLAY": ":0"}, "linux") == ["xclip", "-selection", "clipboard"]
    assert clipboard.desktop_command(path, "linux") is None
    assert clipboard.desktop_command(path | {"SSH_CONNECTION": "1"}, "darwin") is None
    assert clipboard.desktop_command({"PATH": "", "DISPLAY": ":0"}, "linux") is None


def test_a_terminal_is_asked_where_there_is_no_desktop_and_told_when_it_is_much() -> None:
    terminal = io.StringIO()
    assert clipboard.copy("hello", terminal, {"SSH_CONNECTION": "1"}) == "sent to the terminal's clipboard"
    assert terminal.getvalue() == clipboard.osc52("hello")
    with pytest.raises(InputError, match="no clipboard"):
        clipboard.copy("x", terminal, {"TERM": "dumb"})
    assert "may not take so much" in clipboard.copy("x" * 100_000, terminal, {"SSH_CONNECTION": "1"})
