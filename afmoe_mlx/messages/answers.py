"""What a model wrote becomes content, reasoning and tool calls: whole, or as it streams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..tokenizer import Tokenizer
from .calls import ArgumentsDelta, CallEnd, Calls, CallStart, ContentDelta, Delta, ReasoningDelta
from .incoming import Incoming, MalformedError, Waiting
from .openai_form import Message
from .reasoning import Part, ThinkingSplitter, opened_by, opened_thinking
from .tool_formats import ToolFormat, format_of, named
from .tools import argument_schemas

Prompt = str | Sequence[int]


@dataclass
class ToolCall:
    """A call of a tool."""

    name: str
    arguments: str = ""
    """A JSON object's text; if the call is malformed, what was understood of it as JSON, the rest as it was written."""
    error: str | None = None
    """Why the call is malformed, None if it is not."""


@dataclass
class Answer:
    """What a model wrote, taken apart."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def as_message(self) -> Message:
        """The message that goes back to the model, in OpenAI's form."""
        calls = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.tool_calls
        ]
        message = {"role": "assistant", "content": self.content}
        reasoning = {"reasoning_content": self.reasoning.strip("\n")} if self.reasoning else {}
        return message | reasoning | ({"tool_calls": calls} if calls else {})

    def add(self, delta: Delta) -> None:
        """Put the next delta where it belongs."""
        match delta:
            case ContentDelta(text):
                self.content += text
            case ReasoningDelta(text):
                self.reasoning += text
            case CallStart(_, name):
                self.tool_calls.append(ToolCall(name))
            case ArgumentsDelta(index, text):
                self.tool_calls[index].arguments += text
            case CallEnd(index, error):
                self.tool_calls[index].error = error


class AnswerReader:
    """Reads an answer as it streams: `feed` and `finish` give deltas, `answer` is what they add up to.

    tools: those that the model was offered, in OpenAI's form; None if any name may be called. prompt: the text or the
    token ids that the answer follows, or how they end: a template may have opened the reasoning there. beginning: what
    of the answer itself the prompt holds already, which is not given again. tool_format: a name in
    `tool_formats.FORMATS`, by default that of the tokenizer's template. InputError for tools that are none.

    Content never holds a part of a mark that begins a call. A call has begun once its name is there and is one that is
    offered; until then its text is content, from then on all up to its end belongs to it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] | None = None,
        prompt: Prompt | None = None,
        *,
        beginning: str = "",
        tool_format: str | None = None,
    ) -> None:
        self.answer = Answer()
        self._splitter = ThinkingSplitter.after(beginning or _opened(tokenizer, prompt))
        self._text = Incoming()
        self._calls = Calls(self._text, None if tools is None else argument_schemas(tools))
        form = named(tool_format) if tool_format is not None else format_of(tokenizer)
        self._reading = None if form is None else self._read(form)

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._splitter.thinking

    @property
    def held(self) -> str:
        """The end of what was fed, of which is not known yet what it belongs to."""
        return self._text.text + self._splitter.held

    def feed(self, text: str) -> list[Delta]:
        """What became certain with the next piece of the text."""
        return self._told(self._splitter.feed(text))

    def finish(self) -> list[Delta]:
        """What was held back, as no more comes; a call that has not ended is malformed."""
        parts = self._splitter.finish()
        self._text.is_ended = True
        return self._told(parts)

    def _told(self, parts: Sequence[Part]) -> list[Delta]:
        deltas: list[Delta] = []
        for part in parts:
            if part.kind == "thinking":
                deltas.append(ReasoningDelta(part.text))
            elif self._reading is None:
                deltas.append(ContentDelta(part.text))
            else:
                self._text.text += part.text
        if self._reading is not None:
            next(self._reading, None)
            deltas += self._calls.take()
        for delta in deltas:
            self.answer.add(delta)
        return deltas

    def _read(self, form: ToolFormat) -> Waiting[None]:
        text, calls = self._text, self._calls
        while (yield from text.up_to(form.begin)):
            calls.mark()
            yield from text.expect(form.begin)
            try:
                yield from form.read(text, calls)
            except MalformedError as error:
                yield from self._raw(form, str(error))
            calls.drop()
            calls.content()

    def _raw(self, form: ToolFormat, error: str) -> Waiting[None]:
        """The rest of a malformed call, if one has begun; else what was read of it is content."""
        if not self._calls.is_open:
            self._calls.content()
            return
        self._calls.raw()
        found = yield from self._text.up_to(form.end)
        self._calls.end(error)
        if found:
            yield from self._text.expect(form.end)


def read_answer(
    text: str,
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] | None = None,
    prompt: Prompt | None = None,
    *,
    tool_format: str | None = None,
) -> Answer:
    """A whole answer taken apart: what an `AnswerReader` with the same arguments makes of it."""
    reader = AnswerReader(tokenizer, tools, prompt, tool_format=tool_format)
    reader.feed(text)
    reader.finish()
    return reader.answer


def _opened(tokenizer: Tokenizer, prompt: Prompt | None) -> str:
    if prompt is None:
        return ""
    return opened_thinking(prompt) if isinstance(prompt, str) else opened_by(tokenizer, prompt)
