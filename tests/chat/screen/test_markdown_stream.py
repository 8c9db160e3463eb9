"""Markdown as it comes: what is given as final is what the whole text gives, and only the tail is read again."""

from typing import Any

import pytest
from hypothesis import example, given, settings

from afmoe_mlx.chat.screen.markdown_pieces import Piece, document
from afmoe_mlx.chat.screen.markdown_stream import HELD_LINES, MarkdownStream
from helpers.markdown_texts import cuts, split, texts


def streamed(parts: list[str], *, peek: bool = False) -> list[Piece]:
    stream = MarkdownStream()
    pieces: list[Piece] = []
    for part in parts:
        stream.feed(part)
        pieces += stream.advance()
        if peek:
            stream.preview()
    return pieces + stream.finish()


def comparable(pieces: list[Piece]) -> list[Any]:
    """Pieces without where their tokens stood, the lines of a block of code together."""
    found: list[Any] = []
    for piece in pieces:
        # whether the list around is loose, which paragraphs carry as "hidden", shows in `spaced` alone
        own_level = piece.tokens[0].level if piece.tokens else 0
        tokens = [
            (
                token.type,
                token.content,
                token.markup,
                token.attrs,
                token.nesting,
                token.hidden and token.level > own_level,
            )
            for token in piece.tokens
        ]
        entry = (piece.kind, tokens, piece.text, piece.spaced, piece.marker)
        if piece.kind == "code" and found and found[-1][0] == "code":
            entry = ("code", [], found[-1][2] + piece.text, False, piece.marker)
            found.pop()
        found.append(entry)
    return found


@settings(deadline=None, max_examples=150)
@given(text=texts, places=cuts)
@example(text="a\n#\n", places=[3])
def test_pieces_of_a_text_cut_anywhere_are_those_of_the_whole(text: str, places: list[int]) -> None:
    assert comparable(streamed(split(text, places))) == comparable(document(text))


@settings(deadline=None, max_examples=60)
@given(text=texts)
def test_a_preview_changes_nothing(text: str) -> None:
    assert comparable(streamed(list(text), peek=True)) == comparable(document(text))


def test_only_the_tail_is_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = MarkdownStream()
    parsed: list[int] = []
    parse = stream._parser.parse

    def counted(text: str, *rest: Any) -> Any:
        parsed.append(len(text))
        return parse(text, *rest)

    monkeypatch.setattr(stream._parser, "parse", counted)
    text = (
        "A paragraph of some words.\n\n- an item\n- another\n\n1. step\n\n   ```sh\n" + "   make\n" * 50 + "   ```\n\n"
        "   and more\n2. step\n\n# Heading\n\n> quote\n\n```python\n" + "x = 1\n" * 50 + "```\n\n"
    )
    for part in split(text * 20, list(range(0, len(text) * 20, 7))):
        stream.feed(part)
        stream.advance()
        stream.preview()
    assert len(text) * 20 > 10_000
    assert max(parsed) < 150


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("a paragraph\n", 0),
        ("a paragraph\n\n", 1),
        ("# heading\n", 1),
        ("- a\n- b\n", 1),
        ("- a\n\n", 1),
        ("1. a\n\n   b\n\n   c\n", 2),
        ("```\n", 1),
        ("```\n" + "x\n" * HELD_LINES, 1),
        ("```\n" + "x\n" * (HELD_LINES + 1), 2),
        ("```\nx\n```\n", 3),
        ("- ```\n  x\n  ```\n", 3),
        ("| a |\n|---|\n| b |\n", 0),
        ("| a |\n|---|\n| b |\n\n", 1),
        ("> a\n\n", 1),
    ],
)
def test_what_no_further_text_can_change_is_given_at_once(text: str, given: int) -> None:
    stream = MarkdownStream()
    stream.feed(text)
    assert len(stream.advance()) == given


def test_items_keep_their_numbers_and_their_distance() -> None:
    text = "3. a\n\n   b\n\n9. c\n9. d\n\n1) e\n"
    pieces = streamed(list(text))
    assert [(piece.marker, piece.spaced) for piece in pieces] == [
        ("3. ", True),
        ("   ", True),
        ("4. ", True),
        ("5. ", False),
        ("1) ", True),
    ]
