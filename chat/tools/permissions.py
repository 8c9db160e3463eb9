"""What the user permits: each call for itself, or all of a tool for one run of the chat. Nothing of it is saved."""

from collections.abc import Iterable
from enum import Enum

from afmoe_mlx.errors import InputError

from .toolbox import Tool, Toolbox


class Choice(Enum):
    """What is said to a call."""

    ONCE = "once"
    SESSION = "session"
    NOT_NOW = "not now"
    NEVER = "never"


class Permissions:
    """The answers that stand, of tools by their server: a tool of another server by the same name is asked for anew."""

    def __init__(self) -> None:
        self._standing: dict[tuple[str, str], Choice] = {}

    def allow(self, names: Iterable[str], toolbox: Toolbox) -> None:
        """Permit tools by the names that the model calls them by; InputError for one that no server has."""
        for name in names:
            tool = toolbox.get(name)
            if tool is None or not tool.server:
                there = ", ".join(tool.name for tool in toolbox.tools if tool.server) or "none"
                raise InputError(f"no server has a tool {name!r}: those there are: {there}")
            self.note(tool, Choice.SESSION)

    def standing(self, tool: Tool) -> Choice | None:
        """SESSION or NEVER where one was chosen for the tool; None: ask."""
        return self._standing.get((tool.server, tool.original))

    def note(self, tool: Tool, choice: Choice) -> None:
        """Keep a choice that is for more than one call."""
        if choice in (Choice.SESSION, Choice.NEVER):
            self._standing[tool.server, tool.original] = choice
