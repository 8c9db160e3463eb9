"""An answer as it is printed: its parts where they belong, nothing that drives a terminal, and how it ended."""

import io
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.command_line.answer import Answer, AnswerPrinter, cut_off, receive
from afmoe_mlx.messages import AnswerReader, ContentDelta, ReasoningDelta
from helpers.fake_engine import FakeTokenizer, chunk

SET = {"max_tokens": "-m", "reasoning_budget": "-r"}


def answer_after(beginning: str) -> Answer:
    tokenizer: Any = FakeTokenizer()
    return Answer(AnswerReader(tokenizer, (), beginning=beginning))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, pieces: list[str], *, beginning: str = "") -> tuple[str, str]:
    """What stands on stdout and stderr, both terminals, once these pieces have come."""
    out, err = Terminal(), Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.delenv("NO_COLOR", raising=False)
        receive(answer_after(beginning), (chunk(piece, i) for i, piece in enumerate(pieces, 1)), AnswerPrinter())
    return out.getvalue(), err.getvalue()


def test_reasoning_is_dim_on_lines_of_its_own_and_the_answer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    dim = "\x1b[2m{}\x1b[0m".format
    assert printed(monkeypatch, ["yes", "."]) == ("yes.\n", "")
    assert printed(monkeypatch, ["<think>\n", "why", "</th", "ink>\n", "\nyes"]) == (
        "yes\n",
        dim("why") + dim("\n"),
    )
    assert printed(monkeypatch, ["why\n", "</think>yes"], beginning="<think>\n") == ("yes\n", dim("why\n"))
    assert printed(monkeypatch, ["wh", "y"], beginning="<think>\n") == ("\n", dim("wh") + dim("y") + dim("\n"))


def test_nothing_in_either_part_drives_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = printed(monkeypatch, ["<think>\x1b[2J\x07", "</think>", "\x1b]0;x\x07"])
    assert "\x1b" not in out
    assert err.replace("\x1b[2m", "").replace("\x1b[0m", "") == "\\x1b[2J\\x07\n"


def test_nothing_in_a_call_drives_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = FakeTokenizer()
    text = '<tool_call>{"name": "\\u001b[2J", "arguments": {"a": "\x1b]0;x\x07"}}</tool_call><tool_call>{"name": "f"}'
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    receive(Answer(AnswerReader(tokenizer, tool_format="hermes")), [chunk(text, 1)], AnswerPrinter())
    first, second, end = out.getvalue().split("\n")
    assert first.startswith('\\x1b[2J({"a": "\\x1b]0;x\\x07"}})  # malformed: expected the end of a string')
    assert (second, end) == ("f({})", "")


pieces = st.lists(st.sampled_from(["<think>", "</think>", "</th", "\n", "a", "<"]), max_size=8)


@given(pieces=pieces)
def test_all_that_was_written_is_in_one_part_or_a_tag(pieces: list[str]) -> None:
    answer = answer_after("")
    shown = [part for i, piece in enumerate(pieces, 1) for part in answer.add(chunk(piece, i))] + answer.end()
    assert answer.text == "".join(pieces)
    assert answer.reasoning == "".join(part.text for part in shown if isinstance(part, ReasoningDelta))
    assert answer.content == "".join(part.text for part in shown if isinstance(part, ContentDelta))
    written = answer.text.replace("\n", "")
    if written.startswith("<think>"):
        thought, tag, content = written.removeprefix("<think>").partition("</think>")
        assert (answer.reasoning.replace("\n", ""), answer.content.replace("\n", "")) == (thought, content)
        assert answer.is_reasoning is not bool(tag)
    else:
        assert (answer.content, answer.is_reasoning) == (answer.text, False)


def test_ctrl_c_keeps_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted():
        yield chunk("<think>why</th", 1)
        raise KeyboardInterrupt

    answer = answer_after("")
    receive(answer, interrupted(), None)
    assert (answer.finish_reason, answer.reasoning, answer.is_reasoning) == ("interrupted", "why</th", True)


def test_only_an_answer_that_a_limit_has_ended_is_cut_off() -> None:
    assert cut_off(chunk("x", 5, "stop"), context=15, is_reasoning=False, **SET) is None
    assert cut_off(chunk("x", 5), context=4096, is_reasoning=True, **SET) is None
    found = cut_off(chunk("x", 5, "length"), context=15, is_reasoning=False, **SET)
    assert found == "The answer is cut off: the context of 15 tokens is full."
    found = cut_off(chunk("x", 1, "length"), context=4096, is_reasoning=True, **SET)
    assert (
        found == "The answer is cut off in its reasoning after 1 token: -m allows more, -r ends the reasoning sooner."
    )
