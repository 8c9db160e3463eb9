"""The real program in a real pseudo-terminal, with the embedded model."""

import json
import re
import shlex
import shutil
import signal
import sys
import termios
from pathlib import Path

import pytest

from helpers.pseudo_terminal import ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, CTRL_Z, ENTER, TAB, UP, PseudoTerminal
from helpers.tiny import tiny_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

QUESTION, ANSWER = "What is a router?", "The router is a small layer"
LONG = ("-m", "3000", "--temp", "0")


def sessions(home: Path) -> list[Path]:
    return sorted((home / "data/afmoe-mlx/sessions").glob("*.jsonl"))


def said(path: Path) -> list[tuple[str, str]]:
    """The messages of a session without edits, as its file has them."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [(record["role"], record["content"]) for record in records if record["type"] == "message"]


def begun(message: str) -> str:
    """What is seen once an answer has begun: more than a sign of life."""
    return rf"^> {message}\n(?!. reading).*\S"


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that does not come to an end."""
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096))


def test_a_conversation_is_typed_answered_changed_and_left(tmp_path: Path) -> None:
    with PseudoTerminal(tmp_path, "--temp", "0") as terminal:
        terminal.wait_for_prompt()
        terminal.ask(QUESTION)
        assert f"> {QUESTION}\n{ANSWER}" in terminal.text
        assert re.search(
            r"^\d+ tokens · [\d.]+ tokens/s · first in [\d.]+ s · context \d+ of 4,096$", terminal.text, re.M
        )
        terminal.say("/regenerate", r"^\d+ tokens")
        assert terminal.text.count(ANSWER) == 2
        terminal.type("/edit" + ENTER)
        terminal.wait(lambda: terminal.cursor_row == f"> {QUESTION}", "message to edit")
        terminal.type("\x17\x17an expert?" + ENTER)  # Ctrl-W: the last word goes
        terminal.wait_for(r"(?s)> What is an expert\?.*^\d+ tokens")
        terminal.wait_for_prompt()
        terminal.type("日本語 👋 wide?")
        terminal.wait(lambda: terminal.cursor_row == "> 日本語 👋 wide?", "wide characters")
        assert terminal.screen.cursor.x == len("> ") + 6 + 1 + 2 + len(" wide?")
        terminal.ask("")
        assert "> 日本語 👋 wide?\n" in terminal.text
        terminal.say("/undo", "1 turn taken back. The last message is now: What is an expert?")
        terminal.say("/edti", "did you mean /edit?")
        terminal.type("/ex")
        terminal.wait_for("/export +write the")
        terminal.type(TAB)
        terminal.wait(lambda: terminal.cursor_row in ("> /export", "> /exit"), "completion")
        terminal.type(CTRL_C)
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-C again leaves")
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        assert terminal.end() == 0
    assert "error" not in terminal.text.replace("error: no command", "")


def test_a_pasted_block_and_broken_lines_are_one_message(tmp_path: Path) -> None:
    with PseudoTerminal(tmp_path, "--temp", "0") as terminal:
        terminal.wait_for_prompt()
        assert b"\x1b[?2004h" in terminal.received  # asked for brackets around what is pasted
        terminal.type("\x1b[200~What is\r\na router?\r\x1b[201~" + ALT_ENTER + "Say!")
        terminal.wait_for(r"> What is\n  a router\?\n\n  Say!")
        terminal.ask("")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert said(sessions(tmp_path)[0])[0] == ("user", "What is\na router?\n\nSay!")


def test_ctrl_c_stops_an_answer_and_keeps_what_came_and_what_is_typed_meanwhile_is_not_lost(
    tmp_path: Path, babbler: str
) -> None:
    with PseudoTerminal(tmp_path, "--model", babbler, *LONG) as terminal:
        terminal.wait_for_prompt()
        terminal.type("hello" + ENTER)
        terminal.wait_for(begun("hello"))
        terminal.type(CTRL_C)
        terminal.wait_for(r"\(stopped\)")
        terminal.wait_for_prompt()
        terminal.say("/set max_tokens 150", "max_tokens is 150")
        terminal.type("again" + ENTER)
        terminal.wait_for(begun("again"))
        terminal.type("typed meanwhile" + ENTER + "and this")
        terminal.wait_for(begun("typed meanwhile"))
        terminal.wait(lambda: terminal.cursor_row == "> and this", "what was typed meanwhile")
        terminal.type(CTRL_C)
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    records = [json.loads(line) for line in sessions(tmp_path)[0].read_text().splitlines()]
    stopped = [record.get("stopped", False) for record in records if record.get("role") == "assistant"]
    assert stopped == [True, False, False]


