"""The chat's loop: what is answered, what is saved when, and a context that is full."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from afmoe_mlx.chat.conversation.context import turns_to_drop
from afmoe_mlx.chat.sessions.folder import SessionFolder
from helpers.fake_engine import FakeConversation
from helpers.talk import Talk


def test_an_interrupted_answer_keeps_what_came_and_the_chat_goes_on(talk: Callable[..., Talk]) -> None:
    found = talk("one", "two", conversation=FakeConversation([["par", "tial", KeyboardInterrupt()], "whole"]))
    assert found.said == ["one", "partial", "two", "whole"]
    assert found.conversation.messages[1]["stopped"] is True
    assert "(stopped)" in found.shown
    none = talk("one", conversation=FakeConversation([[KeyboardInterrupt()]]))
    assert none.said == []
    assert "not kept" in none.shown


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


@pytest.mark.parametrize(
    ("answer", "context", "words"),
    [
        ("one two three", 4096, "The answer is cut off after 3 tokens: /set max_tokens N allows more."),
        (
            "<think>one two three",
            4096,
            "cut off in its reasoning after 3 tokens: /set max_tokens N allows more, /set reasoning_budget N ends the",
        ),
        ("one two three", 11, "the context of 11 tokens is full. Before the next one you are asked whether to drop"),
    ],
)
def test_an_answer_that_a_limit_has_ended_says_so_in_a_line_and_in_its_session(
    talk: Callable[..., Talk], tmp_path: Path, answer: str, context: int, words: str
) -> None:
    most = 3 if context > 11 else 100
    found = talk("hello", conversation=FakeConversation([answer], context=context, options={"max_tokens": most}))
    assert [line for line in found.shown.splitlines() if words in line]
    assert found.shown.count("cut off") == 1
    assert found.conversation.messages[-1]["cut_off"] is True
    (info,) = SessionFolder(tmp_path / "sessions").list()
    with SessionFolder(tmp_path / "sessions").open(info.name) as session:
        assert session.messages == found.conversation.messages
    whole = talk("hello", conversation=FakeConversation(["one"]))
    assert "cut off" not in whole.shown
    assert whole.conversation.messages[-1].keys() == {"role", "content"}


def test_a_budget_is_set_and_kept_with_the_session(talk: Callable[..., Talk], tmp_path: Path) -> None:
    found = talk("/set reasoning-budget 300", "hello", "/set")
    assert "reasoning_budget is 300 (set)" in found.shown
    assert found.conversation.options["reasoning_budget"] == 300
    (info,) = SessionFolder(tmp_path / "sessions").list()
    with SessionFolder(tmp_path / "sessions").open(info.name) as session:
        assert session.settings["reasoning_budget"] == 300


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


def test_a_chat_that_cannot_be_saved_says_so_once_and_goes_on(talk: Callable[..., Talk], tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("in the way")
    found = talk("one", "two")
    assert found.said == ["one", "first answer", "two", "second answer"]
    assert found.shown.count("error:") == 1
