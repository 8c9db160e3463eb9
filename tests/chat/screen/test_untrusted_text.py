"""What a model writes is shown, aligned and never obeyed."""

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from afmoe_mlx import load
from afmoe_mlx.chat.conversation.conversation import Conversation
from afmoe_mlx.chat.screen.markdown import markdown_lines
from helpers.answers import show
from helpers.markdown_texts import HOSTILE
from helpers.screens import Screen
from helpers.tiny import tiny_folder
from helpers.tiny_tokenizers import rename_special

WAYS = [
    "{}",
    "# {}",
    "- {}",
    "> {}",
    "```{}\n{}\n```",
    "    {}",
    "| {} |\n|---|\n| {} |",
    "**{}**",
    "`{}`",
]


THINKING = "<think>{}"


@pytest.mark.parametrize(
    ("way", "show_thinking", "markdown"),
    [
        *((way, False, True) for way in WAYS),
        ("{}", False, False),  # what stands around it is text like any other
        *((THINKING, shown, markdown) for shown in (False, True) for markdown in (False, True)),
    ],
)
def test_what_a_model_writes_is_shown_and_never_obeyed(way: str, show_thinking: bool, markdown: bool) -> None:
    for text in HOSTILE:
        screen = Screen()
        whole = way.replace("{}", text)
        pieces = [whole[i : i + 5] for i in range(0, len(whole), 5)]
        show(screen, pieces, show_thinking=show_thinking, markdown=markdown)
        assert screen.foreign() == ""
        assert "\x1b]" not in screen.written
        assert "\u202e" not in screen.written
        if markdown and "[bold]" in text and way != THINKING:
            assert "[bold]bold[/bold]" in "".join(screen.rows)


def test_a_special_token_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    """Its text comes from a file of the model's, and reaches the answer."""
    token = "<|\x1b]0;title\x07\x1b[2J\u202e|>"
    model, tokenizer = load(rename_special(tiny_folder(tmp_path / "m"), "<|im_start|>", token))
    options = {"max_tokens": 3, "logit_bias": {tokenizer.token_to_id(token): 1000.0}}
    conversation = Conversation(model, tokenizer, options=options)
    pieces = [chunk.text for chunk in conversation.reply("hello")]
    assert "".join(pieces) == token * 3
    for markdown in (True, False):
        screen = Screen()
        show(screen, pieces, markdown=markdown)
        assert screen.foreign() == ""
        assert "\\x1b]0;title" in "".join(screen.rows)


def test_a_link_is_shown_with_its_target() -> None:
    screen = Screen()
    show(screen, ["[my bank](https://evil.example) <https://example.org> [https://a.example](https://b.example)"])
    assert screen.rows == [
        "my bank (https://evil.example) https://example.org https://a.example",
        "(https://b.example)",
    ]
    assert "\x1b]8" not in screen.written


def test_wide_characters_align() -> None:
    console = Console(file=io.StringIO(), width=60)
    table = "| 名前 | b | c |\n|---|---|---|\n| 日本 | 1 | x |\n| a | 22 | x |\n| 👩‍👩‍👧 | 3 | x |\n| ❤️ | 4 | x |\n"
    rows = [line.plain for line in markdown_lines(table, console, 60)]
    columns = {cell_len(row[: row.rindex(" ") + 1]) for row in rows if row.endswith("x")}
    assert len(columns) == 1


def test_chinese_is_broken_between_characters_and_not_before_a_comma() -> None:
    console = Console(file=io.StringIO(), width=11)
    assert [line.plain for line in markdown_lines("在 Python 中我们，可以", console, 11)] == [
        "在 Python",
        "中我们，可",
        "以",
    ]


def test_a_tab_in_code_reaches_its_column() -> None:
    screen = Screen()
    show(screen, ["```make\nall:\n\tcc a.c\n  \tx\n```"])
    assert screen.rows[1:4] == ["all:", "    cc a.c", "    x"]


def test_html_is_shown_as_text() -> None:
    screen = Screen()
    show(screen, ["<div onclick='x'>\n\na <b>c</b> <!-- d --> &lt;"])
    assert screen.rows == ["<div onclick='x'>", "", "a <b>c</b> <!-- d --> <"]
