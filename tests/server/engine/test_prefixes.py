"""What is known of a prompt: an agent's next turn, and one owner from another."""

import json
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import load
from afmoe_mlx.models import CausalLM
from afmoe_mlx.server.engine.service import ModelService
from afmoe_mlx.server.question import Question
from afmoe_mlx.tokenizer import Tokenizer
from helpers.asking import Heard, call, heard, run, service
from helpers.chat_templates import CHATML, LFM25
from helpers.tiny import tiny_folder


def test_what_one_owner_has_asked_no_other_finds(random: tuple[CausalLM, Tokenizer]) -> None:
    async def both(service: ModelService) -> list[int]:
        question = Question(prompt=[1] * 70, options={"max_tokens": 1})
        owners = ("one", "two", "", "one")
        return [(await heard(service, question, call=call(owner)))[0].told.cached_tokens for owner in owners]

    assert run(service(random), both) == [0, 0, 0, 64]


LOOK = {"properties": {"at": {"enum": [70, 80]}, "far": {"enum": [1, 2.5]}}}
LOOK |= {"type": "object", "required": ["at", "far"], "additionalProperties": False}
LOOKING = [{"type": "function", "function": {"name": "look", "parameters": LOOK}}]
TERSE = LFM25.replace("message.thinking is defined", "false").replace("<think>", "")
BLOCK = 16


def conversation(turn: Heard, result: str) -> list[dict[str, Any]]:
    """After a turn, as a client sends it back: calls in OpenAI's form, arguments written anew, no reasoning."""
    calls = [
        {"id": "call_0", "type": "function", "function": {"name": made.name, "arguments": compact(made.arguments)}}
        for made in turn.answer.tool_calls
    ]
    assert calls
    answer = {"role": "assistant", "content": turn.answer.content or None, "tool_calls": calls}
    return [*FIRST, answer, {"role": "tool", "tool_call_id": "call_0", "content": result}]


FIRST = [{"role": "system", "content": "You look at things."}, {"role": "user", "content": "What is it?"}]


def compact(arguments: str) -> str:
    return json.dumps(json.loads(arguments), separators=(",", ":"))


@pytest.mark.parametrize(("template", "reaches"), [(TERSE, "the answer's end"), (CHATML, "the answer's beginning")])
def test_an_agents_next_turn_runs_what_is_new_and_less_than_a_block(
    tmp_path: Path, template: str, reaches: str
) -> None:
    """Where the template writes a call as the model did, also the call is known; CHATML begins it with a line."""

    async def agent(service: ModelService) -> None:
        called = {"tool_choice": {"type": "function", "function": {"name": "look"}}, "temperature": 0.0}
        (first,) = await heard(service, Question(FIRST, tools=LOOKING, options=called))
        told = first.told
        known = told.prompt_tokens + (told.completion_tokens if reaches == "the answer's end" else 0)
        for result in ("It is high above.", "It is high and low."):  # the second is an edit of the first
            question = Question(conversation(first, result), tools=LOOKING, options={"max_tokens": 1})
            second = (await heard(service, question))[0].told
            assert second.cached_tokens >= (known - 1) // BLOCK * BLOCK
            before, _, after = service._tokenizer.decode(service._renderer.render([question])[0].prompt).partition(
                " above"
            )
            known = len(service._tokenizer.encode(before, add_special_tokens=False)) if after else known

    loaded = load(tiny_folder(tmp_path / "m", template=template, max_position_embeddings=4096))
    run(service(loaded), agent)
