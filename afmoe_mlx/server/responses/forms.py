"""Requests and answers of OpenAI's Responses, as its reference describes them.

What an item or a tool has besides the fields here, such as an id, a status or a client's own keys, is left. A field of
the request, or of what configures it, is refused by name unless it is among the HINTS.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from ..endpoint import Body
from ..fields import Effort, Fields, Flag, JSONSchema, Positive, Several, Share, Temperature, Text, TopLogprobs
from ..openai.hints import HINTS as OPENAI_HINTS

HINTS = OPENAI_HINTS | {
    "client_metadata": "a client's own",
    "max_tool_calls": "counts the calls of tools that OpenAI runs: none is run here",
    "stream_options": "include_obfuscation pads events: they are sent as they are",
    "truncation": "a prompt that is too long is refused, whatever it says",
}
"""Fields that change no answer, each with what becomes of it."""


class TextPart(BaseModel):
    """Text."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class ReasoningPart(BaseModel):
    """Text of reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class RefusalPart(BaseModel):
    """An answer that is a refusal."""

    type: Literal["refusal"]
    refusal: str


Content = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class MessageItem(BaseModel):
    """What somebody says."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Several[Content] | None = None


class FunctionCallItem(BaseModel):
    """A call of a tool."""

    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(BaseModel):
    """What a call came to."""

    type: Literal["function_call_output"] = "function_call_output"
    call_id: str
    output: str | Several[Content]


class ReasoningItem(BaseModel):
    """Reasoning, by the first of these fields that has a text."""

    type: Literal["reasoning"] = "reasoning"
    content: Several[ReasoningPart] | None = None
    summary: Several[ReasoningPart] | None = None
    encrypted_content: str | None = None


def _typed(value: Any) -> Any:
    """An item; one that says nothing of its type is a message."""
    return {**value, "type": "message"} if isinstance(value, dict) and value.get("type") is None else value


Item = Annotated[
    Annotated[
        MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem,
        Field(discriminator="type"),
    ],
    BeforeValidator(_typed),
]


class FunctionTool(BaseModel):
    """A tool that the client runs. `strict` and other marks are left."""

    type: Literal["function"] = "function"
    name: Text
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class OtherTool(BaseModel):
    """A tool of another kind, which no model here can be offered: left out, with a line in the log."""

    type: str


def _tool_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "function" if kind == "function" else "other"


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[OtherTool, Tag("other")],
    Discriminator(_tool_tag),
]


class FunctionChoice(Fields):
    """This tool is called."""

    type: Literal["function"]
    name: str


class AllowedTools(Fields):
    """Of the tools these alone may be called, or are to be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Several[FunctionChoice]


ToolChoice = Literal["none", "auto", "required"] | Annotated[FunctionChoice | AllowedTools, Field(discriminator="type")]


class TextFormat(Fields):
    """Text as it comes."""

    type: Literal["text"] = "text"


class JSONObjectFormat(Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class JSONSchemaFormat(JSONSchema):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]


Format = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")]


class TextConfig(Fields):
    """How the text is to be; no model that is served here knows verbosity."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Fields):
    """How much is thought, and whether it is told as a summary: all of it is."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


Include = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    # of tools and images that there are none of
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponsesBody(Body):
    """A request for an answer."""

    HINTS: ClassVar[Mapping[str, str]] = HINTS

    model: str | None = None
    input: str | Several[Item]
    instructions: str | None = None
    tools: Several[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Flag | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    max_output_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: TopLogprobs | None = None
    include: Several[Include] | None = None
    metadata: dict[str, Any] | None = None
    stream: Flag | None = None
    previous_response_id: Any = None
    """Refused, as are `conversation` and `prompt`: nothing is stored here."""
    conversation: Any = None
    prompt: Any = None
    background: Flag | None = None
    """Refused if true."""


class OutputText(BaseModel):
    """Text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[dict[str, Any]] = []


Status = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(BaseModel):
    """What the model says."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputText]


class OutputCall(BaseModel):
    """A call of a tool; arguments: JSON, unless the call is malformed."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: Status
    call_id: str
    name: str
    arguments: str


class SummaryText(BaseModel):
    """Reasoning, where a summary is asked for."""

    type: Literal["summary_text"] = "summary_text"
    text: str


class ReasoningText(BaseModel):
    """Reasoning."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputReasoning(BaseModel):
    """What the model thought."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: Status
    summary: list[SummaryText]
    content: list[ReasoningText]
    encrypted_content: str | None = None
    """If it is asked for, all of the reasoning, so that a client can give it back: in base64, which is no secret."""


class InputDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """Of the answer's tokens."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


State = Literal["in_progress", "completed", "incomplete", "failed"]


class Response(BaseModel):
    """An answer, with what was asked."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: State
    completed_at: int | None = None
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None
    model: str
    output: list[Annotated[OutputMessage | OutputCall | OutputReasoning, Field(discriminator="type")]]
    violation: str | None = Field(default=None, exclude_if=lambda violation: violation is None)
    """What it falls short of in its `text.format`."""
    usage: Usage | None = None
    instructions: str | None
    tools: list[FunctionTool]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    text: TextConfig
    reasoning: ReasoningConfig
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    metadata: dict[str, Any]
    background: Literal[False] = False
    previous_response_id: None = None
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
