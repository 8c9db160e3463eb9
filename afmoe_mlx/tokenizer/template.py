"""Chat templates, rendered as Transformers 5 renders them: sandboxed Jinja over plain data.

Import this only to render: it imports jinja2.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ..errors import TokenizerError

# The first is what templates read today; a message may carry its reasoning under any of them.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
ALWAYS_GIVEN = {"messages", "add_generation_prompt"}
CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """One compiled chat template; TokenizerError if its Jinja does not parse."""

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self._compiled = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(f"the chat template does not parse, line {error.lineno}: {_text(error)}") from error
        except Exception as error:
            raise TokenizerError(f"the chat template does not compile: {_text(error)}") from error

    @property
    def variables(self) -> set[str]:
        """The names that it reads and does not define itself, but for those that all are given."""
        environment = _environment()
        names = meta.find_undeclared_variables(environment.parse(self.source)) - environment.globals.keys()
        return {name for name in names - ALWAYS_GIVEN if not name.endswith("_token")}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, as Transformers' `apply_chat_template(..., tokenize=False)` gives it.

        `continue_final_message` leaves the last message open at its end; a string names the field to leave open
        instead of "content". `variables` are what else the template sees. TokenizerError carries the template's own
        message where it refuses the conversation.
        """
        try:
            chat = _chat(messages)
            schemas = None if tools is None else _schemas(tools)
            extra = {"documents": None, **_plain(variables or {}, "template variables")}
        except RecursionError:
            raise TokenizerError("the conversation or its tools are nested too deeply: expected them flatter") from None
        field = "content" if continue_final_message is True else continue_final_message or None
        opened = None if field is None else self._open_final_message(chat, field)
        try:
            text = self._compiled.render(
                {**extra, "messages": chat, "tools": schemas, "add_generation_prompt": add_generation_prompt}
            )
        except Exception as error:  # a template runs any expression, so any exception may come out of it
            raise TokenizerError(f"the chat template refuses this conversation: {_text(error)}") from error
        return text if opened is None else _cut_at_tag(text, opened)

    def _open_final_message(self, chat: list[dict[str, Any]], field: str) -> str:
        """Marks the end of the final message's `field`, in place, and returns its text without the mark."""
        final = chat[-1]
        content = final.get(field)
        if content is None:
            raise TokenizerError(f'cannot continue the final message: it has no "{field}"')
        # Reasoning stands under several names: mark every copy, the template reads one of them.
        fields = [name for name in REASONING_FIELDS if final.get(name) == content]
        fields = fields if field in REASONING_FIELDS else [field]
        if not any(name in self.source for name in fields):
            raise TokenizerError(f'cannot continue the final message: the chat template does not read "{field}"')
        if isinstance(content, str):
            final.update(dict.fromkeys(fields, content + CONTINUE_TAG))
            return content
        for block in reversed(content if isinstance(content, list | tuple) else []):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text: str = block["text"]
                block["text"] = text + CONTINUE_TAG
                return text
        raise TokenizerError(f'cannot continue the final message: its "{field}" holds no text')


def _cut_at_tag(text: str, opened: str) -> str:
    tag = CONTINUE_TAG.strip()
    if opened.strip() not in text or tag not in text:
        raise TokenizerError("cannot continue the final message: the chat template drops or changes its text")
    end = text.rindex(tag)
    # Without its space, the tag was trimmed by the template, so what precedes it would have been trimmed too.
    return text[:end] if text.startswith(CONTINUE_TAG, end) else text[:end].rstrip()


def _chat(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A copy that rendering may change. Keys set to None are dropped: templates would print them."""
    if isinstance(messages, str | Mapping) or not all(isinstance(message, Mapping) for message in messages):
        raise TokenizerError('expected messages as a list of dicts such as {"role": "user", "content": "..."}')
    if not messages:
        raise TokenizerError("the conversation is empty: give at least one message")
    chat = []
    for message in messages:
        plain = _plain({key: value for key, value in message.items() if value is not None}, "messages")
        reasoning = next((plain[field] for field in REASONING_FIELDS if field in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        if isinstance(calls := plain.get("tool_calls"), list | tuple):
            for call in calls:
                _read_arguments(call)
        chat.append(plain)
    return chat


def _read_arguments(call: Any) -> None:
    """Make a mapping, in place, of arguments that came as JSON text, as OpenAI's interface has them."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):  # the template may know what to do with it
            return
        if isinstance(arguments, dict):
            function["arguments"] = arguments


def _schemas(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(tools, str | Mapping):
        raise TokenizerError("expected tools as a list of JSON schemas (dicts)")
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise TokenizerError(f"expected each tool as a JSON schema (a dict), found {type(tool).__name__}")
    return [_plain(tool, "tools") for tool in tools]


def _plain(value: Any, where: str) -> Any:
    """A copy made of JSON's own types, so that a template meets no object whose methods do something."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, where) for item in value)
    raise TokenizerError(f"{where}: expected what JSON can hold, found {type(value).__name__}")


def _text(error: Exception) -> str:
    message = " ".join(str(error.message if isinstance(error, jinja2.TemplateError) else error).split())
    return message if isinstance(error, jinja2.TemplateError) and message else f"{type(error).__name__}: {message}"


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the model wrote, for training; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without the class behind it, whose attributes lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that refuses names with a leading underscore, which reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named self, so that namespace(self=…) works
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names must not start with an underscore")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes HTML
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    return environment
