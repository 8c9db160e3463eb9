"""The chat: remembers by its messages, recomputes nothing it has, and obeys a terminal."""

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import ARCHITECTURES, tiny_folder

from afmoe_mlx import generate, load
from afmoe_mlx.chat import Conversation


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_folder(tmp_path_factory.mktemp("model") / "m", request.param))


def say(conversation: Conversation, text: str) -> str:
    return "".join(chunk.text for chunk in conversation.reply(text))


def test_every_answer_is_that_of_the_whole_conversation_run_from_scratch(loaded: Any) -> None:
    conversation = Conversation(*loaded, system_prompt="the world", options={"max_tokens": 12})
    for text in ("hello", "hello to the world", "the"):
        answer = say(conversation, text)
        prompt = loaded[1].apply_chat_template(conversation.messages[:-1])
        assert answer == generate(*loaded, prompt, max_tokens=12)
    assert [message["role"] for message in conversation.messages] == ["system"] + ["user", "assistant"] * 3


def test_a_turn_runs_only_the_tokens_the_cache_does_not_hold(loaded: Any) -> None:
    tokenizer = loaded[1]
    conversation = Conversation(*loaded, options={"max_tokens": 12})
    say(conversation, "hello")
    for text in ("hello to the world", "the", "world"):
        held = list(conversation._cached)
        say(conversation, text)
        prompt = tokenizer.apply_chat_template(conversation.messages[:-1])
        common = next((i for i, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b), len(held))
        assert common > 0
        assert conversation.tokens_run == len(prompt) - common


def test_what_came_of_an_interrupted_answer_is_kept_and_continued_from(loaded: Any) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": 40})
    chunks = conversation.reply("hello")
    came = "".join(next(chunks).text for _ in range(7))
    chunks.close()  # type: ignore[attr-defined]
    assert conversation.messages[-1] == {"role": "assistant", "content": came}
    conversation.options["max_tokens"] = 8
    answer = say(conversation, "the world")
    prompt = loaded[1].apply_chat_template(conversation.messages[:-1])
    assert answer == generate(*loaded, prompt, max_tokens=8)


def test_a_message_that_cannot_be_answered_leaves_the_conversation_as_it_was(loaded: Any) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": 4})
    say(conversation, "hello")
    before = list(conversation.messages)
    with pytest.raises(Exception, match="context"):
        conversation.reply("hello " * 1000)
    assert conversation.messages == before
    say(conversation, "the")


def test_clear_forgets_all_but_the_system_prompt(loaded: Any) -> None:
    conversation = Conversation(*loaded, system_prompt="the world", options={"max_tokens": 4})
    first = say(conversation, "hello")
    conversation.clear()
    assert [message["role"] for message in conversation.messages] == ["system"]
    assert say(conversation, "hello") == first


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """The real program on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "afmoe_mlx", "chat", *arguments]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=own_terminal
        )
        os.close(slave)

    def wait_for(self, pattern: str, timeout: float = 30) -> str:
        """The text shown since the last call, once `pattern` is in it."""
        until = time.monotonic() + timeout
        shown = ""
        while not re.search(pattern, shown):
            assert time.monotonic() < until, f"no {pattern!r} in {shown!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    shown += ESCAPES.sub("", os.read(self.master, 65536).decode(errors="replace"))
                except OSError:
                    break
        return shown

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def code(self) -> int:
        return self.process.wait(timeout=20)


def own_terminal() -> None:
    """In the child: a session of its own whose keys, Ctrl-C among them, come from the pseudo-terminal."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tiny_folder(tmp_path / "tiny", max_position_embeddings=4096))


def test_a_terminal_chat_answers_obeys_and_leaves(folder: str) -> None:
    terminal = Terminal("--model", folder, "-m", "8", "--temp", "0")
    terminal.wait_for("> ")
    terminal.type("/help\n")
    assert "/clear" in terminal.wait_for("/exit.*> ".replace(".", "(?s:.)"))
    terminal.type("hello\n")
    terminal.wait_for(r"8 tokens(?s:.)*> ")
    terminal.type("/nonsense\n")
    terminal.wait_for("No command /nonsense")
    terminal.type("/exit\n")
    assert terminal.code() == 0


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(folder: str) -> None:
    terminal = Terminal("--model", folder, "-m", "3000", "--temp", "0")
    terminal.wait_for("> ")
    terminal.type("hello\n")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.wait_for(r"\(stopped\)(?s:.)*> ")
    terminal.type("\x04")
    assert terminal.code() == 0


def test_not_a_terminal_answers_stdin_plainly(folder: str) -> None:
    command = [sys.executable, "-m", "afmoe_mlx", "chat", "--model", folder, "-m", "8", "--temp", "0"]
    done = subprocess.run(command, input="hello", capture_output=True, text=True)
    model, tokenizer = load(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    assert done.stdout == generate(model, tokenizer, prompt, max_tokens=8) + "\n"
    assert done.stderr == ""
    assert done.returncode == 0
