"""Requests and answers of Anthropic's Messages, as its reference describes them.

A field of a block or a tool that is not here, such as cache_control or citations, is a mark that changes nothing, and
is left. One of the request, or of what configures it, is refused by name unless it is among the HINTS.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from ..endpoint import Body
from ..fields import Count, Fields, Flag, Positive, Several, Share, Stops, Temperature, Text

HINTS = {
    "anthropic_beta": "all that is supported is there in any case",
    "anthropic_version": "there is one",
    "betas": "all that is supported is there in any case",
    "billing_policy": "nothing is billed",
    "cache_control": "prefixes are found by their tokens, marked or not",
    "context_management": "nothing is taken out of a prompt; one that is too long is refused",
    "diagnostics": "the log and `/metrics` tell what was known of a prompt",
    "fallback_credit_token": "nothing is billed",
    "fallbacks": "no request is declined",
    "inference_geo": "it is computed here",
    "metadata": "nobody is told of its user",
    "service_tier": "there is one, first come, first served",
    "speed": "as fast as this machine is",
    "user_profile_id": "prefixes are kept apart by API key",
}
"""Fields that change no answer, each with what becomes of it."""


class TextBlock(BaseModel):
    """Text."""

    type: Literal["text"] = "text"
    text: str


class ThinkingBlock(BaseModel):
    """Reasoning. The signature is accepted and ignored: whoever sends it may write what they like anyway."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(BaseModel):
    """Another model's reasoning that cannot be read: left out."""

    type: Literal["redacted_thinking"] = "redacted_thinking"
    data: str = ""


class ToolUseBlock(BaseModel):
    """A call of a tool."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


class ToolReference(BaseModel):
    """What a search for tools has found."""

    type: Literal["tool_reference"] = "tool_reference"
    tool_name: str


Result = Annotated[TextBlock | ToolReference, Field(discriminator="type")]


class ToolResultBlock(BaseModel):
    """What a call came to."""

    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    content: str | Several[Result] | None = None
    is_error: Flag | None = None


class SystemMessage(BaseModel):
    """Instructions, in the middle of a conversation too."""

    role: Literal["system"]
    content: str | Several[TextBlock]


class UserMessage(BaseModel):
    """What a user says, and results of tools."""

    role: Literal["user"]
    content: str | Several[Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]]


class AssistantMessage(BaseModel):
    """An answer, or the last message: the beginning of one that is to be gone on with."""

    role: Literal["assistant"]
    content: (
        str
        | Several[
            Annotated[TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock, Field(discriminator="type")]
        ]
    )


InputMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class CustomTool(BaseModel):
    """A tool that the client runs. `strict`, `defer_loading` and other marks are left."""

    type: Literal["custom"] | None = None
    name: Text
    description: str | None = None
    input_schema: dict[str, Any]


class OtherTool(BaseModel):
    """A tool of Anthropic's own, which nobody here could run: left out, with a line in the log."""

    type: str


def _tool_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "custom" if kind in (None, "custom") else "other"


Tool = Annotated[
    Annotated[CustomTool, Tag("custom")] | Annotated[OtherTool, Tag("other")],
    Discriminator(_tool_tag),
]


class AutoChoice(Fields):
    """The model chooses."""

    type: Literal["auto"]
    disable_parallel_tool_use: Flag | None = None


class AnyChoice(Fields):
    """Some tool is called."""

    type: Literal["any"]
    disable_parallel_tool_use: Flag | None = None


class ToolChoice(Fields):
    """This tool is called."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: Flag | None = None


class NoChoice(Fields):
    """No tool is called."""

    type: Literal["none"]


Choice = Annotated[AutoChoice | AnyChoice | ToolChoice | NoChoice, Field(discriminator="type")]

Display = Literal["summarized", "omitted"] | None


class ThinkingEnabled(Fields):
    """Reasoning of so many tokens at most."""

    type: Literal["enabled"]
    budget_tokens: Positive
    display: Display = None


class ThinkingAdaptive(Fields):
    """As much reasoning as the model finds right."""

    type: Literal["adaptive"]
    display: Display = None


class ThinkingDisabled(Fields):
    """No reasoning."""

    type: Literal["disabled"]


Thinking = Annotated[ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled, Field(discriminator="type")]


class JSONFormat(Fields):
    """The answer is JSON that satisfies a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    """How the answer is to be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JSONFormat | None = None


class Prompted(Body):
    """What a prompt is made of."""

    HINTS: ClassVar[Mapping[str, str]] = HINTS

    model: str
    messages: Several[InputMessage] = Field(min_length=1)
    system: str | Several[TextBlock] | None = None
    tools: Several[Tool] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    thread: Any = None
    """Refused: nothing of a conversation is kept here. Clients that see the error send all of it."""
    mcp_servers: Any = None
    """Refused unless it is empty, as is `container`: nothing is run here."""
    container: Any = None


class MessagesBody(Prompted):
    """A request for an answer."""

    max_tokens: Positive
    """What the context does not hold is left out of it."""
    stream: Flag | None = None
    stop_sequences: Stops | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None


class CountTokensBody(Prompted):
    """A request for the number of a prompt's tokens."""


class OutputTokensDetails(BaseModel):
    """Of the answer's tokens."""

    thinking_tokens: int


class Usage(BaseModel):
    """Tokens. `input_tokens` are those of the prompt that were not known before; the others are `cache_read`."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int
    output_tokens_details: OutputTokensDetails | None = None


class Message(BaseModel):
    """An answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    violation: str | None = Field(default=None, exclude_if=lambda violation: violation is None)
    """What it falls short of in its `output_config.format`."""
    usage: Usage


class TokenCount(BaseModel):
    """Tokens of a prompt."""

    input_tokens: int
