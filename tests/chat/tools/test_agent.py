"""A turn with calls: each is shown and asked for, its result goes back to the model, until it calls no more."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.chat.sessions.folder import SessionFolder
from afmoe_mlx.chat.tools import agent
from afmoe_mlx.messages.rounds import NOT_MADE, open_calls
from helpers.fake_engine import FakeConversation
from helpers.talk import Talk
from helpers.toolboxes import called, schema, toolbox

REFUSED = "error: the user does not allow this call"


def results(found: Talk) -> list[str]:
    return [message["content"] for message in found.conversation.messages if message["role"] == "tool"]


def test_a_turn_goes_from_calls_to_results_to_the_next_answer(talk: Callable[..., Talk]) -> None:
    box = toolbox(files=["read", "list"])
    two = "I look. " + called("list") + " and " + called("read", '{"path": "a b"}')
    found = talk("go", conversation=FakeConversation([two, "Done."]), toolbox=box, asked=["o", "once"])
    assert box.client.calls == [("files", "list", {}), ("files", "read", {"path": "a b"})]
    user, asks, first, second, answer = found.conversation.messages
    assert (user["content"], asks["content"], answer["content"]) == ("go", "I look.  and ", "Done.")
    assert asks["written"] == two
    assert [call["id"] for call in asks["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
    assert asks["tool_calls"][1]["function"] == {"name": "read", "arguments": '{"path": "a b"}'}
    assert results(found) == ["list gives {}", 'read gives {"path": "a b"}']
    assert "tool_calls" not in answer
    assert (
        found.shown.index("I look.") < found.shown.index('→ read · files\n  path: "a b"\n') < found.shown.index("Done.")
    )
    assert '  read gives {"path": "a b"}\n\nDone.' in found.shown
    assert "tool_call>" not in found.shown


@pytest.mark.parametrize(
    ("asked", "made", "questions"),
    [
        (["o", "o", "o"], 3, 3),
        (["S"], 3, 1),
        (["n"], 0, 1),
        (["", "o", " never "], 1, 3),
        (["what?", "yes", "o", "s"], 3, 4),
    ],
)
def test_a_call_is_asked_for_once_for_the_session_or_never(
    talk: Callable[..., Talk], asked: list[str], made: int, questions: int
) -> None:
    box = toolbox(files=["read"])
    answers = [called("read"), called("read"), "Fine.", called("read"), "Done."]
    found = talk("go", "again", conversation=FakeConversation(answers), toolbox=box, asked=asked)
    assert len(box.client.calls) == made
    assert len(found.reader.questions) == questions
    assert sum(text.startswith("error: the user does not allow") for text in results(found)) == 3 - made
    assert found.said[-1] == "Done."
    assert found.shown.count("→ read · files") == 3  # whatever stands, each is shown


def test_a_question_given_up_ends_the_turn_and_what_was_not_called_is_told(talk: Callable[..., Talk]) -> None:
    box = toolbox(files=["read"])
    conversation = FakeConversation([called("read") + called("read"), "I see."])
    found = talk("go", "no", conversation=conversation, toolbox=box, asked=["o", None])
    assert len(box.client.calls) == 1
    assert results(found) == ["read gives {}", NOT_MADE]
    assert found.said[-2:] == ["no", "I see."]
    assert "Not run." in found.shown


def test_ctrl_c_stops_the_call_and_not_the_chat(talk: Callable[..., Talk]) -> None:
    def give(name: str, arguments: Any) -> str:
        raise KeyboardInterrupt

    conversation = FakeConversation([called("read") + called("read"), "I see."])
    found = talk("go", "no", conversation=conversation, toolbox=toolbox(give, files=["read"]), asked=["o"])
    assert results(found) == ["error: the user stopped this call", NOT_MADE]
    assert found.said[-1] == "I see."
    stopped = talk(
        "go", conversation=FakeConversation([called("read")]), toolbox=toolbox(give, files=["read"]), asked=["o"]
    )
    assert (stopped.chat.agent.is_stopped, found.chat.agent.is_stopped) == (True, False)


@pytest.mark.parametrize("value", ["9" * 5000, "1e999", '"\\ud800"'], ids=["digits", "infinite", "surrogate"])
def test_arguments_that_cannot_be_sent_are_an_error_for_the_model(talk: Callable[..., Talk], value: str) -> None:
    box = toolbox(files=["read"])
    conversation = FakeConversation([called("read", f'{{"a": {value}}}'), "Sorry."])
    found = talk("go", conversation=conversation, toolbox=box, asked=["o"])
    assert box.client.calls == []
    assert results(found)[0].startswith("error: these arguments cannot be sent: ")
    assert found.said[-1] == "Sorry."


def test_a_malformed_call_goes_back_to_the_model_and_is_never_made(talk: Callable[..., Talk]) -> None:
    box = toolbox(files=["read"])
    found = talk("go", conversation=FakeConversation([called("read", '{"a": 1,,}'), "Sorry."]), toolbox=box)
    assert box.client.calls == found.reader.questions == []
    assert results(found)[0].startswith("error: this call is malformed: ")
    assert "  malformed: " in found.shown
    assert found.said[-1] == "Sorry."


def test_a_server_that_has_ended_is_not_asked_about(talk: Callable[..., Talk]) -> None:
    box = toolbox(files=["read"])
    box.client.servers["files"].trouble = "it has ended"
    found = talk("go", conversation=FakeConversation([called("read"), "Pity."]), toolbox=box)
    assert results(found) == ["error: the server files is not there: it has ended"]
    assert found.reader.questions == []


def test_the_calls_of_an_answer_that_was_stopped_or_cut_off_are_not_made(talk: Callable[..., Talk]) -> None:
    for script, options in (([called("read"), KeyboardInterrupt()], {}), (called("read") + " more", {"max_tokens": 5})):
        box = toolbox(files=["read"])
        conversation = FakeConversation([script], options={"max_tokens": 99, **options})
        found = talk("go", conversation=conversation, toolbox=box)
        assert box.client.calls == open_calls(found.conversation.messages) == []


def test_rounds_without_end_are_ended_in_a_line(talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MOST_ROUNDS", 3)
    box = toolbox(files=["read"])
    found = talk("go", conversation=FakeConversation([called("read")] * 9), toolbox=box, asked=["s"])
    assert len(box.client.calls) == 3
    assert "times tools were called: that is enough." in found.shown


def test_a_result_leaves_half_of_the_free_context(talk: Callable[..., Talk]) -> None:
    box = toolbox(lambda *_: "word " * 100_000, files=["read"])
    conversation = FakeConversation([called("read"), "Long."], context=1000)
    found = talk("go", conversation=conversation, toolbox=box, asked=["o"])
    assert "characters do not fit]" in results(found)[0]
    assert 450 < len(found.conversation.prompts[1]) < 560
    assert found.said[-1] == "Long."
    assert "… 2 more lines · /output" in found.shown


def test_a_round_computes_what_is_new_alone(talk: Callable[..., Talk]) -> None:
    box = toolbox(files=["read"])
    conversation = FakeConversation(["<think>hm</think> I look. " + called("read", '{ "a":1 }'), "Done."])
    talk("go", conversation=conversation, toolbox=box, asked=["o"])
    first, second = conversation.prompts
    answer = conversation.tokenizer.encode(conversation.messages[1]["written"])
    assert second[: len(first) + len(answer)] == first + answer  # as the model wrote it, to a token
    assert conversation.tokens_run == len(second) - len(first) - len(answer)


def test_a_retry_keeps_what_tools_gave_and_calls_nothing_by_itself(talk: Callable[..., Talk]) -> None:
    box = toolbox(files=["read"])
    conversation = FakeConversation([called("read"), "First.", "Second."])
    found = talk("go", "/regenerate", conversation=conversation, toolbox=box, asked=["s"])
    assert len(box.client.calls) == 1
    assert (results(found), found.said[-1]) == (["read gives {}"], "Second.")
    assert "Again, from what the tools gave." in found.shown


def test_a_call_of_a_files_tool_is_shown_and_its_result_asked_for(talk: Callable[..., Talk], tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([schema("weather")]))
    conversation = FakeConversation([called("weather", '{"city": "Zürich"}'), "It rains.", called("weather")])
    found = talk(
        f"/tools {path}", "go", "again", "/tools none", conversation=conversation, asked=["rain\nand wind", None]
    )
    assert found.reader.questions == ["The result of weather:"] * 2
    assert results(found) == ["rain\nand wind"]
    assert '→ weather\n  city: "Zürich"\n' in found.shown
    assert "weather  you give the result  said by the user" in found.shown
    assert [call.name for call in open_calls(found.conversation.messages)] == ["weather"]
    assert conversation.tools == []


def test_a_session_keeps_calls_and_results_and_goes_on_with_them(talk: Callable[..., Talk], tmp_path: Path) -> None:
    box, more = toolbox(files=["read"]), FakeConversation(["Next."])
    first = talk(
        "go", conversation=FakeConversation([f"I look.\n\n{called('read')}", "Done."]), toolbox=box, asked=["o"]
    )
    (info,) = SessionFolder(tmp_path / "sessions").list()
    with SessionFolder(tmp_path / "sessions").open(info.name) as session:
        assert (session.messages, session.warnings) == (first.conversation.messages, [])
    path = tmp_path / "chat.md"
    found = talk(f"/load {info.name}", "more", f"/export {path}", "/output", conversation=more, toolbox=box)
    assert found.conversation.messages[:4] == first.conversation.messages
    assert more.prompts[0][: len(first.conversation.prompts[1])] == first.conversation.prompts[1]
    assert "I look.\n\n→ read\n← read\n  read gives {}\n\nDone." in found.shown
    told = path.read_text()
    assert "I look.\n\nCall of read:\n\n```json\n{}\n```\n\n## Result of read\n\n```\nread gives {}\n```\n" in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/tools", "There are no tools"),
        ("/tools none", "There are no tools"),
        ("/tools nowhere.json", "error: /tools nowhere.json: cannot be read"),
        ("/mcp", "There are no MCP servers"),
        ("/output", "error: there are 0 results"),
        ("/output x", "error: /output counts from the last: expected 1 or more"),
    ],
)
def test_what_is_not_there_is_told_in_a_line(talk: Callable[..., Talk], line: str, words: str) -> None:
    assert words in talk(line).shown


def test_servers_and_what_stands_of_their_tools_are_listed(talk: Callable[..., Talk]) -> None:
    box = toolbox(files=["read", "write"], web=[])
    box.client.servers["web"].trouble = "it has ended"
    conversation = FakeConversation([called("read"), "Done."])
    found = talk("go", "/tools", "/mcp", conversation=conversation, toolbox=box, asked=["s"])
    rows = [" ".join(line.split()) for line in found.shown.splitlines()]
    assert {"read files, session does read", "write files, asks does write"} < {*rows}
    assert {"files 2 tools", "web it has ended"} < {*rows}


def test_nothing_of_calls_and_results_drives_the_terminal(talk: Callable[..., Talk]) -> None:
    evil = "\x1b[2J\x1b]8;;http://evil\x07\u202egnp\x9b31m\rover"
    conversation = FakeConversation([called("read", json.dumps({"a\x1b[2J": evil, "b": f"1\n{evil}"})), "Done."])
    found = talk(
        "go", "/output", conversation=conversation, toolbox=toolbox(lambda *_: evil, files=["read"]), asked=["o"]
    )
    assert not set(found.shown) & set("\x1b\x07\u202e\x9b\r")
    assert r"\x1b[2J\x1b]8;;http://evil\x07\u202egnp\x9b31m\x0dover" in found.shown.replace(r"\r", r"\x0d")
