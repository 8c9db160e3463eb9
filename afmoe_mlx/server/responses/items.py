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

# What the events of a content are called, those of its text, and where they say that it lies.
_WORDS = {
    OutputText: ("content_part", "output_text", "content_index"),
    ReasoningText: ("content_part", "reasoning_text", "content_index"),
    SummaryText: ("reasoning_summary_part", "reasoning_summary_text", "summary_index"),
}


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
        if isinstance(step, Begin):
            self._id, self._logprobs = f"{_PREFIXES[part.kind]}_{uuid4().hex}", []
            self._call_id = f"call_{uuid4().hex}"
            yield (
                "output_item.added",
                {
                    "output_index": part.index,
                    "item": _json(self._item(Part(part.index, part.kind, part.name), "in_progress", is_begun=True)),
                },
            )
        self._logprobs += logprobs
        place = {"item_id": self._id, "output_index": part.index}
        yield from _of_call(step, place) if part.kind == "call" else self._of_content(step, place, logprobs)
        if isinstance(step, End):
            self.whole.append(self._item(part, status))
            yield "output_item.done", {"output_index": part.index, "item": _json(self.whole[-1])}

    def _of_content(self, step: Step, place: dict[str, Any], logprobs: Logprobs) -> Iterator[Told]:
        content = self._content(step.part)
        name, text_name, index = _WORDS[type(content)]
        place = place | {index: 0}
        is_text = isinstance(content, OutputText)
        match step:
            case Begin():
                yield f"{name}.added", place | {"part": _json(content)}
            case More(_, text):
                yield f"{text_name}.delta", place | {"delta": text} | ({"logprobs": logprobs} if is_text else {})
            case End():
                told = {"logprobs": self._logprobs} if is_text else {}
                yield f"{text_name}.done", place | {"text": content.text} | told
                yield f"{name}.done", place | {"part": _json(content)}

    def _item(self, part: Part, status: Status, *, is_begun: bool = False) -> Item:
        """is_begun: nothing of it has come."""
        if part.kind == "call":
            return OutputCall(
                id=self._id,
                status=status,
                call_id=self._call_id,
                name=part.name,
                arguments="" if is_begun else _arguments(part),
            )
        content = [] if is_begun else [self._content(part)]
        if part.kind == "text":
            return OutputMessage(id=self._id, status=status, content=content)
        return OutputReasoning(
            id=self._id,
            status=status,
            summary=content if self._summarizes else [],
            content=[] if self._summarizes else content,
            encrypted_content=sealed(part.text) if self._seals and not is_begun else None,
        )

    def _content(self, part: Part) -> Content:
        if part.kind == "text":
            return OutputText(text=part.text, logprobs=self._logprobs)
        return SummaryText(text=part.text) if self._summarizes else ReasoningText(text=part.text)


def _of_call(step: Step, place: dict[str, Any]) -> Iterator[Told]:
    match step:
        case More(_, text):
            yield "function_call_arguments.delta", place | {"delta": text}
        case End(part):
            yield "function_call_arguments.done", place | {"name": part.name, "arguments": _arguments(part)}


def _arguments(part: Part) -> str:
    return part.text or "{}"


def _json(form: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = form.model_dump(mode="json")
    return dumped
