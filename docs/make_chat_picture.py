"""Draws docs/chat*.svg: the real program with the built-in demo, in a pseudo-terminal.

`python docs/make_chat_picture.py`, with the extra `dev`.
"""

import io
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from helpers.pseudo_terminal import ENTER, PseudoTerminal  # noqa: E402

WIDTH, HEIGHT = 96, 26
QUESTIONS = ("What is AFMoE?", "whats a router", "how big is trinity mini?", "and how do i convert it?")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with PseudoTerminal(home, "--temp", "0", columns=WIDTH, rows=HEIGHT) as terminal:
            terminal.wait_for_prompt()
            for question in QUESTIONS:
                terminal.ask(question)
            draw(terminal, "chat")
            terminal.type("/exit" + ENTER)
            terminal.end()
        with PseudoTerminal(home, "--resume", columns=WIDTH, rows=HEIGHT) as terminal:
            terminal.wait_for_prompt()
            terminal.say("/undo", "taken back")
            terminal.say("/set temp 0.2", "temperature is")
            terminal.say("/save trinity", "Saved as")
            terminal.type("/s")
            terminal.wait_for("/stats +show figures")
            draw(terminal, "chat-commands")


def draw(terminal: PseudoTerminal, name: str) -> None:
    """Write what the screen shows to docs/`name`.svg."""
    rows = [text_of(terminal.screen.buffer[y], terminal.screen.columns) for y in range(terminal.screen.lines)]
    while rows and not rows[-1].plain.strip():
        rows.pop()
    picture = Console(record=True, file=io.StringIO(), width=WIDTH + 2)  # fonts differ in width
    for row in rows:
        picture.print(row, no_wrap=True)
    (DOCS / f"{name}.svg").write_text(picture.export_svg(title="afmoe-mlx chat"), encoding="utf-8")


def text_of(row: Any, columns: int) -> Text:
    """A row of pyte's screen with its colours."""
    text = Text()
    for style, cells in groupby((row[x] for x in range(columns)), key=style_of):
        text.append("".join(cell.data for cell in cells), style)
    text.rstrip()
    return text


def style_of(cell: Any) -> Style:
    return Style(color=color_of(cell.fg), bgcolor=color_of(cell.bg), bold=cell.bold, reverse=cell.reverse)


def color_of(name: str) -> str | None:
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    return {"brown": "yellow", "brightbrown": "bright_yellow"}.get(name, name.replace("bright", "bright_"))


if __name__ == "__main__":
    main()
