"""`AnswerDisplay`: an answer drawn on the terminal while it streams."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from afmoe_mlx.messages import AnswerReader, CallStart, ContentDelta, Delta, ReasoningDelta
from afmoe_mlx.terminal import printable

from .live_region import is_live, region_of
from .sections import DIM, MarkdownSection, PlainSection, ThinkingSection, spinner
from .silence import silent_keyboard
from .status import context_meter, figures, in_lines, reading
from .ticker import Ticker
from .wrap import wrap

if TYPE_CHECKING:
    from afmoe_mlx.generation import GenerationChunk

PATIENCE = 0.4  # seconds of waiting that need no sign of life


class AnswerDisplay:
    """Shows one answer: a sign of life while the prompt is read, the reasoning, the answer, a line of figures.

    Used as a context manager around the answer; `add` takes each chunk's text, then `finish` or `stopped` is called.
    Without either what came is left on the screen. What is printed is never changed again: a block of Markdown is
    drawn anew only while it may still change, at most 15 times a second, by a thread that lives as long as the answer.
    On a dumb terminal, and where stdout is none, the text goes out as it comes, without escapes or Markdown.
    Text from the model is made printable here.

    reader: tells reasoning, answer and calls of tools apart; a call has a sign of life while it is written, what it
    asks for is shown by others. show_thinking: keep the reasoning on the screen; else it is folded to one line with its
    length when it is done. animated: draw by the thread; else by `refresh` alone, for tests.
    """

    def __init__(
        self,
        console: Console,
        reader: AnswerReader,
        *,
        show_thinking: bool = False,
        markdown: bool = True,
        animated: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._reader, self._clock = console, reader, clock
        self._show_thinking = show_thinking
        self._is_live = is_live(console)
        self._markdown = markdown and self._is_live
        self._region = region_of(console)
        self._arrived: deque[tuple[float, str]] = deque()
        self._section: MarkdownSection | PlainSection | ThinkingSection | None = None
        self._calling: str | None = None  # the tool whose call is being written
        self._progress: tuple[int, int] | None = None
        self._started = clock()
        self._first: float | None = None
        self._has_thought = self._ended = False
        self._size = console.size
        self._drawing = threading.RLock()  # held while something is drawn, and while the program is stopped
        self._is_withdrawn = False
        self._ticker = Ticker(self.refresh) if animated and self._is_live else None
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        self._started = self._clock()
        if self._is_live:
            self._resources.enter_context(silent_keyboard(self._withdrawn))
        if self._ticker is not None:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._resources:
            try:
                self._end(["(stopped)"] if kind is KeyboardInterrupt else [], stopped=kind is KeyboardInterrupt)
            finally:
                if kind is not None:
                    self._region.restore()

    @property
    def first_token_seconds(self) -> float | None:
        """From the beginning to the first token; None before it."""
        return None if self._first is None else self._first - self._started

    def progress(self, done: int, total: int) -> None:
        """So many of the prompt's tokens are read; for `on_progress`."""
        self._progress = done, total

    def add(self, text: str) -> None:
        """The text of the next token, which may be empty."""
        now = self._clock()
        if self._first is None:
            self._first = now
        self._arrived.append((now, printable(text)))
        if self._ticker is not None:
            self._ticker.check()
        elif not self._is_live:
            self.refresh()

    def finish(
        self,
        chunk: GenerationChunk | None,
        *,
        experts: str = "",
        context_used: int | None = None,
        context_limit: int | None = None,
    ) -> None:
        """The answer is complete; its last chunk's figures are shown beneath, None if it had no token."""
        meter = context_meter(context_used, context_limit)
        parts = []
        if chunk is not None:
            first = self.first_token_seconds
            parts = figures(chunk, first_token_seconds=first, experts=experts, context=meter)
        self._end(in_lines(parts, self._console.width))

    def stopped(self) -> None:
        """The user has stopped the answer; what came of it stays."""
        self._end(["(stopped)"], stopped=True)

    def refresh(self) -> None:
        """Draw what has changed."""
        with self._drawing:
            self._refresh()

    @contextmanager
    def _withdrawn(self) -> Generator[None, None, None]:
        """What may still change is off the screen; after the block it is drawn anew, wherever the cursor is then."""
        with self._drawing:
            if not self._ended:
                self._region.update([], [])
                self._is_withdrawn = True
            yield

    def _refresh(self) -> None:
        size, answering = self._console.size, isinstance(self._section, MarkdownSection | PlainSection)
        is_still = answering and self._calling is None
        if is_still and not self._arrived and size == self._size and not self._is_withdrawn:
            return
        self._is_withdrawn = False
        self._size, now = size, self._clock()
        final = self._take(size.width)
        live = [spinner(f"calling {self._calling}", now)] if self._is_live and self._calling is not None else []
        if self._section is None:
            self._region.update(final, live or self._waiting(now))
            return
        final += self._section.final(size.width)
        self._region.update(final, [*self._section.live(size.width, now), *live])

    def _take(self, width: int) -> list[Text]:
        """Hand what arrived to its section; the last lines of a section that ended by it."""
        lines: list[Text] = []
        while self._arrived:
            at, text = self._arrived.popleft()
            lines += self._hand(self._reader.feed(text), at, width)
            if self._reader.is_reasoning:
                self._thinking(at).count(at)
            else:
                lines += self._end_thinking(width)
        return lines

    def _hand(self, deltas: Sequence[Delta], at: float, width: int) -> list[Text]:
        lines: list[Text] = []
        for delta in deltas:
            match delta:
                case ReasoningDelta(text):
                    self._thinking(at).feed(text)
                case CallStart(_, name):
                    lines += self._end_thinking(width)
                    self._calling = printable(name)
                case ContentDelta(text) if text.strip() or self._calling is None:
                    lines += self._end_thinking(width)
                    self._calling = None
                    self._answering(lines).feed(text)
        return lines

    def _answering(self, lines: list[Text]) -> MarkdownSection | PlainSection:
        if self._section is None or isinstance(self._section, ThinkingSection):
            self._section = MarkdownSection(self._console) if self._markdown else PlainSection()
            lines += [Text()] * self._has_thought
        return self._section

    def _end_thinking(self, width: int) -> list[Text]:
        return self._end_section(width) if isinstance(self._section, ThinkingSection) else []

    def _thinking(self, at: float) -> ThinkingSection:
        if not isinstance(self._section, ThinkingSection):
            self._section = ThinkingSection(at, shown=self._show_thinking, animated=self._is_live)
        return self._section

    def _end_section(self, width: int) -> list[Text]:
        section, self._section = self._section, None
        lines = section.end(width) if section is not None else []
        self._has_thought = bool(lines) and isinstance(section, ThinkingSection)
        return lines

    def _waiting(self, now: float) -> list[Text]:
        """A sign of life before the first token, once it is waited for."""
        if not self._is_live or self._first is not None or now - self._started < PATIENCE:
            return []
        return [spinner(reading(*self._progress) if self._progress else "reading", now)]

    def _end(self, words: Sequence[str], *, stopped: bool = False) -> None:
        if self._ended:
            return
        self._ended = True
        if self._ticker is not None:
            self._ticker.stop()
        width, now = self._console.width, self._clock()
        lines = self._take(width) + self._hand(self._reader.finish(), now, width)
        if isinstance(self._section, ThinkingSection) and stopped:
            self._section.stopped = True
            words = []  # its own last line says so
        lines += self._end_section(width)
        self._region.print([*lines, *(row for word in words for row in wrap(Text(word, DIM), width))])
