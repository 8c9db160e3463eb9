"""A terminal for tests: pyte's screen behind a Rich console, with all that was written and all that scrolled away."""

import re
from typing import Any

import pyte
from rich.console import Console

# All that the display itself may write beside text; whatever else begins with ESC came from somewhere else.
OWN_SEQUENCES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?(?:2026|25|7)[hl]|\x1b\[[JK]|\x1b\[\d*[AB]|\x1b[78]")


class Screen:
    """Write to `console`; read `rows`. `reflows`: wraps its rows anew when it becomes narrower,
    as most terminals do (characters are taken to be one cell wide then)."""

    encoding = "utf-8"

    def __init__(self, width: int = 80, height: int = 24, *, reflows: bool = False, **options: Any) -> None:
        self.written = ""
        self.reflows = reflows
        self._screen = pyte.HistoryScreen(width, height, history=100_000)
        self._stream = pyte.Stream(self._screen)
        settings = {"force_terminal": True, "color_system": "standard", "highlight": False} | options
        self.console = Console(file=self, width=width, height=height, **settings)  # type: ignore[arg-type]

    def write(self, text: str) -> int:
        self.written += text
        self._stream.feed(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    @property
    def gone(self) -> list[str]:
        """The rows that scrolled away."""
        return [self._text(line) for line in self._screen.history.top]

    @property
    def visible(self) -> list[str]:
        return [row.rstrip() for row in self._screen.display]

    @property
    def rows(self) -> list[str]:
        """All rows, without the empty ones at the end."""
        rows = self.gone + self.visible
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def is_at_rest(self) -> bool:
        """Whether the cursor is seen and lines are wrapped, as the display found the terminal."""
        return not self._screen.cursor.hidden and pyte.modes.DECAWM in self._screen.mode

    @property
    def cursor(self) -> tuple[int, int]:
        return self._screen.cursor.y, self._screen.cursor.x

    def foreign(self) -> str:
        """The control characters that were written and are not the display's own."""
        return "".join(c for c in OWN_SEQUENCES.sub("", self.written) if not c.isprintable() and c not in "\r\n")

    def resize(self, width: int, height: int) -> None:
        """Change the size as a user does: rows that no longer fit scroll away, or are cut where too wide."""
        rows = self.visible[: self._screen.cursor.y + 1]
        if self.reflows:
            rows = [row[i : i + width] for row in rows for i in range(0, max(1, len(row)), width)]
        self._screen.resize(height, width)
        self._stream.feed("\x1b[H\x1b[J" + "\r\n".join(row[:width] for row in rows))
        self.console.size = (width, height)  # type: ignore[assignment]

    def _text(self, line: Any) -> str:
        return "".join(line[column].data for column in range(self._screen.columns)).rstrip()
