"""Parts of an answer become a response's items, and the events that tell of them."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from ..parts import Begin, End, More, Part, Step
from .forms import OutputCall, OutputMessage, OutputReasoning, OutputText, ReasoningText, Status, SummaryText
from .questions import sealed

Item = OutputMessage | OutputCall | OutputReasoning
Content = OutputText | ReasoningText | SummaryText
Told = tuple[str, dict[str, Any]]
"""An event's type without its "response.", and its fields without its number."""
Logprobs = list[dict[str, Any]]

_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}

# What the events of a content are called, those of its text, and which field says where it lies.
_TEXT = ("content_part", "output_text", "content_index")
_REASONING = ("content_part", "reasoning_text", "content_index")
_SUMMARY = ("reasoning_summary_part", "reasoning_summary_text", "summary_index")


class Items:
    """Makes items of parts, one after the other.

    summarizes: whether reasoning is told as a summary, which clients show that show no reasoning itself. seals: whether
    to add it in a form that they give back.
    """

    def __init__(self, *, summarizes: bool, seals: bool) -> None:
        self._summarizes, self._seals = summarizes, seals
        self.whole: list[Item] = []
        self._id = self._call_id = ""  # of the last item
        self._logprobs: Logprobs = []  # of its text

    def told(self, step: Step, *, logprobs: Logprobs, status: Status = "completed") -> Iterator[Told]:
        """The events of a step. logprobs: of the tokens of some text more; status: of an item that has ended."""
        part = step.part
        at: dict[str, Any] = {"output_index": part.index}
        if isinstance(step, Begin):
            self._id, self._call_id = f"{_PREFIXES[part.kind]}_{uuid4().hex}", f"call_{uuid4().hex}"
            self._logprobs = []
            yield "output_item.added", at | {"item": self._begun(part)}
        self._logprobs += logprobs
        at["item_id"] = self._id
        yield from _of_call(step, at) if part.kind == "call" else self._of_content(step, at, logprobs)
        if isinstance(step, End):
            self.whole.append(self._item(part, status))
            yield "output_item.done", {"output_index": part.index, "item": _json(self.whole[-1])}

    def _of_content(self, step: Step, at: dict[str, Any], logprobs: Logprobs) -> Iterator[Told]:
        is_text = step.part.kind == "text"
        name, text_name, index = _TEXT if is_text else _SUMMARY if self._summarizes else _REASONING
        at[index] = 0
        match step:
            case Begin(part):
                yield f"{name}.added", at | {"part": _json(self._content(part))}
            case More(_, text):
                yield f"{text_name}.delta", at | {"delta": text} | ({"logprobs": logprobs} if is_text else {})
            case End(part):
                told = {"logprobs": self._logprobs} if is_text else {}
                yield f"{text_name}.done", at | {"text": part.text} | told
                yield f"{name}.done", at | {"part": _json(self._content(part))}

    def _begun(self, part: Part) -> dict[str, Any]:
        """An item of which nothing has come."""
        item = _json(self._item(part, "in_progress"))
        nothing: dict[str, Any] = {"content": [], "summary": [], "arguments": "", "encrypted_content": None}
        return item | {name: nothing[name] for name in nothing.keys() & item.keys()}

    def _item(self, part: Part, status: Status) -> Item:
        if part.kind == "call":
            return OutputCall(
                id=self._id, status=status, call_id=self._call_id, name=part.name, arguments=_arguments(part)
            )
        content = self._content(part)
        if isinstance(content, OutputText):
            return OutputMessage(id=self._id, status=status, content=[content])
        return OutputReasoning(
            id=self._id,
            status=status,
            summary=[content] if isinstance(content, SummaryText) else [],
            content=[content] if isinstance(content, ReasoningText) else [],
            encrypted_content=sealed(part.text) if self._seals else None,
        )

    def _content(self, part: Part) -> Content:
        if part.kind == "text":
            return OutputText(text=part.text, logprobs=self._logprobs)
        return SummaryText(text=part.text) if self._summarizes else ReasoningText(text=part.text)


def _of_call(step: Step, at: dict[str, Any]) -> Iterator[Told]:
    match step:
        case More(_, text):
            yield "function_call_arguments.delta", at | {"delta": text}
        case End(part):
            yield "function_call_arguments.done", at | {"name": part.name, "arguments": _arguments(part)}


def _arguments(part: Part) -> str:
    return part.text or "{}"


def _json(form: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = form.model_dump(mode="json")
    return dumped
