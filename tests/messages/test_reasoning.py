"""Reasoning is told apart from the answer wherever its tags are cut."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.messages.reasoning import (
    Part,
    ThinkingSplitter,
    closed,
    closing_of,
    fields,
    is_open,
    opened_by,
    opened_thinking,
    reasoning_field,
    split_thinking,
)
from afmoe_mlx.tokenizer import Tokenizer
from helpers.chat_templates import CHATML, LFM2
from helpers.markdown_texts import cuts, split
from helpers.tiny_tokenizers import save

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
    ("prompt", "opened"),
    [
        ("<|im_start|><think>\n", "<think>\n"),
        ("the world " * 30 + "<think>", "<think>"),
        ("<|im_start|>", ""),
        ("<think>\n\n</think>\n\n", ""),
        ("<think>why", ""),
    ],
)
def test_a_template_that_opens_the_reasoning_is_known_by_its_prompt(tmp_path: Path, prompt: str, opened: str) -> None:
    assert opened_thinking(prompt) == opened
    tokenizer = Tokenizer.from_folder(save(tmp_path / "m"))
    assert opened_by(tokenizer, tokenizer.encode(prompt)) == opened


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


@pytest.mark.parametrize(
    "beginning", ["", "<think>", " <think>\nwhy", "<think>a</think>", "<think>a</think>yes", "yes", "no <think>"]
)
@given(text=st.lists(pieces, max_size=8).map("".join))
def test_what_follows_a_beginning_parts_as_the_rest_of_the_whole(beginning: str, text: str) -> None:
    splitter, whole = ThinkingSplitter.after(beginning), ThinkingSplitter()
    whole.feed(beginning)
    assert [*splitter.feed(text), *splitter.finish()] == [*whole.feed(text), *whole.finish()]


def test_an_answer_that_is_to_begin_with_part_of_a_tag_has_no_reasoning() -> None:
    splitter = ThinkingSplitter.after("<")
    assert [*splitter.feed("think>"), *splitter.finish()] == [Part("answer", "think>")]


@given(text=st.lists(pieces, max_size=12).map("".join))
def test_a_message_is_closed_once_and_by_its_end_alone(text: str) -> None:
    whole = closed(text)
    assert whole.startswith(text)
    assert not is_open(whole)
    assert closed(whole) == whole
    assert (whole == text) is not is_open(text)


@given(thought=st.lists(pieces, max_size=8).map("".join), cut=st.integers(0, 8))
def test_a_reasoning_cut_anywhere_is_closed_by_one_whole_tag(thought: str, cut: int) -> None:
    thought = thought.replace("</think>", "")
    tag = "</think>"[:cut] if cut < 8 else ""
    whole = f"<think>{thought}{tag}"
    added = closing_of(whole)
    assert f"{whole}{added}".endswith("</think>\n\n")
    assert split_thinking(whole + added)[1] == ""
    assert added.count("<") <= 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("yes", {"content": "yes"}),
        ("\nyes", {"content": "\nyes"}),
        ("<think>\nwhy\n</think>\n\nyes", {"reasoning_content": "why", "content": "yes"}),
        ("<think>\n\n</think>\n\nyes", {"reasoning_content": "", "content": "yes"}),
        ("why</think>yes", {"reasoning_content": "why", "content": "yes"}),
        ("<think>\nwhy\nso</thi", {"reasoning_content": "why\nso", "content": ""}),
        ("<think>", {"reasoning_content": "", "content": ""}),
        ("the tag <think> opens", {"content": "the tag <think> opens"}),
    ],
)
def test_a_message_in_fields_is_as_transformers_hands_it_over(content: str, expected: dict[str, str]) -> None:
    assert fields(content) == expected


@pytest.mark.parametrize(
    ("template", "reads"),
    [
        (CHATML, "reasoning_content"),
        (LFM2, None),
        ("{{ message['reasoning_content'] }}", "reasoning_content"),
        ("{{ message.thinking or message.reasoning_content }}", "reasoning_content"),
        ('{{ message.get("thinking") }}', "thinking"),
        ("{% if 'reasoning' in message %}", "reasoning"),
        ("{% if enable_thinking %}{{ m.content.split('</think>')[-1] }}", None),
        ("{% if thinking and not preserve_thinking %}<think>{% endif %}", None),
        ("Put your reasoning between <thinking> and </thinking>.", None),
    ],
)
def test_a_template_is_known_to_read_reasoning_by_the_field_it_names(template: str, reads: str | None) -> None:
    assert reasoning_field(template) == reads
