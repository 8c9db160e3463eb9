"""Reasoning is told apart from the answer wherever its tags are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.messages.reasoning import ThinkingSplitter, opens_thinking, split_thinking
from helpers.markdown_texts import cuts, split

CASES = [
    ("an answer", False, "", "an answer"),
    ("<think>why</think>because", False, "why", "because"),
    (" \n<think>\nwhy\n</think>\n\n because", False, "\nwhy\n", " because"),
    ("why</think>because", True, "why", "because"),
    ("<think>never ends", False, "never ends", ""),
    ("never ends</thin", True, "never ends</thin", ""),
    ("<think></think>", False, "", ""),
    ("<thin", False, "", "<thin"),
    ("use <think> and </think>", False, "", "use <think> and </think>"),
    ("<think>a<think>b</think>c</think>d", False, "a<think>b", "c</think>d"),
    ("<think>a</thing></think>b", False, "a</thing>", "b"),
    ("", True, "", ""),
]


def parts(texts: list[str], *, inside: bool) -> tuple[str, str]:
    splitter = ThinkingSplitter(inside=inside)
    found = [part for text in texts for part in splitter.feed(text)] + splitter.finish()
    assert all(part.text for part in found)
    thought, answer = ("".join(part.text for part in found if part.kind == kind) for kind in ("thinking", "answer"))
    return thought, answer


@pytest.mark.parametrize(("text", "inside", "thought", "answer"), CASES)
def test_the_tags_part_a_text(text: str, inside: bool, thought: str, answer: str) -> None:
    assert parts([text], inside=inside) == (thought, answer)
    assert parts(list(text), inside=inside) == (thought, answer)


pieces = st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", "\n", " ", "a", "<"])


@given(text=st.lists(pieces, max_size=12).map("".join), places=cuts, inside=st.booleans())
def test_a_text_cut_anywhere_parts_the_same(text: str, places: list[int], inside: bool) -> None:
    assert parts(split(text, places), inside=inside) == parts([text], inside=inside)


def test_what_is_certain_is_given_at_once() -> None:
    splitter = ThinkingSplitter()
    assert [part.text for part in splitter.feed("<think>one <two </")] == ["one <two "]
    assert splitter.thinking
    assert [part.text for part in splitter.feed("b")] == ["</b"]
    assert [part.text for part in splitter.feed("</think>yes")] == ["yes"]
    assert not splitter.thinking


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [("<|assistant|><think>\n", True), ("<|assistant|>", False), ("<think>\n\n</think>\n\n", False)],
)
def test_a_template_that_opens_the_reasoning_is_known_by_its_prompt(prompt: str, opens: bool) -> None:
    assert opens_thinking(prompt) is opens


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("yes", ("", "yes")),
        ("<think>why</think>yes", ("why", "yes")),
        ("why</think>yes", ("why", "yes")),
        ("<think>why", ("why", "")),
    ],
)
def test_a_whole_message_is_parted_too_if_the_template_wrote_the_first_tag(
    content: str, expected: tuple[str, str]
) -> None:
    assert split_thinking(content) == expected