def test_a_resize_leaves_nothing_behind(tmp_path: Path) -> None:
    with PseudoTerminal(tmp_path, "--temp", "0") as terminal:
        terminal.wait_for_prompt()
        terminal.ask(QUESTION)
        terminal.type("What is")
        terminal.wait(lambda: terminal.cursor_row == "> What is", "typed text")
        terminal.resize(50, 15)
        terminal.type(" AFM")
        terminal.wait(lambda: terminal.cursor_row == "> What is AFM", "typed text after a resize")
        terminal.resize(100, 30)
        terminal.ask("oE?")
        assert terminal.text.count("> What is AFMoE?") == 1
        assert re.search(r"^AFMoE is Arcee's .{60,}$", terminal.text, re.MULTILINE)


def test_a_conversation_is_taken_up_again_with_its_history_and_nothing_is_read_twice(tmp_path: Path) -> None:
    with PseudoTerminal(tmp_path, "--temp", "0") as terminal:
        terminal.wait_for_prompt()
        for question in ("What is a router? " * 30, "What is muP?", "What is Trinity?"):
            terminal.ask(question)
        terminal.type("/exit" + ENTER)
        assert terminal.end() == 0
    with PseudoTerminal(tmp_path, "--resume", rows=12) as terminal:
        terminal.wait_for_prompt()
        assert "> What is Trinity?" in terminal.text
        assert "… 2 earlier messages" in terminal.text
        assert "No --model" not in terminal.text
        terminal.ask("What is a router?")
        assert re.search(r"· \d{3} reused ·", terminal.text.replace("\n", " ")), terminal.text
        terminal.type(UP)
        terminal.wait(lambda: terminal.cursor_row == "> What is a router?", "last message")


