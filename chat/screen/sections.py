"""The sections of an answer on the screen: reasoning, Markdown, plain lines.

Each takes printable text and gives lines: those `final` since it was last asked, those `live` that may still change,
and at its `end` the rest. Width is in cells, time in seconds of any clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from .status import thought
from .wrap import breaks, wrap

if TYPE_CHECKING:
    from rich.console import Console

DIM = Style(dim=True)
TAB = 4
PEEK_ROWS = 6  # so many rows of a reasoning that is not kept are seen while it comes
SPINNER, FRAME_SECONDS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", 0.1


class MarkdownSection:
    """An answer as Markdown."""

    def __init__(self, console: Console) -> None:
        from .markdown import MarkdownLines
        from .markdown_stream import MarkdownStream

        self._stream, self._lines = MarkdownStream(), MarkdownLines(console)

    def feed(self, text: str) -> None:
        self._stream.feed(text)

    def final(self, width: int) -> list[Text]:
        return self._lines.add(self._stream.advance(), width)

    def live(self, width: int, now: float) -> list[Text]:
        return self._lines.preview(self._stream.preview(), width)

    def end(self, width: int) -> list[Text]:
        return self._lines.add(self._stream.finish(), width)


class PlainSection:
    """Text as it is, in lines that the terminal folds, or `wrapped` ones, each final as soon as it is full."""

    def __init__(self, style: Style | None = None, *, wrapped: bool = False) -> None:
        self._style, self._wrapped = style or Style(), wrapped
        self._text = ""

    def feed(self, text: str) -> None:
        self._text += text

    def final(self, width: int) -> list[Text]:
        *lines, self._text = self._text.split("\n")
        if self._wrapped and (full := breaks(self._text, width)):
            lines.append(self._text[: full[-1]])
            self._text = self._text[full[-1] :]
        return self._shown(lines, width)

    def live(self, width: int, now: float) -> list[Text]:
        return self._shown(self._text.split("\n")[-1:] if self._text else [], width)

    def end(self, width: int) -> list[Text]:
        lines, self._text = self._text.split("\n") if self._text else [], ""
        return self._shown(lines, width)

    def _shown(self, lines: Sequence[str], width: int) -> list[Text]:
        texts = [Text(line.expandtabs(TAB), self._style) for line in lines]
        return [row for text in texts for row in wrap(text, width)] if self._wrapped else texts


class ThinkingSection:
    """A reasoning: its last rows while it comes, and one line with its length when it is done; or all of it, kept.

    tokens: counted by the owner. animated: whether what is drawn can be taken back.
    """

    def __init__(self, started: float, *, shown: bool, animated: bool) -> None:
        self.tokens = 0
        self.stopped = False
        self._started = self._last = started
        self._shown, self._animated = shown, animated
        self._kept, self._peek = PlainSection(DIM, wrapped=animated), ""
        self._is_blank = True

    def feed(self, text: str) -> None:
        if self._is_blank:
            text = text.lstrip()
            self._is_blank = not text
        if self._shown:
            self._kept.feed(text)
        else:
            self._peek += text

    def count(self, now: float) -> None:
        """Another token of the reasoning came."""
        self.tokens += 1
        self._last = now

    def final(self, width: int) -> list[Text]:
        return self._kept.final(width) if self._shown else []

    def live(self, width: int, now: float) -> list[Text]:
        if self._shown:
            return self._kept.live(width, now)
        if not self._animated or self._is_blank:
            return []
        return [spinner(f"thinking, {now - self._started:.0f} s", now), *self._peeked(width)]

    def _peeked(self, width: int) -> list[Text]:
        """The last rows; what lies before them is forgotten, from the start of a row, so that no other row moves."""
        *lines, last = self._peek.split("\n")
        offsets = breaks(last, width)
        if len(offsets) > PEEK_ROWS:
            last = last[offsets[-PEEK_ROWS] :]
        self._peek = "\n".join([*[line for line in lines if line.strip()][-PEEK_ROWS:], last])
        return [row for row in wrap(Text(self._peek, DIM), width) if row][-PEEK_ROWS:]

    def end(self, width: int) -> list[Text]:
        lines = [line for line in self._kept.end(width) if line] if self._shown else []
        if self._is_blank and not self.stopped:
            return lines
        word = thought(self._last - self._started, self.tokens, stopped=self.stopped)
        return [*lines, *wrap(Text(word if self._shown else f"{word} · /think show", DIM), width)]


def spinner(word: str, now: float) -> Text:
    """A sign of life before a word."""
    return Text(f"{SPINNER[int(now / FRAME_SECONDS) % len(SPINNER)]} {word}", DIM)
