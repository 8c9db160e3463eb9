"""What the chat's commands are made of: settings, clipboard, the user's editor, an end that others bring about."""

import base64
import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.chat.conversation import settings
from afmoe_mlx.chat.conversation.engine import lasting_name
from afmoe_mlx.chat.keyboard.editor import edit_text
from afmoe_mlx.chat.keyboard.signals import orderly_end
from afmoe_mlx.chat.screen import clipboard
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import SamplingOptions


def test_every_sampling_option_can_be_set() -> None:
    assert settings.MEANINGS.keys() == SamplingOptions.__dataclass_fields__.keys() | {"max_tokens"}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.3", 0.3),
        ("temp", "1", 1.0),
        ("Top-P", "0.9", 0.9),
        ("top_k", "40", 40),
        ("seed", "7", 7),
        ("max_tokens", "100", 100),
        ("repetition_context_size", "64", 64),
    ],
)
def test_a_value_is_read_as_what_it_is_and_the_default_comes_back(name: str, text: str, value: float) -> None:
    options: dict[str, Any] = {"max_tokens": 2048, "prompt_lookup": 8}
    full = settings.change(options, name, text)
    assert options[full] == value
    assert type(options[full]) is type(value)
    settings.change(options, full, "default")
    assert options[full] == (settings.MAX_TOKENS if full == "max_tokens" else None)
    assert options["prompt_lookup"] == 8


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("temperature", "-1", "temperature is -1.0, expected a finite number >= 0"),
        ("temperature", "nan", "temperature is nan"),
        ("temperature", "warm", "temperature is 'warm': expected a number, or default"),
        ("top_k", "1.5", "top_k is '1.5': expected a whole number"),
        ("top_p", "2", "expected a number from 0 to 1"),
        ("max_tokens", "0", "max_tokens is 0: expected an integer, 1 or more"),
        ("seed", "-1", "expected an integer from 0"),
        ("temprature", "1", "did you mean temperature?"),
        ("zzz", "1", "/set shows all"),
    ],
)
def test_a_value_that_makes_no_sense_changes_nothing(name: str, text: str, words: str) -> None:
    options = {"temperature": 0.5, "top_k": 3}
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        settings.change(options, name, text)
    assert options == {"temperature": 0.5, "top_k": 3}


def test_what_counts_is_shown_with_where_it_comes_from() -> None:
    found = {s.name: (s.value, s.source) for s in settings.current({"top_k": 5, "seed": None}, {"temperature": 0.15})}
    assert found["temperature"] == (0.15, "model")
    assert found["top_k"] == (5, "set")
    assert found["min_p"] == (0.0, "default")
    assert found["max_tokens"] == (settings.MAX_TOKENS, "default")


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


def editor(tmp_path: Path, body: str) -> str:
    """An editor that does `body` with the file's name in `$1`."""
    program = tmp_path / "my editor"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return f"'{program}'"


def test_the_editor_gets_the_text_in_a_private_file_and_gives_it_back(tmp_path: Path) -> None:
    wish = editor(tmp_path, 'stat -c %a "$(dirname "$2")" > mode; test "$1" = --wait && echo "and more" >> "$2"')
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert edit_text("héllo\nworld", {"VISUAL": wish + " --wait", "EDITOR": "false"}) == "héllo\nworld\nand more"
    finally:
        os.chdir(before)
    assert (tmp_path / "mode").read_text().strip() == "700"


def test_no_shell_reads_the_editors_name(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    with pytest.raises(InputError, match="cannot run the editor"):
        edit_text("x", {"EDITOR": f"nowhere; touch {victim} #"})
    assert not victim.exists()


@pytest.mark.parametrize("wish", ["'", "''"])
def test_an_editor_that_is_none_is_named(wish: str) -> None:
    with pytest.raises(InputError, match="set VISUAL"):
        edit_text("x", {"EDITOR": wish})


def test_an_editor_that_fails_changes_nothing(tmp_path: Path) -> None:
    assert edit_text("x", {"EDITOR": editor(tmp_path, 'echo y > "$1"; exit 1')}) is None
    with pytest.raises(InputError, match="cannot be read"):
        edit_text("x", {"EDITOR": editor(tmp_path, "printf '\\377' > \"$1\"")})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_that_others_bring_about_is_an_exit(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, orderly_end():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_a_folders_name_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("mine", "demo"):
        Path(name).mkdir()
    assert lasting_name("mine") == lasting_name("~/mine") == str(tmp_path / "mine")
    assert [lasting_name(name) for name in ("demo", "trinity-nano", "a/b")] == ["demo", "trinity-nano", "a/b"]