def test_what_was_said_survives_a_kill(tmp_path: Path, babbler: str) -> None:
    with PseudoTerminal(tmp_path, "--model", babbler, *LONG) as terminal:
        terminal.wait_for_prompt()
        terminal.say("/set max_tokens 5", "max_tokens is 5")
        terminal.ask("first")
        terminal.say("/set max_tokens 3000", "max_tokens is 3000")
        terminal.type("second" + ENTER)
        terminal.wait_for(begun("second"))
        terminal.child.kill(signal.SIGKILL)
        assert terminal.end() == -signal.SIGKILL
    assert [role for role, _ in said(sessions(tmp_path)[0])] == ["user", "assistant", "user"]
    with PseudoTerminal(tmp_path, "--resume", "--model", babbler, *LONG) as terminal:
        terminal.wait_for_prompt()
        assert "> first" in terminal.text
        assert "> second" in terminal.text
        terminal.type("third" + ENTER)
        terminal.wait_for(begun("third"))
        terminal.child.kill(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
    assert said(sessions(tmp_path)[0])[-1][0] == "assistant"


def test_what_was_typed_comes_back_in_the_next_run_unless_it_is_not_kept(tmp_path: Path) -> None:
    with PseudoTerminal(tmp_path, "--temp", "0", "-m", "3", "--no-save") as terminal:
        terminal.wait_for_prompt()
        terminal.ask("What is a router?")
        terminal.ask("What is muP?")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert sessions(tmp_path) == []
    with PseudoTerminal(tmp_path, "--no-save") as terminal:
        terminal.wait_for_prompt()
        terminal.type(UP)
        terminal.wait(lambda: terminal.cursor_row == "> What is muP?", "last message")
        terminal.type(CTRL_C)
        terminal.wait_for_prompt()
        terminal.type(CTRL_R + "rout")
        terminal.wait_for("router")
        terminal.type(ENTER)
        terminal.wait(lambda: terminal.cursor_row == "> What is a router?", "message that was searched")
    with PseudoTerminal(tmp_path, "--no-save", "--no-history") as terminal:
        terminal.wait_for_prompt()
        terminal.type(UP + "x")
        terminal.wait(lambda: terminal.cursor_row == "> x", "empty history")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_prompt_leaves_the_terminal_as_it_was(tmp_path: Path, number: int) -> None:
    with PseudoTerminal(tmp_path, "-m", "3") as terminal:
        terminal.wait_for_prompt()
        terminal.ask(QUESTION)
        terminal.type("half a mess")
        terminal.wait(lambda: terminal.cursor_row == "> half a mess", "typed text")
        terminal.child.kill(number)
        assert terminal.end() == 128 + number
    assert terminal.received.endswith(b"\r\n") or b"\x1b[?2004l" in terminal.received
    assert [role for role, _ in said(sessions(tmp_path)[0])] == ["user", "assistant"]


def test_what_is_typed_while_a_stopped_answer_goes_on_still_waits_for_the_prompt(tmp_path: Path, babbler: str) -> None:
    with PseudoTerminal(tmp_path, "--model", babbler, *LONG) as terminal:
        terminal.wait_for_prompt()
        terminal.type("hello" + ENTER)
        terminal.wait_for(begun("hello"))
        file = terminal.child.fileno()
        cooked = termios.tcgetattr(file)
        assert not cooked[3] & termios.ECHO
        cooked[0] |= termios.ICRNL
        cooked[3] |= termios.ECHO | termios.ICANON
        termios.tcsetattr(file, termios.TCSANOW, cooked)  # as a shell does between Ctrl-Z and fg
        terminal.child.kill(signal.SIGCONT)
        terminal.wait(lambda: not termios.tcgetattr(file)[3] & termios.ECHO, "silence", timeout=10)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with jobs")
def test_after_ctrl_z_and_fg_each_word_stands_once(tmp_path: Path, babbler: str) -> None:
    talk = tmp_path / "talk"
    options = ["--model", babbler, "-m", "150", "--temp", "0", "--no-save"]
    talk.write_text(f"#!/bin/sh\nexec {shlex.join([sys.executable, '-m', 'afmoe_mlx', 'chat', *options])}\n")
    talk.chmod(0o700)
    with PseudoTerminal(tmp_path, shell=("bash", "--norc", "--noprofile", "-i"), rows=40, PS1="shell% ") as terminal:
        terminal.wait(lambda: terminal.cursor_row == "shell%", "shell")
        terminal.type("./talk" + ENTER)
        terminal.wait_for_prompt()
        terminal.type("hello" + ENTER)
        terminal.wait_for(begun("hello"))
        for times in (1, 2):
            terminal.type(CTRL_Z)
            terminal.wait_for("Stopped", times)
            terminal.wait(lambda: terminal.cursor_row == "shell%", "shell")
            terminal.type("fg" + ENTER)
            terminal.wait_for(r"^\./talk", times)
        terminal.wait_for(r"^\d+ tokens ")
        terminal.wait_for_prompt()
        stopped = terminal.text
        terminal.say("/new", "A new conversation")
        terminal.ask("hello")
    assert answered(stopped) == answered(terminal.text.removeprefix(stopped))


def answered(text: str) -> str:
    """The characters of an answer, without what a shell has said in its middle."""
    answer = re.split(r"^\d+ tokens ", text.partition("> hello\n")[2], flags=re.MULTILINE)[0]
    words = re.sub(r"^(shell%|\[1\]\+|\./talk).*$", "", answer, flags=re.MULTILINE)
    return re.sub(r"\s", "", words)


EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b5A\x1bP+q\x1b\\ \u202ereversed [bold]x[/bold]"


def test_control_characters_of_a_session_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    folder = tmp_path / "data/afmoe-mlx/sessions"
    folder.mkdir(parents=True)
    records = [
        {"type": "session", "format": 1, "model": "demo", "created": "2026-11-24T09:00:00+00:00"},
        {"type": "system", "content": EVIL},
        {"type": "message", "role": "user", "content": f"user {EVIL}"},
        {"type": "message", "role": "assistant", "content": f"assistant {EVIL} [link](http://x/\x1b]8;;)"},
        {"type": f"kind {EVIL}"},
    ]
    (folder / "evil.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"type": "mess')
    with PseudoTerminal(tmp_path, "--resume", "evil", columns=100, rows=30) as terminal:
        terminal.wait_for_prompt()
        assert terminal.screen.title == ""
        for shown in ("user \\x1b]0;owned\\x07", "assistant \\x1b]0;owned", "line 5 is of a kind", "[bold]x[/bold]"):
            assert shown in terminal.text.replace("\n  ", ""), terminal.text
        terminal.say("/system", "removes it")
        terminal.say("/sessions", "this one")
        terminal.type("/load ")
        terminal.wait_for(r"evil +user")
        for text in (b"\x1b]", b"\x1bP", b"\x9b5A", "\u202e".encode()):
            assert text not in terminal.received


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    with PseudoTerminal(tmp_path, "--temp", "0", TERM="dumb") as terminal:
        terminal.wait_for("^> $|^>$")
        terminal.type(QUESTION + ENTER)
        terminal.wait_for(r"^\d+ tokens")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.received.partition(b"> ")[2]
    assert ANSWER in terminal.text
