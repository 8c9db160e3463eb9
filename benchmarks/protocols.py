"""The server's protocols as a client has them: how a question is asked, and what an answer must have to its end."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from http_client import Event


class WrongAnswerError(Exception):
    """What a server said is not what it had to say."""


class Told(NamedTuple):
    """An answer as a client has it."""

    text: str
    is_cut: bool
    """Whether it was ended by the limit of its tokens."""
    prompt_tokens: int
    answer_tokens: int
    calls: Sequence[tuple[str, str]] = ()
    """Functions' names with their arguments as JSON."""


class Asked(NamedTuple):
    """What is asked in any of the protocols."""

    model: str
    messages: Sequence[Mapping[str, str]]
    prompt: str
    """What the chat template makes of the messages."""
    max_tokens: int
    tool: Mapping[str, Any] | None = None
    """A function that must be called."""
    schema: Mapping[str, Any] | None = None
    """That the answer must satisfy."""


def check(holds: object, *said: object) -> None:
    if not holds:
        raise WrongAnswerError(" ".join(str(part)[:300] for part in said))


class Chat:
    path = "/v1/chat/completions"

    def body(self, asked: Asked) -> dict[str, Any]:
        body = {"model": asked.model, "messages": asked.messages, "max_tokens": asked.max_tokens, "temperature": 0}
        if asked.tool:
            body |= {"tools": [{"type": "function", "function": asked.tool}], "tool_choice": "required"}
        if asked.schema:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "it", "schema": asked.schema}}
        return body

    def streamed_body(self, asked: Asked) -> dict[str, Any]:
        return self.body(asked) | {"stream": True, "stream_options": {"include_usage": True}}

    def whole(self, answer: Any) -> Told:
        (choice,) = answer["choices"]
        return self._told(choice, choice["message"].get("tool_calls"), answer["usage"])

    def pieces(self, events: Sequence[Event]) -> str:
        """The text in as many events as there are."""
        chunks = (json.loads(event.data) for event in events if event.data != "[DONE]")
        return "".join(self._text(choice) for chunk in chunks for choice in chunk["choices"])

    def streamed(self, events: Sequence[Event]) -> Told:
        check(events and events[-1].data == "[DONE]", self.path, "ends with", events[-1:])
        chunks = [json.loads(event.data) for event in events[:-1]]
        check(len({chunk["id"] for chunk in chunks}) == 1, self.path, "has several ids")
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        last = [choice for choice in choices if choice["finish_reason"]]
        check(last == choices[-1:], self.path, "has finish reasons", last)
        calls: dict[int, dict[str, Any]] = {}
        for choice in choices:
            for part in choice.get("delta", {}).get("tool_calls") or ():
                call = calls.setdefault(part["index"], {"function": {"name": "", "arguments": ""}})
                for name, value in part["function"].items():
                    call["function"][name] += value or ""
        whole = last[0] | {"message": {"content": self.pieces(events)}, "text": self.pieces(events)}
        check(chunks[-1].get("usage"), self.path, "ends without usage")
        return self._told(whole, [call for _, call in sorted(calls.items())], chunks[-1]["usage"])

    def _text(self, choice: Any) -> str:
        return choice["delta"].get("content") or ""

    def _told(self, choice: Any, calls: Any, usage: Any) -> Told:
        check(choice["finish_reason"] in ("stop", "length", "tool_calls"), self.path, choice)
        named = [(call["function"]["name"], call["function"]["arguments"]) for call in calls or ()]
        text, is_cut = choice["message"]["content"] or "", choice["finish_reason"] == "length"
        return Told(text, is_cut, usage["prompt_tokens"], usage["completion_tokens"], named)


class Completions(Chat):
    path = "/v1/completions"

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"model": asked.model, "prompt": asked.prompt, "max_tokens": asked.max_tokens, "temperature": 0}

    def whole(self, answer: Any) -> Told:
        (choice,) = answer["choices"]
        return self._told(choice | {"message": {"content": choice["text"]}}, (), answer["usage"])

    def _text(self, choice: Any) -> str:
        text: str = choice["text"]
        return text


