"""The prompt of a second turn begins with the first's and with what the model answered, however a client writes it."""

import asyncio
import json
from typing import Any

import pytest

from afmoe_mlx.models import read_config
from afmoe_mlx.server import anthropic, openai, responses
from afmoe_mlx.server.engine.rendering import Renderer
from afmoe_mlx.server.question import Question
from afmoe_mlx.tokenizer import Tokenizer
from helpers.chat_templates import CHATML, LFM25, SPECIAL_TOKENS
from helpers.fake_service import FakeService
from helpers.grid import AFMOE
from helpers.official_clients import ask
from helpers.tiny_tokenizers import byte_level

HERMES = '<tool_call>\n{"name": "look", "arguments": {"city": "Zürich", "days": 1.5}}\n</tool_call>'
ANSWERS = {
    "calls": (CHATML, f"\n{HERMES}\n{HERMES}"),
    "text and a call": (CHATML, f"I look.\n{HERMES}"),
    "reasoning, text and a call": (CHATML, f"<think>\nHm.\n</think>\n\nI look.\n\n{HERMES}"),
    "in Python": (
        LFM25,
        "<think>Hm.</think>I look.<|tool_call_start|>[look(city='Zürich', days=1.5)]<|tool_call_end|>",
    ),
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number"}}}
FUNCTION = {"name": "look", "description": "Looks.", "parameters": PARAMETERS}


def rewritten(value: Any) -> Any:
    """JSON texts as another program writes them."""
    return json.dumps(json.loads(value), separators=(",", ":"), ensure_ascii=True)


def by_chat(answer: Any) -> Any:
    said = {"role": "user", "content": "Hi."}
    asked = {"messages": [{"role": "system", "content": "Be brief."}, said]}
    if answer is None:
        return asked
    message = answer["choices"][0]["message"]
    for call in message["tool_calls"]:
        call["function"]["arguments"] = rewritten(call["function"]["arguments"])
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in message["tool_calls"]]
    return {"messages": [{"role": "system", "content": "Be brief."}, said, message, *results]}


def by_messages(answer: Any) -> Any:
    if answer is None:
        return {"max_tokens": 9, "system": "Be brief.", "messages": [{"role": "user", "content": "Hi."}]}
    billing = {"type": "text", "text": "x-anthropic-billing-header: cch=2;"}
    marked = {"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}}
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "ok"}]}
        for block in answer["content"]
        if block["type"] == "tool_use"
    ]
    return {
        "max_tokens": 9,
        "system": [billing, {"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [marked]},
            {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": results},
        ],
    }


def by_responses(answer: Any) -> Any:
    if answer is None:
        return {"instructions": "Be brief.", "input": "Hi."}
    calls = [item for item in answer["output"] if item["type"] == "function_call"]
    for call in calls:
        call["arguments"] = rewritten(call["arguments"])
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "ok"} for call in calls]
    said = {"role": "user", "content": [{"type": "input_text", "text": "Hi."}]}
    return {"instructions": "Be brief.", "input": [said, *answer["output"], *results]}


PROTOCOLS = {
    "chat": (openai.ENDPOINTS[0], by_chat, {"type": "function", "function": FUNCTION}),
    "messages": (
        anthropic.ENDPOINTS[0],
        by_messages,
        {"name": "look", "description": "Looks.", "input_schema": PARAMETERS},
    ),
    "responses": (responses.ENDPOINTS[0], by_responses, {"type": "function", "strict": True, **FUNCTION}),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_second_prompt_extends_the_first_and_its_answer(protocol: str, answer: str) -> None:
    template, written = ANSWERS[answer]
    endpoint, request, tool = PROTOCOLS[protocol]
    tokenizer = Tokenizer(byte_level(), special_tokens=SPECIAL_TOKENS, chat_templates={"default": template})
    service = FakeService(tokenizer, [written])
    config = read_config({"model_type": "afmoe", **AFMOE, "vocab_size": 300, "max_position_embeddings": 10**5})
    renderer = Renderer(tokenizer, config=config, limit=lambda _, wanted: wanted, max_tokens=9, template_variables={})

    def prompt(question: Question) -> str:
        return tokenizer.decode(renderer.render([question])[0].prompt)

    async def converse() -> None:
        fields = {"model": "tiny", "tools": [tool]}
        first = await ask(service, endpoint, fields | request(None))
        await ask(service, endpoint, fields | request(first))

    asyncio.run(converse())
    first, second = map(prompt, service.asked)
    assert second.startswith(first + written)
