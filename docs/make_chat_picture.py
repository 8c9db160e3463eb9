"""Draws docs/chat.svg: a real chat with the built-in demo. `python docs/make_chat_picture.py`"""

import io
from pathlib import Path

from rich.console import Console
from rich.text import Text

from afmoe_mlx import load
from afmoe_mlx.chat import Chat, Conversation

WIDTH = 96
QUESTIONS = (
    "What is AFMoE?",
    "whats a router",
    "how big is trinity mini?",
    "and how do i convert it?",
    "who won the world cup?",
    "/exit",
)


def main() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=WIDTH, highlight=False)
    lines = iter(QUESTIONS)

    def read() -> str:
        line = next(lines)
        console.print(f"[bold]>[/bold] {line}")
        return line

    Chat(Conversation(*load("demo"), options={"max_tokens": 200, "temperature": 0}), console, read).loop("demo")
    picture = Console(record=True, file=io.StringIO(), width=WIDTH)
    picture.print(Text.from_ansi(screen.getvalue().rstrip()))
    path = Path(__file__).with_name("chat.svg")
    path.write_text(picture.export_svg(title="afmoe-mlx chat"), encoding="utf-8")


if __name__ == "__main__":
    main()