class Responses:
    path = "/v1/responses"

    def body(self, asked: Asked) -> dict[str, Any]:
        messages = [{"role": m["role"], "content": m["content"]} for m in asked.messages]
        body: dict[str, Any] = {
            "model": asked.model,
            "input": messages,
            "max_output_tokens": asked.max_tokens,
            "temperature": 0,
        }
        if asked.tool:
            body |= {"tools": [{"type": "function", **asked.tool}], "tool_choice": "required"}
        if asked.schema:
            body["text"] = {"format": {"type": "json_schema", "name": "it", "schema": asked.schema}}
        return body | {"store": False}

    def streamed_body(self, asked: Asked) -> dict[str, Any]:
        return self.body(asked) | {"stream": True}

    def whole(self, answer: Any) -> Told:
        check(answer["status"] in ("completed", "incomplete"), self.path, answer["status"])
        items = answer["output"]
        parts = [part for item in items if item["type"] == "message" for part in item["content"]]
        calls = [(item["name"], item["arguments"]) for item in items if item["type"] == "function_call"]
        usage = answer["usage"]
        text, is_cut = "".join(part["text"] for part in parts), answer["status"] == "incomplete"
        return Told(text, is_cut, usage["input_tokens"], usage["output_tokens"], calls)

    def pieces(self, events: Sequence[Event]) -> str:
        return "".join(json.loads(e.data)["delta"] for e in events if e.name == "response.output_text.delta")

    def streamed(self, events: Sequence[Event]) -> Told:
        told = [json.loads(event.data) for event in events if event.data != "[DONE]"]
        check([one["type"] for one in told] == [e.name for e in events if e.data != "[DONE]"], "types are not names")
        check(told and told[0]["type"] == "response.created", self.path, "begins with", told[:1])
        check(told[-1]["type"] in ("response.completed", "response.incomplete"), self.path, "ends with", told[-1])
        check([one["sequence_number"] for one in told] == list(range(len(told))), self.path, "is out of sequence")
        found = self.whole(told[-1]["response"])
        check(found.text == self.pieces(events), self.path, "streams another text than it ends with")
        return found


class Messages:
    path = "/v1/messages"

    def body(self, asked: Asked) -> dict[str, Any]:
        system = [m["content"] for m in asked.messages if m["role"] == "system"]
        rest = [m for m in asked.messages if m["role"] != "system"]
        body: dict[str, Any] = {
            "model": asked.model,
            "messages": rest,
            "max_tokens": asked.max_tokens,
            "temperature": 0,
        }
        if system:
            body["system"] = system[0]
        if asked.tool:
            tool = {"name": asked.tool["name"], "input_schema": asked.tool["parameters"]}
            body |= {"tools": [tool | {"description": asked.tool["description"]}], "tool_choice": {"type": "any"}}
        if asked.schema:
            body["output_config"] = {"format": {"type": "json_schema", "schema": asked.schema}}
        return body

    def streamed_body(self, asked: Asked) -> dict[str, Any]:
        return self.body(asked) | {"stream": True}

    def whole(self, answer: Any) -> Told:
        text = "".join(block["text"] for block in answer["content"] if block["type"] == "text")
        used = [block for block in answer["content"] if block["type"] == "tool_use"]
        calls = [(block["name"], json.dumps(block["input"])) for block in used]
        return self._told(text, calls, answer["stop_reason"], answer["usage"])

    def pieces(self, events: Sequence[Event]) -> str:
        deltas = (json.loads(event.data)["delta"] for event in events if event.name == "content_block_delta")
        return "".join(delta["text"] for delta in deltas if delta["type"] == "text_delta")

    def streamed(self, events: Sequence[Event]) -> Told:
        told = [json.loads(event.data) for event in events if event.name != "ping"]
        check([one["type"] for one in told] == [event.name for event in events if event.name != "ping"], "types")
        check(told and told[0]["type"] == "message_start", self.path, "begins with", told[:1])
        check(
            [one["type"] for one in told[-2:]] == ["message_delta", "message_stop"], self.path, "ends with", told[-2:]
        )
        calls: dict[int, list[str]] = {}
        opened: list[int] = []
        for one in told[1:-2]:
            match one["type"]:
                case "content_block_start":
                    check(not opened, self.path, "opens a block in a block")
                    opened.append(one["index"])
                    if one["content_block"]["type"] == "tool_use":
                        calls[one["index"]] = [one["content_block"]["name"], ""]
                case "content_block_stop":
                    check(opened == [one["index"]], self.path, "closes a block that is not open")
                    opened.clear()
                case _:
                    check(opened == [one["index"]], self.path, "tells of a block that is not open")
                    calls.get(one["index"], ["", ""])[1] += one["delta"].get("partial_json", "")
        check(not opened, self.path, "leaves a block open")
        named = [(name, arguments or "{}") for name, arguments in calls.values()]
        usage = told[0]["message"]["usage"] | told[-2]["usage"]
        return self._told(self.pieces(events), named, told[-2]["delta"]["stop_reason"], usage)

    def _told(self, text: str, calls: Sequence[tuple[str, str]], reason: str, usage: Any) -> Told:
        check(reason in ("end_turn", "max_tokens", "tool_use", "stop_sequence"), self.path, reason)
        known = (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
        return Told(text, reason == "max_tokens", usage["input_tokens"] + known, usage["output_tokens"], calls)


PROTOCOLS = (Chat(), Completions(), Responses(), Messages())
