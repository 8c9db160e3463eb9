"""A chat of given lines, answered by a scripted model."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from afmoe_mlx.chat import Chat
from afmoe_mlx.chat.commands import command as commands
from afmoe_mlx.chat.person import PersonAtTerminal
from afmoe_mlx.chat.sessions.folder import SessionFolder
from afmoe_mlx.chat.tools.agent import Agent
from afmoe_mlx.chat.tools.permissions import Permissions
from afmoe_mlx.chat.tools.toolbox import Toolbox
from helpers.fake_engine import FakeConversation


class Script:
    """A reader whose lines are written beforehand; a function is called where it stands, and gives the line."""

    def __init__(self, *lines: Any, edits: Any = (), answers: Any = (), asked: Any = ()) -> None:
        self.lines, self.edits, self.answers, self.asked = list(lines), list(edits), list(answers), list(asked)
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

    def ask(self, question: str) -> str | None:
        self.questions.append(question)
        return self.asked.pop(0)


class Talk:
    """A chat of these lines, run to its end."""

    def __init__(self, folder: Path, *lines: Any, conversation: FakeConversation | None = None, **options: Any) -> None:
        scripts = {name: options.pop(name, ()) for name in ("edits", "answers", "asked")}
        self.reader = Script(*lines, **scripts)
        self.conversation = conversation or FakeConversation(["first answer", "second answer", "third answer"])
        self.out = io.StringIO()
        console = Console(file=self.out, width=200, highlight=False)
        toolbox = options.pop("toolbox", None) or Toolbox()
        self.conversation.tools = toolbox.schemas
        self.chat = Chat(
            self.conversation,
            console,
            self.reader,
            commands,
            folder=SessionFolder(folder / "sessions"),
            agent=Agent(toolbox, Permissions(), PersonAtTerminal(console, self.reader)),
            **{"saves": True} | options,
        )
        self.chat.loop()

    @property
    def shown(self) -> str:
        return self.out.getvalue()

    @property
    def said(self) -> list[str]:
        return [message["content"] for message in self.conversation.messages]
