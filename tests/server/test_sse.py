"""Server-sent events: whatever is in them, a client reads it back from whole lines."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.server import sse
from afmoe_mlx.server.endpoint import Endpoint, EventStream
from afmoe_mlx.server.protocols import ENDPOINTS
from afmoe_mlx.server.question import Call
from afmoe_mlx.tokenizer import Tokenizer
from helpers.fake_service import FakeService
from helpers.tiny_tokenizers import byte_level

TEXTS = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(["a\u2028b", "\x85\r\n", "\ud800", "é\x00"])


@given(TEXTS, st.none() | st.just("message_start"))
def test_an_event_is_whole_lines_and_holds_what_was_told(text, name) -> None:
    found = sse.event({"text": text}, name)
    lines = found.encode().decode().splitlines()
    assert lines.pop() == ""
    assert found.endswith("\n\n")
    assert lines[:-1] == ([] if name is None else [f"event: {name}"])
    assert json.loads(lines[-1].removeprefix("data: ")) == {"text": text}


def test_a_text_stands_as_it_is_and_a_comment_is_no_data() -> None:
    assert sse.event("[DONE]") == "data: [DONE]\n\n"
    assert sse.ALIVE.startswith(":")
    assert sse.ALIVE.endswith("\n\n")


STREAMING = [endpoint for endpoint in ENDPOINTS if "stream" in endpoint.body.model_fields]
MESSAGES = {"messages": [{"role": "user", "content": "?"}]}
FIELDS: dict[str, Any] = {
    "/v1/chat/completions": MESSAGES,
    "/v1/completions": {"prompt": "?"},
    "/v1/messages": {"model": "tiny", "max_tokens": 9, **MESSAGES},
    "/v1/responses": {"input": "?"},
}


@pytest.mark.parametrize("endpoint", STREAMING, ids=lambda endpoint: endpoint.path)
def test_an_answer_ends_whose_client_leaves_before_the_first_event_is_sent(endpoint: Endpoint) -> None:
    service, call = FakeService(Tokenizer(byte_level())), Call("1", endpoint.path)
    body = endpoint.body.model_validate({**FIELDS[endpoint.path], "stream": True})

    async def leave() -> None:
        stream = await endpoint.handle(service, body, call)
        assert isinstance(stream, EventStream)
        assert service.ended == []
        del stream
        while not service.ended:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(leave(), 10))
    assert service.ended == [call]
