"""What clients of other makers send, recorded and trimmed, is answered in a form that their protocol accepts.

A recording is of a conversation's second turn; `first` has what the first turn said instead, claude-code's with the
first line of another session.
Their packages take seconds to import, so only the process that runs these tests does.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from afmoe_mlx.models import read_config
from afmoe_mlx.server.engine.rendering import Renderer
from afmoe_mlx.server.protocols import ENDPOINTS
from afmoe_mlx.tokenizer import Tokenizer
from helpers import tiny_tokenizers
from helpers.chat_templates import CHATML, SPECIAL_TOKENS
from helpers.endpoints import data, events
from helpers.fake_service import FakeService
from helpers.grid import AFMOE

TOKENIZER = Tokenizer(tiny_tokenizers.byte_level(), special_tokens=SPECIAL_TOKENS, chat_templates={"default": CHATML})
RECORDED = {path.stem: json.loads(path.read_text("utf-8")) for path in Path(__file__).parent.glob("requests/*.json")}


@cache
def events_of() -> dict[str, TypeAdapter[Any]]:
    """What the packages take for an event, by the path that was asked."""
    from anthropic.types import RawMessageStreamEvent
    from openai.types.chat import ChatCompletionChunk
    from openai.types.responses import ResponseStreamEvent

    return {
        "/v1/chat/completions": TypeAdapter(ChatCompletionChunk),
        "/v1/messages": TypeAdapter(RawMessageStreamEvent),
        "/v1/responses": TypeAdapter(ResponseStreamEvent),
    }


@dataclass
class Read:
    """What a client has read once a stream is over."""

    text: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    end: Any = None
    usage: Any = None


def asked(service: FakeService, name: str, **instead: Any) -> list[Any]:
    """What the events of the answer to a recorded request hold."""
    path = RECORDED[name]["path"].partition("?")[0]
    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.path == path)
    found = data(events(endpoint, service, **RECORDED[name]["body"] | instead))
    return [value for value in found if value != "[DONE]"]


def read(name: str, text: str) -> Read:
    """The answer `text` to a recorded request, each event of it parsed by its protocol's own package."""
    path = RECORDED[name]["path"].partition("?")[0]
    found = asked(FakeService(TOKENIZER, texts=(text,)), name)
    parsed = [events_of()[path].validate_python(value, strict=True) for value in found]
    return {"/v1/chat/completions": _chat, "/v1/messages": _messages, "/v1/responses": _responses}[path](parsed)


def _chat(chunks: list[Any]) -> Read:
    result, calls = Read(), dict[int, list[str]]()
    for chunk in chunks:
        result.usage = chunk.usage or result.usage
        for choice in chunk.choices:
            result.text += choice.delta.content or ""
            result.end = choice.finish_reason or result.end
            for call in choice.delta.tool_calls or []:
                if call.index not in calls:
                    assert (bool(call.id), call.type) == (True, "function")
                    calls[call.index] = [call.function.name, ""]
                calls[call.index][1] += call.function.arguments or ""
    result.calls = tuple((name, json.loads(arguments)) for name, arguments in calls.values())
    return result


def _messages(found: list[Any]) -> Read:
    result, blocks = Read(), dict[int, list[Any]]()
    for event in found:
        if event.type == "content_block_start":
            blocks[event.index] = [event.content_block, ""]
        elif event.type == "content_block_delta":
            blocks[event.index][1] += getattr(event.delta, "text", None) or getattr(event.delta, "partial_json", "")
        elif event.type == "message_delta":
            result.end, result.usage = event.delta.stop_reason, event.usage
    assert (found[0].type, found[-1].type) == ("message_start", "message_stop")
    result.text = "".join(text for block, text in blocks.values() if block.type == "text")
    calls = [(block, text) for block, text in blocks.values() if block.type == "tool_use"]
    assert all(block.id for block, _ in calls)
    result.calls = tuple((block.name, json.loads(text)) for block, text in calls)
    return result


def _responses(found: list[Any]) -> Read:
    assert (found[0].type, found[-1].type) == ("response.created", "response.completed")
    response = found[-1].response
    done = [event.item for event in found if event.type == "response.output_item.done"]
    assert done == response.output
    calls = tuple((item.name, json.loads(item.arguments)) for item in done if item.type == "function_call")
    return Read(response.output_text, calls, response.status, response.usage)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_every_clients_request_is_streamed_to_the_end_that_it_waits_for(name: str) -> None:
    found = read(name, "Done.")
    assert (found.text.strip(), found.calls) == ("Done.", ())
    assert found.end in ("stop", "end_turn", "completed")
    assert found.usage or name == "aider-chat"  # which asks for none


WRITING = {
    "claude": "Write",
    "cline": "editor",
    "cn": "Write",
    "codex": "exec_command",
    "llm": "write_file",
    "opencode": "write",
    "qwen": "write_file",
}
"""The tool that writes files, by the first word of a client's name."""


@pytest.mark.parametrize("name", sorted(name for name in RECORDED if RECORDED[name]["body"].get("tools")))
def test_every_client_reads_the_call_of_a_tool_that_it_offers(name: str) -> None:
    tool, arguments = WRITING[name.partition("-")[0]], {"content": 'a "quoted"\nline', "path": "é"}
    call = json.dumps({"name": tool, "arguments": arguments})
    found = read(name, f"Well.\n<tool_call>\n{call}\n</tool_call>")
    assert (found.text.strip(), found.calls) == ("Well.", ((tool, arguments),))
    assert found.end in ("tool_calls", "tool_use", "completed")
    assert found.usage


@pytest.mark.parametrize("name", sorted(name for name in RECORDED if "first" in RECORDED[name]))
def test_every_clients_second_turn_begins_with_all_of_its_first(name: str) -> None:
    service = FakeService(TOKENIZER)
    asked(service, name, **RECORDED[name]["first"])
    asked(service, name)
    config = read_config({"model_type": "afmoe"} | AFMOE | {"max_position_embeddings": 131072})
    renderer = Renderer(
        TOKENIZER, config=config, limit=lambda prompt, wanted: wanted, max_tokens=1, template_variables={}
    )
    first, second = (rendered.prompt for rendered in renderer.render(service.asked))
    assert first == second[: len(first)]
    assert len(second) > len(first)
