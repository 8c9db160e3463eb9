"""`Conversation`: what is told of a conversation piece by piece becomes messages in OpenAI's form."""

from typing import Any


class Conversation:
    """Messages for a chat template: neighbours of one role become one message, as templates expect turns.

    Texts of one role are paragraphs of it; what an assistant wrote is put together as it was written.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        """As `Question.messages`."""
        self._tools: dict[str, str] = {}  # by the ids of their calls

    def text(self, role: str, text: str) -> None:
        """role: system, user or assistant."""
        message = self._message(role)
        between = "\n\n" if message["content"] and role != "assistant" else ""
        message["content"] += between + text

    def reasoning(self, text: str) -> None:
        """Of the assistant."""
        if text:
            message = self._message("assistant")
            message["reasoning_content"] = message.get("reasoning_content", "") + text

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """The assistant's call of a tool; arguments: JSON, or what was written in its place."""
        self._tools[call_id] = name
        function = {"name": name, "arguments": arguments}
        calls = self._message("assistant").setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def result(self, call_id: str, text: str) -> None:
        """What a call came to."""
        name = {"name": self._tools[call_id]} if call_id in self._tools else {}
        self.messages.append({"role": "tool", "tool_call_id": call_id, **name, "content": text})

    def _message(self, role: str) -> dict[str, Any]:
        """The last message, if it is of this role, else a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": ""})
        return self.messages[-1]
