"""A request of Anthropic's Messages becomes a `Question`."""

import json
from collections.abc import Sequence
from typing import Any

from ...messages.reasoning import CLOSE, OPEN
from ..conversation import Conversation
from ..errors import RequestError
from ..question import Question
from ..tools import checked, choice_beside, function_tool, log_left_out
from .forms import (
    AnyChoice,
    AssistantMessage,
    Choice,
    CustomTool,
    MessagesBody,
    NoChoice,
    OtherTool,
    Prompted,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ThinkingDisabled,
    ThinkingEnabled,
    ToolChoice,
    ToolReference,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

INVALID = "INVALID_JSON"
"""In an input that is to be an object, the key of arguments that are none: what Anthropic tells clients to send."""


def question_of(body: Prompted, request: str) -> Question:
    """What a request asks for; RequestError for what is not supported. request: its id, for the log."""
    _check_supported(body)
    log_left_out((tool.type for tool in body.tools or () if isinstance(tool, OtherTool)), request)
    tools = _tools(body)
    options: dict[str, Any] = {"tool_choice": _chosen(body.tool_choice)}
    if isinstance(body, MessagesBody):
        options |= {
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": body.stop_sequences or None,
        }
    variables: dict[str, Any] = {}
    if body.thinking is not None:
        variables["enable_thinking"] = not isinstance(body.thinking, ThinkingDisabled)
    if isinstance(body.thinking, ThinkingEnabled):
        options["reasoning_budget"] = body.thinking.budget_tokens
    elif isinstance(body.thinking, ThinkingDisabled):
        options["reasoning_budget"] = 0  # for a model that would think whatever its template is told
    if body.output_config is not None:
        if body.output_config.effort is not None:
            variables["reasoning_effort"] = body.output_config.effort
        if body.output_config.format is not None:
            options["json_schema"] = body.output_config.format.schema_
            field = "output_config.format"
            options["tool_choice"] = choice_beside(body.output_config.format, options["tool_choice"], tools, field)
    return Question(
        messages=_messages(body),
        tools=tools,
        options={name: value for name, value in options.items() if value is not None},
        template_variables=variables,
        continues=isinstance(body.messages[-1], AssistantMessage),
        parallel_tool_calls=not getattr(body.tool_choice, "disable_parallel_tool_use", None),
    )


def _check_supported(body: Prompted) -> None:
    if body.thread is not None:
        raise RequestError(
            400,
            "thread is not supported, as nothing of a conversation is kept here: expected all of its messages",
            code="thread_unsupported_request",
            param="thread",
        )
    for name in ("mcp_servers", "container"):
        if getattr(body, name):
            raise RequestError(400, f"{name} is not supported: the server runs no tools and no code", param=name)


def _tools(body: Prompted) -> list[dict[str, Any]] | None:
    if isinstance(body.tool_choice, NoChoice):
        return None
    custom = [tool for tool in body.tools or () if isinstance(tool, CustomTool)]
    return checked([function_tool(tool.name, tool.description, tool.input_schema) for tool in custom]) or None


def _chosen(choice: Choice | None) -> Any:
    """In OpenAI's form."""
    match choice:
        case AnyChoice():
            return "required"
        case ToolChoice(name=name):
            return {"type": "function", "function": {"name": name}}
        case NoChoice():
            return "none"
    return None


def _messages(body: Prompted) -> list[Any]:
    conversation = Conversation()
    if body.system:
        conversation.text("system", _text(body.system))
    for message in body.messages:
        match message:
            case AssistantMessage():
                _add_answer(conversation, message)
            case UserMessage(content=list(blocks)):
                _add_blocks(conversation, blocks)
            case UserMessage(content=str(text)):
                conversation.text("user", text)
            case SystemMessage(content=content):
                conversation.text("system", _text(content))
    messages = conversation.messages
    return [*messages[:-1], _begun(messages[-1])] if isinstance(body.messages[-1], AssistantMessage) else messages


def _add_blocks(conversation: Conversation, blocks: Sequence[TextBlock | ToolResultBlock]) -> None:
    texts: list[TextBlock] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block)
            continue
        if texts:
            conversation.text("user", _text(texts))
            texts = []
        told = _text(block.content or "")
        conversation.result(block.tool_use_id, f"Error: {told}" if block.is_error else told)
    if texts:
        conversation.text("user", _text(texts))


def _add_answer(conversation: Conversation, message: AssistantMessage) -> None:
    if isinstance(message.content, str):
        conversation.text("assistant", message.content)
        return
    conversation.text("assistant", "")
    for block in message.content:
        match block:
            case TextBlock(text=text):
                conversation.text("assistant", text)
            case ThinkingBlock(thinking=thinking):
                conversation.reasoning(thinking)
            case ToolUseBlock(id=call_id, name=name, input=arguments):
                conversation.call(call_id, name, arguments_of(arguments))


def input_of(arguments: str) -> dict[str, Any]:
    """A call's arguments as a block holds them: an object, that of their JSON if they are one."""
    try:
        value = json.loads(arguments or "{}")
        json.dumps(value, allow_nan=False)  # Python reads numbers that JSON has not
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {INVALID: arguments}


def arguments_of(value: dict[str, Any]) -> str:
    """The arguments that `input_of` has made a block's input of."""
    if value.keys() == {INVALID} and isinstance(value[INVALID], str):
        return str(value[INVALID])
    return json.dumps(value, ensure_ascii=False)


def _begun(message: Any) -> Any:
    """The beginning of an answer, all of it in its content, which is what is gone on with."""
    if message.get("tool_calls"):
        raise RequestError(
            400, "messages: the last one calls a tool: expected a user's with its tool_result", param="messages"
        )
    reasoning = message.get("reasoning_content")
    thought = "" if reasoning is None else f"{OPEN}\n{reasoning.strip(chr(10))}\n{CLOSE}\n\n"
    return {"role": "assistant", "content": thought + message["content"]}


def _text(content: str | Sequence[TextBlock | ToolReference]) -> str:
    """Blocks of a text, each on a line of its own."""
    if isinstance(content, str):
        return content
    return "\n".join(block.text if isinstance(block, TextBlock) else block.tool_name for block in content)
