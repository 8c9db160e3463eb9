"""Conversations with tiny models, checked against runs from scratch."""

from collections.abc import Generator
from functools import cache as remembered
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np

from afmoe_mlx import load
from afmoe_mlx.chat import Conversation
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


def checked(conversation: Conversation, chunks: Generator[Any, None, None]) -> str:
    """An answer, each of its tokens the likeliest by the logits of its prompt and itself run from scratch."""
    came = list(chunks)
    model, tokenizer = conversation.model, conversation.tokenizer
    messages = [{"role": m["role"], "content": m["content"]} for m in conversation.messages[:-1]]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **conversation.template_variables)
    answer = [chunk.token for chunk in came]
    logits = np.array(model(mx.array([prompt + answer])))[0, len(prompt) - 1 : -1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    cached = np.stack([np.array(chunk.logprobs) for chunk in came])
    assert np.abs(cached - logprobs).max() < 1e-4
    assert (logits.max(-1) - logits[np.arange(len(answer)), answer]).max() < 1e-4
    return "".join(chunk.text for chunk in came)
