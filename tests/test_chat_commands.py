"""The chat's commands and its loop as plain functions, with answers that are written beforehand."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeConversation, FakeModel, FakeTokenizer
from rich.console import Console

from afmoe_mlx.chat import Chat, View
from afmoe_mlx.chat.commands import command as commands
from afmoe_mlx.chat.commands.command import COMMANDS, parse
from afmoe_mlx.chat.commands.files import code_blocks
from afmoe_mlx.chat.conversation.context import turns_to_drop
from afmoe_mlx.chat.conversation.engine import Engine
from afmoe_mlx.chat.sessions.folder import SessionFolder
from afmoe_mlx.errors import CheckpointError, FitError, InputError


class Script:
    """A reader whose lines are written beforehand; a function is called where it stands, and gives the line."""

    def __init__(self, *lines: Any, edits: Any = (), answers: Any = ()) -> None:
        self.lines, self.edits, self.answers = list(lines), list(edits), list(answers)
        self.edited: list[str] = []
        self.questions: list[str] = []

    def read(self) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        return line() if callable(line) else line

    def edit(self, text: str) -> str | None:
        self.edited.append(text)
        return self.edits.pop(0)

    def confirm(self, question: str) -> bool:
        self.questions.append(question)
        return self.answers.pop(0)


class Talk:
    """A chat of these lines, run to its end."""

    def __init__(self, folder: Path, *lines: Any, conversation: FakeConversation | None = None, **options: Any) -> None:
        self.reader = Script(*lines, edits=options.pop("edits", ()), answers=options.pop("answers", ()))
        self.conversation = conversation or FakeConversation(["first answer", "second answer", "third answer"])
        self.out = io.StringIO()
        self.chat = Chat(
            self.conversation,
            Console(file=self.out, width=200, highlight=False),
            self.reader,
            commands,
            folder=SessionFolder(folder / "sessions"),
            **{"saves": True} | options,
        )
        self.chat.loop()

    @property
    def shown(self) -> str:
        return self.out.getvalue()

    @property
    def said(self) -> list[str]:
        return [message["content"] for message in self.conversation.messages]


@pytest.fixture
def talk(tmp_path: Path) -> Callable[..., Talk]:
    return lambda *lines, **options: Talk(tmp_path, *lines, **options)


def test_messages_are_answered_and_commands_are_not_sent(talk: Callable[..., Talk]) -> None:
    found = talk("hello", "  /exit is how one leaves ", "//usr", "", "   ", "/help", "/exit", "never read")
    assert found.said == ["hello", "first answer", "/exit is how one leaves", "second answer", "/usr", "third answer"]
    assert found.reader.lines == ["never read"]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/undo 2", ("undo", "2")),
        ("/UNDO", ("undo", "")),
        ("/system  You are\na pirate. ", ("system", "You are\na pirate.")),
        ("/edit!", ("edit!", "")),
        ("/", ("", "")),
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


def test_regenerate_edit_and_undo_change_the_last_turn_alone(talk: Callable[..., Talk]) -> None:
    lines = ["one", "two", "/regenerate", "/edit", "/edit", "/edit"]
    found = talk(*lines, edits=["better", None, "better"], conversation=FakeConversation(["A", "B", "C", "D", "E"]))
    assert found.reader.edited == ["two", "better", "better"]
    assert found.said == ["one", "A", "better", "D"]
    assert "Nothing is changed." in found.shown
    assert "as it was" in found.shown
    assert talk("one", "two", "/undo").said == ["one", "first answer"]
    assert talk("one", "two", "/undo 2").said == []
    assert "nothing to take back" in talk("/undo").shown


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/undo none", "expected 1 or more, found 'none'"),
        ("/undo 0", "expected 1 or more"),
        ("/regenerate", "send one first"),
        ("/edit", "send one first"),
        ("/copy", "no answer to copy"),
        ("/load", "takes the name"),
        ("/load nothing", "no saved chats"),
        ("/export", "ends in .md or .json"),
        ("/export chat.md", "nothing to write"),
        ("/think maybe", "expected show or hide"),
        ("/set temperature 0.1 0.2", "expected one"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/file nowhere.txt", "no such file"),
        ("/model other", "no other model"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_chat_goes_on(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = talk(line, "/set")
    assert re.search(rf"^error: .*{re.escape(words)}", found.shown, re.MULTILINE), found.shown
    assert "temperature" in found.shown


def test_an_interrupted_answer_keeps_what_came_and_the_chat_goes_on(talk: Callable[..., Talk]) -> None:
    found = talk("one", "two", conversation=FakeConversation([["par", "tial", KeyboardInterrupt()], "whole"]))
    assert found.said == ["one", "partial", "two", "whole"]
    assert found.conversation.messages[1]["stopped"] is True
    assert "(stopped)" in found.shown
    none = talk("one", conversation=FakeConversation([[KeyboardInterrupt()]]))
    assert none.said == []
    assert "not kept" in none.shown


def test_set_shows_changes_and_gives_back_the_models_own(talk: Callable[..., Talk]) -> None:
    found = talk("/set temp 0.25", "/set top-k 7", "/set top_k default", "/set seed", "/set temperature cold")
    assert found.conversation.options == {"max_tokens": 2048, "temperature": 0.25, "top_k": None}
    assert "temperature is 0.25 (set)" in found.shown
    assert "seed is random" in found.shown
    assert "error: temperature is 'cold'" in found.shown


def test_the_system_prompt_is_shown_changed_and_removed(talk: Callable[..., Talk]) -> None:
    found = talk("/system", "/system Be brief.\x1b[31m", "/system", "hello")
    assert found.said[:2] == ["Be brief.\x1b[31m", "hello"]
    assert "There is no system prompt" in found.shown
    assert "Be brief.\\x1b[31m" in found.shown
    assert talk("/system x", "/system none", "hello").said == ["hello", "first answer"]


class Source:
    """Other models: "small" has a context of 32 tokens."""

    def another(self, name: str, options: Any) -> Engine:
        if name == "huge":
            raise FitError("huge needs 900 GB")
        if name == "broken":
            raise CheckpointError("broken: no config.json")
        model: Any = FakeModel(32 if name == "small" else 4096)
        tokenizer: Any = FakeTokenizer()
        return Engine(name, model, tokenizer, options, None)


def test_another_model_takes_over_the_conversation_and_one_that_fails_changes_nothing(
    talk: Callable[..., Talk],
) -> None:
    source: Any = Source()
    found = talk("one", "/model broken", "/model huge", "/model", "/model new", "two", "/model", source=source)
    assert found.said == ["one", "first answer", "two", "second answer"]
    assert "error: broken: no config.json" in found.shown
    assert "--resume --model NAME" in found.shown
    assert re.search(r"^demo\..*^new\.", found.shown, re.MULTILINE | re.DOTALL)
    assert found.chat.folder.list()[0].model == "new"


def test_a_full_context_asks_what_to_drop_and_never_forgets_by_itself(talk: Callable[..., Talk]) -> None:
    def full(answer: bool) -> Talk:
        conversation = FakeConversation(["a b c d e f g h"] * 9, context=120)
        return talk(*(f"one two three four {i}" for i in range(6)), conversation=conversation, answers=[answer] * 6)

    dropped, kept = full(True), full(False)
    assert re.search(r"Drop the oldest( \d)? turns? of the", dropped.reader.questions[0])
    assert 1 <= len(dropped.reader.questions) < 5
    assert dropped.said[-2:] == ["one two three four 5", "a b c d e f g h"]
    assert dropped.said[0] > kept.said[0] == "one two three four 0"
    assert "nothing sent" in kept.shown
    assert "The context of 120 tokens is full" in kept.shown


def test_a_message_longer_than_the_context_is_refused_without_a_question(talk: Callable[..., Talk]) -> None:
    found = talk("hello", "word " * 100, "and on", conversation=FakeConversation(context=90))
    assert found.reader.questions == []
    assert "error: the conversation would have" in found.shown
    assert found.said[2] == "and on"


def test_the_fewest_turns_are_dropped_that_make_room() -> None:
    conversation = FakeConversation(["a b c"] * 10, context=200)
    for _ in range(6):
        list(conversation.reply("one two"))
    before = list(conversation.messages)
    for text in ("x", "x " * 40, "x " * 60):
        number = turns_to_drop(conversation, text, replaces=False)
        assert conversation.messages == before
        rooms = []
        for turns in range(7):
            conversation.restore(before)
            conversation.drop_oldest(turns)
            rooms.append(conversation.room_for(text))
        conversation.restore(before)
        assert number == next((n for n in range(1, 7) if rooms[n] >= 50), 6)
    assert turns_to_drop(conversation, "x " * 500, replaces=False) == 0


def test_every_message_is_saved_as_it_ends_and_new_begins_another_session(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    def saved() -> list[int]:
        return [info.turns for info in SessionFolder(tmp_path / "sessions").list()]

    seen: list[list[int]] = []

    def look() -> str:
        seen.append(saved())
        return "/stats"

    found = talk(look, "hello there", look, "/new", "again", look, "/undo")
    assert seen == [[], [1], [1, 1]]
    assert saved() == [1]
    assert "The last one is saved: /load" in found.shown


@pytest.mark.parametrize("answer", [[SystemExit(143)], ["par", SystemExit(143)]], ids=["before", "within"])
def test_a_chat_told_to_end_keeps_what_was_asked(
    talk: Callable[..., Talk], tmp_path: Path, answer: list[str | BaseException]
) -> None:
    with pytest.raises(SystemExit):
        talk("hello there", conversation=FakeConversation([answer]))
    (info,) = SessionFolder(tmp_path / "sessions").list()
    with SessionFolder(tmp_path / "sessions").open(info.name) as session:
        assert session.messages[0]["content"] == "hello there"


def test_sessions_are_named_listed_and_taken_up_again(talk: Callable[..., Talk]) -> None:
    talk("about whales", "/set temperature 0.5", "/save whales")
    found = talk("/sessions", "/load wha", "and on", "/save", "/load whales", "/sessions")
    assert found.said == ["about whales", "first answer", "and on", "first answer"]
    assert found.conversation.options["temperature"] == 0.5
    assert re.search(r"^whales +1 turn +about whales", found.shown, re.MULTILINE)
    assert re.search(r"^whales +2 turns +this one", found.shown, re.MULTILINE)
    assert "> about whales" in found.shown


def test_without_saving_nothing_is_written_until_it_is_asked_for(talk: Callable[..., Talk], tmp_path: Path) -> None:
    talk("hello", "/new", "again", saves=False)
    assert not (tmp_path / "sessions").exists()
    talk("hello", "/save kept", saves=False)
    assert [info.name for info in SessionFolder(tmp_path / "sessions").list()] == ["kept"]


@pytest.mark.parametrize("leaves", [True, False])
def test_what_is_not_saved_is_left_for_another_conversation_only_if_the_user_says_so(
    talk: Callable[..., Talk], leaves: bool
) -> None:
    talk("about whales", "/save whales")
    found = talk("unsaved", "/load whales", saves=False, answers=[leaves])
    assert found.reader.questions == ["What was said here is not saved. Leave it all the same?"]
    assert found.said[0] == ("about whales" if leaves else "unsaved")


def test_a_chat_that_cannot_be_saved_says_so_once_and_goes_on(talk: Callable[..., Talk], tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("in the way")
    found = talk("one", "two")
    assert found.said == ["one", "first answer", "two", "second answer"]
    assert found.shown.count("error:") == 1


def test_control_characters_of_a_session_are_shown_in_every_list(talk: Callable[..., Talk]) -> None:
    talk("evil \x1b]0;title\x07\x1b[2J", "/save s")
    for found in (talk("/sessions"), talk("/load s", "/regenerate", "/undo", "/new", "/stats")):
        assert "\x1b" not in found.shown
        assert "\x07" not in found.shown
        assert "\\x1b]0;title" in found.shown


def test_a_file_goes_with_the_next_message_alone(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("the notes\n")
    Path("data.bin").write_bytes(b"\0\1")
    found = talk("/file notes.txt", "/file data.bin", "/file", "what is in it?", "/file", "and now?")
    assert found.said[0].endswith("the notes\n```\n\nwhat is in it?")
    assert found.said[2] == "and now?"
    assert "error: data.bin is a binary file" in found.shown
    assert "Nothing is attached" in found.shown
    assert talk("/file notes.txt", "/file none", "hello").said[0] == "hello"
    Path("long.txt").write_text("word " * 3000)
    assert "longer than the context of 4,096 tokens" in talk("/file long.txt").shown


def test_a_file_stays_attached_when_its_message_is_not_sent(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("the notes\n")
    conversation = FakeConversation(["a b c d e f g h"] * 9, context=60)
    found = talk("one two three four", "/file notes.txt", "one two three", conversation=conversation, answers=[False])
    assert len(found.said) == 2
    assert [attachment.name for attachment in found.chat.attachments] == ["notes.txt"]


def test_export_writes_and_asks_before_it_writes_over(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = talk("hello", "/export chat.json", "/export chat.json", "/export chat.json", answers=[False, True])
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "first answer"}]
    assert json.loads(Path("chat.json").read_text())["messages"] == messages
    assert found.shown.count("Written to chat.json") == 2
    assert "Nothing is written." in found.shown
    assert "expected .md or .json" in talk("hello", "/export chat.pdf").shown


ANSWER = "<think>secret</think>Look:\n\n```python\nprint(1)\n```\n\n- then\n\n  ~~~\n  two\n  ~~~\n"


def test_copy_takes_the_answer_without_its_reasoning_or_a_block_of_code(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSH_CONNECTION", "1")
    found = talk("hello", "/copy", "/copy 2", "/copy 3", conversation=FakeConversation([ANSWER]))
    copied = [base64.b64decode(text).decode() for text in re.findall("\x1b]52;c;([^\x07]*)\x07", found.shown)]
    assert copied == [ANSWER.removeprefix("<think>secret</think>").strip(), "two\n"]
    assert "block 2 of 2" in found.shown
    assert "error: /copy 3: the last answer has 2 blocks of code" in found.shown
    assert code_blocks("no code") == []


def test_think_show_gives_the_last_reasoning_and_keeps_the_next(talk: Callable[..., Talk]) -> None:
    conversation = FakeConversation(["<think>it is so</think>Yes.", "<think>or not</think>No."])
    found = talk("really?", "/think show", "sure?", "/think hide", "/think", conversation=conversation)
    assert found.shown.index("Yes.") < found.shown.index("it is so") < found.shown.index("or not")
    assert "folded to a line: /think show" in found.shown
    assert not found.chat.view.thinking
    conversation = FakeConversation(["<think>it is so</think>Yes."])
    assert "it is so" in talk("really?", view=View(thinking=True), conversation=conversation).shown


def test_stats_tell_of_the_last_answer(talk: Callable[..., Talk]) -> None:
    shown = talk("hello", "again", "/stats").shown
    assert re.search(r"conversation: 2 turns, context \d+ of 4,096", shown)
    assert re.search(r"last prompt: \d+ tokens, \d+ of them known", shown)


def test_a_temperature_of_zero_is_told_when_the_same_is_asked_again(talk: Callable[..., Talk]) -> None:
    assert "the answer is likely the same" in talk("hello", "/regenerate").shown
    assert "likely" not in talk("/set temperature 1", "hello", "/regenerate").shown


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


def test_nothing_is_called_saved_that_is_not(talk: Callable[..., Talk], tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("no folder")
    for found in (talk("hello"), talk("hello", "/new")):
        assert "cannot be written" in found.shown
        assert not re.search("is saved|Saved", found.shown)
    assert "not saved" in talk("hello").shown


def test_a_session_is_written_anew_where_its_folder_was_removed(talk: Callable[..., Talk], tmp_path: Path) -> None:
    def remove() -> str:
        shutil.rmtree(tmp_path / "sessions")
        return "again"

    found = talk("hello", remove)
    assert "error" not in found.shown
    assert len(list((tmp_path / "sessions").iterdir())) == 1


def test_the_name_of_a_session_is_escaped_once(talk: Callable[..., Talk]) -> None:
    assert "the name 'a\\x1bb\\u202ec' has control" in talk("hello", "/save a\x1bb\u202ec").shown


def test_commands_are_found_by_every_name() -> None:
    assert commands.find("clear") is commands.find("new")
    assert commands.find("quit") is commands.find("exit")
    with pytest.raises(InputError, match="no command /nwe"):
        commands.find("nwe")


def test_the_guide_lists_the_commands_as_help_does() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "chat.md").read_text(encoding="utf-8")
    assert [line for line in guide.splitlines() if line.startswith("| `/")] == [guide_row(c) for c in COMMANDS]


def guide_row(command: Any) -> str:
    usage = f"/{command.name} {command.arguments}".rstrip().replace("|", "\\|")
    also = "".join(f", `/{alias}`" for alias in command.aliases)
    return f"| `{usage}`{also} | {command.help} |"
