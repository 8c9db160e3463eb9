"""Commands are found, completed and listed; any other line is a message."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.chat import Chat
from afmoe_mlx.chat.commands import command as commands
from afmoe_mlx.chat.commands.command import COMMANDS, parse
from afmoe_mlx.errors import InputError
from helpers import ROOT
from helpers.talk import Talk


def test_messages_are_answered_and_commands_are_not_sent(talk: Callable[..., Talk]) -> None:
    found = talk("hello", "  /exit is how one leaves ", "//usr", "", "   ", "/help", "/exit", "never read")
    assert found.said == ["hello", "first answer", "/exit is how one leaves", "second answer", "/usr", "third answer"]
    assert found.reader.lines == ["never read"]


@pytest.mark.parametrize("line", ["/exit", "/quit", "/bye", "q"])
def test_the_words_of_other_programs_leave_too(talk: Callable[..., Talk], line: str) -> None:
    found = talk("hello", " q", line, "never read")
    assert found.said == ["hello", "first answer", "q", "second answer"]
    assert found.reader.lines == ["never read"]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/undo 2", ("undo", "2")),
        ("/UNDO", ("undo", "")),
        ("/system  You are\na pirate. ", ("system", "You are\na pirate.")),
        ("/edit!", ("edit!", "")),
        ("/", ("", "")),
        ("/bye", ("bye", "")),
        ("q", ("exit", "")),
        ("q ", ("exit", "")),
        (" q", None),
        ("Q", None),
        ("//q", None),
        ("q\nq", None),
        ("quit", None),
        ("hello", None),
        (" /undo", None),
        ("//undo", None),
        ("/usr/bin/env is what?", None),
        ("/etc/hosts", None),
        ("1/2", None),
    ],
)
def test_a_slash_and_a_word_are_a_command_and_a_path_is_none(line: str, command: tuple[str, str] | None) -> None:
    found = parse(line)
    assert (found and (found.name, found.argument)) == command


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("/regen", "did you mean /regenerate?"),
        ("/modle", "/model?"),
        ("/quti", "/quit?"),
        ("/zzz", "/help"),
        ("/", "/"),
    ],
)
def test_an_unknown_command_suggests_the_nearest_and_says_how_to_send_it(
    talk: Callable[..., Talk], typed: str, words: str
) -> None:
    found = talk(typed)
    assert words in found.shown
    assert "two slashes" in found.shown
    assert found.said == []


def test_a_pasted_block_keeps_its_indentation() -> None:
    assert commands.message("    if x:\n        y\n\n") == "    if x:\n        y"
    assert commands.message("\n  hello ") == "hello"


def test_help_has_every_command(talk: Callable[..., Talk]) -> None:
    shown = talk("/help").shown
    for command in COMMANDS:
        assert re.search(rf"^/{re.escape(command.name)} .*{re.escape(command.help)}", shown, re.MULTILINE)
        assert all(f"/{alias}" in shown for alias in command.aliases)


def offered(chat: Chat, text: str) -> list[str]:
    return [candidate.text for candidate in chat.complete(text)]


def test_completion_knows_commands_and_their_arguments(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("")
    Path("notes.md").write_text("")
    chat = talk("about whales", "/save whales").chat
    assert offered(chat, "/re") == ["/regenerate"]
    assert offered(chat, "/edit") == ["/edit", "/edit!"]
    assert offered(chat, "/set top") == ["top_p", "top_k"]
    assert offered(chat, "/set temperature ") == ["0.0", "default"]
    assert offered(chat, "/think s") == ["show"]
    assert offered(chat, "/load w") == ["whales"]
    assert offered(chat, "/file no") == ["notes.md", "notes.txt"]
    assert offered(chat, "/export n") == ["notes.md"]
    assert "trinity-mini" in offered(chat, "/model tri")
    assert offered(chat, "/undo ") == offered(chat, "hello") == offered(chat, "/nothing x") == []
    assert offered(chat, "/usr/bi") == []


@pytest.mark.parametrize("line", ["/new whales", "/regenerate shorter", "/edit another text", "/exit now"])
def test_a_command_that_takes_nothing_is_not_obeyed_with_an_argument(talk: Callable[..., Talk], line: str) -> None:
    found = talk("hello", line, "again")
    assert "stands alone: found '" in found.shown
    assert found.said == ["hello", "first answer", "again", "second answer"]


def test_commands_are_found_by_every_name() -> None:
    assert commands.find("clear") is commands.find("new")
    assert commands.find("quit") is commands.find("exit")
    with pytest.raises(InputError, match="no command /nwe"):
        commands.find("nwe")


def test_the_guide_lists_the_commands_as_help_does() -> None:
    guide = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    assert [line for line in guide.splitlines() if line.startswith("| `/")] == [guide_row(c) for c in COMMANDS]


def guide_row(command: Any) -> str:
    usage = f"/{command.name} {command.arguments}".rstrip().replace("|", "\\|")
    also = "".join(f", `/{alias}`" for alias in command.aliases)
    return f"| `{usage}`{also} | {command.help} |"
