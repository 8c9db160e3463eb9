"""`Agent`: a model's calls are shown, asked for and made, and it goes on from their results until it calls no more."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from afmoe_mlx.messages.rounds import Call

from ..conversation.conversation import Conversation
from .permissions import Choice, Permissions
from .results import ToolResult, failure, fitted, unavailable
from .toolbox import Tool, Toolbox

MOST_ROUNDS = 25  # of calls in one turn
RESULT_SHARE = 2  # what part of the free context a result may take

STOPPED = "the user stopped this call"
REFUSALS = {
    Choice.NOT_NOW: "the user does not allow this call",
    Choice.NEVER: "the user does not allow this tool: do not call it again",
}


class Person(Protocol):
    """Whoever a call is shown to, and asked."""

    def show_call(self, call: Call, tool: Tool | None) -> None:
        """Show a call, of a tool that there may not be, before it is decided on."""

    def permit(self, call: Call, tool: Tool) -> Choice | None:
        """Whether the call may be made; None: the turn is to end here."""

    def give(self, call: Call) -> str | None:
        """The result of a call of a tool that nobody else runs; None: the turn is to end here."""

    def waiting(self, tool: Tool) -> AbstractContextManager[Any]:
        """While a call is made."""

    def show_result(self, result: ToolResult) -> None:
        """Show what came of the call that was shown last."""


class Agent:
    """Answers the calls of a conversation's model from a toolbox, as far as a person permits them."""

    def __init__(self, toolbox: Toolbox, permissions: Permissions, person: Person) -> None:
        self.toolbox, self.permissions, self.person = toolbox, permissions, person
        self.is_stopped = False
        """Whether the last turn has ended because a call was stopped."""

    def finish_turn(self, conversation: Conversation, go_on: Callable[[], object]) -> bool:
        """Answer the last answer's calls, then those of each that `go_on` makes; False if too many came.

        Calls that were not answered, as the person ended the turn, are still open then.
        """
        self.is_stopped = False
        for _ in range(MOST_ROUNDS):
            if not conversation.open_calls or not self._answer_calls(conversation):
                return True
            go_on()
        return not conversation.open_calls

    def _answer_calls(self, conversation: Conversation) -> bool:
        """Give the open calls their results; False if the turn is to end, which leaves the rest as they are."""
        for call in conversation.open_calls:
            tool = self.toolbox.get(call.name)
            self.person.show_call(call, tool)
            try:
                result = self._result(call, tool, conversation)
            except KeyboardInterrupt:
                conversation.add_result(call, failure(STOPPED).text)
                self.person.show_result(failure(STOPPED))
                self.is_stopped = True
                return False
            if result is None:
                return False
            conversation.add_result(call, result.text)
            if result.is_error or (tool is not None and tool.server):  # what the person gave is on the screen
                self.person.show_result(result)
        return True

    def _result(self, call: Call, tool: Tool | None, conversation: Conversation) -> ToolResult | None:
        if call.error is not None:
            return failure(f"this call is malformed: {call.error}")
        if tool is None:
            return failure(f"there is no tool {call.name} now")
        if not tool.server:
            text = self.person.give(call)
            return None if text is None else _with_room(ToolResult(text), conversation)
        if trouble := self.toolbox.trouble(tool):
            return unavailable(tool.server, trouble)
        choice = self.permissions.standing(tool) or self.person.permit(call, tool)
        if choice is None:
            return None
        self.permissions.note(tool, choice)
        if choice in REFUSALS:
            return failure(REFUSALS[choice])
        try:
            arguments = _arguments(call)
        except ValueError as error:
            return failure(f"these arguments cannot be sent: {error}")
        with self.person.waiting(tool):
            return _with_room(self.toolbox.call(tool, arguments), conversation)


def _arguments(call: Call) -> Any:
    """A call's arguments; ValueError for what JSON can say and a server cannot be sent, such as a number too large."""
    arguments = json.loads(call.arguments)
    json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    return arguments


def _with_room(result: ToolResult, conversation: Conversation) -> ToolResult:
    """A result that leaves room in the context for what the model makes of it."""
    room = conversation.context_limit - conversation.context_used
    encode = conversation.tokenizer.encode
    return fitted(result, max(0, room // RESULT_SHARE), lambda text: len(encode(text, add_special_tokens=False)))
