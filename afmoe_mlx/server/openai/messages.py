"""Messages as OpenAI's clients send them, and as `Question.messages` has them."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from ...messages.reasoning import REASONING_FIELDS
from ..fields import Several


class Part(BaseModel):
    """A part of a message's content: text. Models that are served here see nothing else."""

    type: str = "text"
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _is_text(self) -> Self:
        if self.text is None and self.refusal is None:
            raise ValueError(f"a part of type {self.type[:80]!r} has no text: the model sees nothing else")
        return self

    @property
    def written(self) -> str:
        """Its text."""
        return self.text or self.refusal or ""


class CalledFunction(BaseModel):
    """A function's name, and the text of its arguments."""

    name: str
    arguments: str | dict[str, Any] | None = None


class SentCall(BaseModel):
    """A call of a tool, as the model made it in an earlier answer."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class Message(BaseModel):
    """A message of a conversation; what else it may have is a client's own."""

    role: Literal["system", "developer", "user", "assistant", "tool"] | None = None
    """By default what the other fields tell: "tool", "assistant", else "user"."""
    content: str | Several[Part | str] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Several[SentCall] | None = None
    reasoning_content: Any = Field(None, description="A text; anything else is left out.")
    reasoning: Any = Field(None, description="The same, by another name.")
    thinking: Any = Field(None, description="The same, by another name.")

    def as_sent(self) -> dict[str, Any]:
        """The message in OpenAI's form, its content one text, without what a chat template is not to see."""
        sent: dict[str, Any] = {"role": self.role or self._likely_role(), "content": self._text()}
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                sent[name] = value
        reasoning = next((text for name in REASONING_FIELDS if isinstance(text := getattr(self, name), str)), None)
        if reasoning is not None:
            sent["reasoning_content"] = reasoning
        if self.tool_calls:
            sent["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.model_dump()} for call in self.tool_calls
            ]
        return sent

    def _likely_role(self) -> str:
        if self.tool_call_id is not None:
            return "tool"
        return "assistant" if self.tool_calls or isinstance(self.reasoning_content, str) else "user"

    def _text(self) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        return "".join(part if isinstance(part, str) else part.written for part in self.content)
