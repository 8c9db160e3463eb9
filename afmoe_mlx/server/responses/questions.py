"""A request of OpenAI's Responses becomes a `Question`."""

import base64
from collections.abc import Sequence
from typing import Any

from ..conversation import Conversation
from ..effort import reasoning_budget, template_variables
from ..errors import RequestError
from ..question import Question
from ..tools import checked, choice_beside, function_tool, log_left_out
from .forms import (
    AllowedTools,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionChoice,
    FunctionTool,
    JSONObjectFormat,
    JSONSchemaFormat,
    MessageItem,
    ReasoningItem,
    RefusalPart,
    ResponsesBody,
    TextPart,
)

# How an `encrypted_content` of this server begins.
_SEAL = "afmoe-mlx:"


def question_of(body: ResponsesBody, request: str) -> Question:
    """What a request asks for; RequestError for what is not supported. request: its id, for the log."""
    _check_supported(body)
    log_left_out((tool.type for tool in body.tools or () if not isinstance(tool, FunctionTool)), request)
    tools, form = offered_tools(body), _form(body)
    effort = None if body.reasoning is None else body.reasoning.effort
    options = {
        "reasoning_budget": reasoning_budget(effort),
        "tool_choice": choice_beside(form, _chosen(body), tools, "text.format"),
        "json_schema": form,
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
    }
    return Question(
        messages=_messages(body),
        tools=checked([function_tool(tool.name, tool.description, tool.parameters) for tool in tools]) or None,
        options={name: value for name, value in options.items() if value is not None},
        template_variables=template_variables(effort),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs(body) else None,
    )


def wants_logprobs(body: ResponsesBody) -> bool:
    """Whether log-probabilities are told with the text."""
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


def offered_tools(body: ResponsesBody) -> list[FunctionTool]:
    """The functions that may be called."""
    functions, choice = [tool for tool in body.tools or () if isinstance(tool, FunctionTool)], body.tool_choice
    if choice == "none":
        return []
    if not isinstance(choice, AllowedTools):
        return functions
    allowed = {tool.name for tool in choice.tools}
    if missing := sorted(allowed - {tool.name for tool in functions}):
        raise RequestError(
            400, f"tool_choice.tools has {missing[0]!r}, which is no tool of the request's", param="tool_choice"
        )
    return [tool for tool in functions if tool.name in allowed]


def _check_supported(body: ResponsesBody) -> None:
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            raise RequestError(
                400, f"{name} is not supported, as nothing is stored here: expected all of the input", param=name
            )
    if body.background:
        raise RequestError(400, "background is not supported: the answer comes with the request", param="background")


def _form(body: ResponsesBody) -> dict[str, Any] | None:
    match body.text.format if body.text is not None else None:
        case JSONSchemaFormat(schema_=schema):
            return schema
        case JSONObjectFormat():
            return {"type": "object"}
    return None


def _chosen(body: ResponsesBody) -> Any:
    """In chat completions' form."""
    match body.tool_choice:
        case FunctionChoice(name=name):
            return {"type": "function", "function": {"name": name}}
        case AllowedTools(mode=mode):
            return mode
        case choice:
            return choice


def _messages(body: ResponsesBody) -> list[Any]:
    conversation = Conversation()
    if body.instructions:
        conversation.text("system", body.instructions)
    if isinstance(body.input, str):
        conversation.text("user", body.input)
        return conversation.messages
    for item in body.input:
        match item:
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                conversation.text(role, _text(item.content))
            case FunctionCallItem():
                conversation.call(item.call_id, item.name, item.arguments)
            case FunctionCallOutputItem():
                conversation.result(item.call_id, _text(item.output))
            case ReasoningItem():
                conversation.reasoning(_reasoning(item))
    return conversation.messages


def _text(content: str | Sequence[TextPart | RefusalPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)


def _reasoning(item: ReasoningItem) -> str:
    told = "".join(part.text for part in item.content or ())
    told = told or "\n\n".join(part.text for part in item.summary or ())
    return told or unsealed(item.encrypted_content or "")


def sealed(reasoning: str) -> str:
    """Reasoning as `encrypted_content`, which clients give back though they show it to nobody."""
    return _SEAL + base64.b64encode(reasoning.encode()).decode()


def unsealed(content: str) -> str:
    """The reasoning of an `encrypted_content`; "" if it is another server's."""
    try:
        return base64.b64decode(content.removeprefix(_SEAL), validate=True).decode() if _SEAL in content else ""
    except ValueError:
        return ""
