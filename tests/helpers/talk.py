"""A chat of given lines, answered by a scripted model."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from afmoe_mlx.chat import Chat
from afmoe_mlx.chat.commands import command as commands
from afmoe_mlx.chat.sessions.folder import SessionFolder
from helpers.fake_engine import FakeConversation


class Script:
    """A reader whose lines are written beforehand; a function is called where it stands, and gives the line."""

    def __init__(self, *lines: Any, edits: Any = (), answers: Any = ()) -> None:
        self.lines, self.edits, self.answers = list(lines), list(edits), list(answers)
        self.edited: list[str] = []
        self.questions: list[str] = []

    def read(self) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        return line() if callable(line) else line

    def edit(self, text: str) -> str | None:
        self.edited.append(text)
        return self.edits.pop(0)

    def confirm(self, question: str) -> bool:
        self.questions.append(question)
        return self.answers.pop(0)


class Talk:
    """A chat of these lines, run to its end."""

    def __init__(self, folder: Path, *lines: Any, conversation: FakeConversation | None = None, **options: Any) -> None:
        self.reader = Script(*lines, edits=options.pop("edits", ()), answers=options.pop("answers", ()))
        self.conversation = conversation or FakeConversation(["first answer", "second answer", "third answer"])
        self.out = io.StringIO()
        self.chat = Chat(
            self.conversation,
            Console(file=self.out, width=200, highlight=False),
            self.reader,
            commands,
            folder=SessionFolder(folder / "sessions"),
            **{"saves": True} | options,
        )
        self.chat.loop()

    @property
    def shown(self) -> str:
        return self.out.getvalue()

    @property
    def said(self) -> list[str]:
        return [message["content"] for message in self.conversation.messages]
