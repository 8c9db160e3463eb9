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

from afmoe_mlx.messages.reasoning import Part, ThinkingSplitter
from afmoe_mlx.terminal import printable

from .live_region import is_live, region_of
from .sections import DIM, MarkdownSection, PlainSection, ThinkingSection, spinner
from .silence import silent_keyboard
from .status import context_meter, figures, in_lines, reading
from .wrap import wrap

if TYPE_CHECKING:
    from afmoe_mlx.generation import GenerationChunk

FRAME = 1 / 15  # seconds between two drawings
MOST_WORK = 0.25  # of the time may go into drawing, however long the tail of an answer is
PATIENCE = 0.4  # seconds of waiting that need no sign of life


class AnswerDisplay:
    """Shows one answer: a sign of life while the prompt is read, the reasoning, the answer, a line of figures.

    Used as a context manager around the answer; `add` takes each chunk's text, then `finish` or `stopped` is called.
    Without either what came is left on the screen. What is printed is never changed again: a block of Markdown is
    drawn anew only while it may still change, at most 15 times a second, by a thread that lives as long as the answer.
    On a dumb terminal, and where stdout is none, the text goes out as it comes, without escapes or Markdown.
    Text from the model is made printable here.

    show_thinking: keep the reasoning on the screen; else it is folded to one line with its length when it is done.
    thinking: the prompt has opened the reasoning (`opens_thinking`). animated: draw by the thread; else by `refresh`
    alone, for tests.
    """

    def __init__(
        self,
        console: Console,
        *,
        show_thinking: bool = False,
        markdown: bool = True,
        thinking: bool = False,
        animated: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._clock = console, clock
        self._show_thinking = show_thinking
        self._is_live = is_live(console)
        self._markdown = markdown and self._is_live
        self._region = region_of(console)
        self._splitter = ThinkingSplitter(inside=thinking)
        self._arrived: deque[tuple[float, str]] = deque()
        self._section: MarkdownSection | PlainSection | ThinkingSection | None = None
        self._progress: tuple[int, int] | None = None
        self._started = clock()
        self._first: float | None = None
        self._has_thought = self._ended = False
        self._size = console.size
        self._drawing = threading.RLock()  # held while something is drawn, and while the program is stopped
        self._is_withdrawn = False
        self._ticker = _Ticker(self.refresh) if animated and self._is_live else None
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
        self, chunk: GenerationChunk | None, *, context_used: int | None = None, context_limit: int | None = None
    ) -> None:
        """The answer is complete; its last chunk's figures are shown beneath, None if it had no token."""
        meter = context_meter(context_used, context_limit)
        parts = [] if chunk is None else figures(chunk, first_token_seconds=self.first_token_seconds, context=meter)
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
        if answering and not self._arrived and size == self._size and not self._is_withdrawn:
            return
        self._is_withdrawn = False
        self._size, now = size, self._clock()
        final = self._take(size.width)
        if self._section is None:
            self._region.update(final, self._waiting(now))
            return
        final += self._section.final(size.width)
        self._region.update(final, self._section.live(size.width, now))

    def _take(self, width: int) -> list[Text]:
        """Hand what arrived to its section; the last lines of a section that ended by it."""
        lines: list[Text] = []
        while self._arrived:
            at, text = self._arrived.popleft()
            lines += self._hand(self._splitter.feed(text), at, width)
            if self._splitter.thinking:
                self._thinking(at).count(at)
            elif isinstance(self._section, ThinkingSection):
                lines += self._end_section(width)
        return lines

    def _hand(self, parts: Sequence[Part], at: float, width: int) -> list[Text]:
        lines: list[Text] = []
        for part in parts:
            if part.kind == "thinking":
                self._thinking(at).feed(part.text)
                continue
            if isinstance(self._section, ThinkingSection):
                lines += self._end_section(width)
            if self._section is None:
                self._section = MarkdownSection(self._console) if self._markdown else PlainSection()
                lines += [Text()] * self._has_thought
            self._section.feed(part.text)
        return lines

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
        lines = self._take(width) + self._hand(self._splitter.finish(), now, width)
        if isinstance(self._section, ThinkingSection) and stopped:
            self._section.stopped = True
            words = []  # its own last line says so
        lines += self._end_section(width)
        self._region.print([*lines, *(row for word in words for row in wrap(Text(word, DIM), width))])


class _Ticker:
    """Calls `draw` again and again in a thread, the more seldom the longer it takes."""

    def __init__(self, draw: Callable[[], None]) -> None:
        self._draw = draw
        self._error: Exception | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait for the drawing under way, then there is no other."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raise here what went wrong in the thread."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        pause = FRAME
        while not self._done.wait(pause):
            begun = time.monotonic()
            try:
                self._draw()
            except Exception as error:
                self._error = error
                return
            pause = max(FRAME, (time.monotonic() - begun) / MOST_WORK)
