"""Conversations with tiny models, checked against runs from scratch."""

import re
from collections.abc import Generator, Sequence
from functools import cache as remembered
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np

from afmoe_mlx import load
from afmoe_mlx.chat import Conversation
from afmoe_mlx.messages.prompts import Message
from helpers.tiny import TEMPLATE, tiny_folder

# Small beside the answers, so that caches have dropped what came before them; the rest in proportion.
SLACK, CHUNK, ANSWER = 32, 16, 40


@remembered
def loaded_model(model_type: str, template: str = TEMPLATE, **changes: Any) -> Any:
    with TemporaryDirectory() as folder:
        tiny_folder(Path(folder), model_type, template=template, max_position_embeddings=2048, **changes)
        model, tokenizer = load(folder)
    make_cache = model.make_cache
    model.make_cache = lambda slack=None, **more: make_cache(SLACK if slack is None else slack, **more)
    tokenizer.eos_token_ids = frozenset()  # so that answers are as long as asked for
    return model, tokenizer


# What strips reasoning from the content, what reads it from a field, and opens it or not.
STRIPPING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content.split('</think>')[-1] if message.role == 'assistant' else message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n' if enable_thinking is not defined or enable_thinking }}{% endif %}"
)
FIELD = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content is defined %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
OPENING = TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


def handed_over(messages: Sequence[Message], template: str) -> list[Message]:
    """Messages as a template of these wants them."""
    found = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant" and content.startswith("<think>"):
            if "</think>" not in content:
                begun = re.search(r"</(t(h(i(nk?)?)?)?)?\Z|\n\Z", content)
                content = re.sub(r"</\w*\Z", "", content) if begun else content + "\n"
                content += "</think>\n\n"
            thought, _, rest = content.partition("</think>")
            if template == FIELD:
                thought = thought.removeprefix("<think>").strip("\n")
                found.append({"role": role, "reasoning_content": thought, "content": rest.lstrip("\n")})
                continue
        found.append({"role": role, "content": content})
    return found


def checked(conversation: Conversation, chunks: Generator[Any, None, None]) -> str:
    """An answer, each of its tokens the likeliest by the logits of its prompt and itself run from scratch, but those
    with which a reasoning budget has closed its reasoning.
    """
    came = list(chunks)
    model, tokenizer = conversation.model, conversation.tokenizer
    messages = handed_over(conversation.messages[:-1], tokenizer.chat_template)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **conversation.template_variables)
    answer = [chunk.token for chunk in came]
    logits = np.array(model(mx.array([prompt + answer])))[0, len(prompt) - 1 : -1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    cached = np.stack([np.array(chunk.logprobs) for chunk in came])
    assert np.abs(cached - logprobs).max() < 1e-4
    forced = closing_at(conversation, answer)
    missed = logits.max(-1) - logits[np.arange(len(answer)), answer]
    assert np.delete(missed, forced).max(initial=0) < 1e-4
    return "".join(chunk.text for chunk in came)


def use_a_tool(conversation: Conversation, result: str) -> None:
    """Make the last answer one that called a tool, and give it a result."""
    answer = conversation.messages[-1]
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    conversation.messages[-1] = answer | {"written": answer["content"], "tool_calls": [call]}
    (open_call,) = conversation.open_calls
    conversation.add_result(open_call, result)


def closing_at(conversation: Conversation, answer: list[int]) -> list[int]:
    """Where in an answer the tokens stand that closed its reasoning."""
    budget = conversation.options.get("reasoning_budget")
    if budget is None or not conversation.opened or len(answer) <= budget:
        return []
    for closing in map(conversation.tokenizer.encode, ("\n</think>\n\n", "</think>\n\n")):
        if answer[budget : budget + len(closing)] == closing[: len(answer) - budget]:
            return list(range(budget, min(budget + len(closing), len(answer))))
    raise AssertionError(f"not closed after {budget}: {conversation.tokenizer.decode(answer)!r}")
