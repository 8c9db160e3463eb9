"""A prompt as token ids, and the room that it leaves in a model's context."""

from collections.abc import Sequence
from operator import index
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..models import CausalLM
from ..tokenizer import Tokenizer
from .processors import check_token_ids

Prompt = str | Sequence[int] | mx.array


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """A prompt as token ids; a text that already begins with the BOS token gets no second one."""
    if prompt is None:
        raise InputError("the prompt is None: expected text or token ids")
    if isinstance(prompt, str):
        has_bos = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
        return tokenizer.encode(prompt, add_special_tokens=not has_bos)
    if isinstance(prompt, Sequence) and any(isinstance(part, str | Sequence) for part in prompt):
        raise InputError("the prompt is a list of prompts: give them one at a time, or all to batch_generate")
    return as_token_ids(prompt, "the prompt is neither text nor")


def as_token_ids(tokens: Any, refusal: str) -> list[int]:
    """A sequence of integers, or an array (L,) of any library, as numbers of Python; InputError for anything else."""
    try:
        if isinstance(tokens, bytes | bytearray | memoryview):
            raise TypeError
        return [index(token) for token in (tokens.tolist() if hasattr(tokens, "tolist") else tokens)]
    except TypeError:
        raise InputError(f"{refusal} a list of token ids") from None


def room_after(model: CausalLM, tokens: Sequence[int], seen: int = 0) -> int:
    """How many tokens may follow the prompt, which `seen` come before; InputError if it cannot be run itself."""
    if not tokens:
        raise InputError("the prompt is empty: expected at least one token")
    check_token_ids(tokens, model.config.vocab_size, "the prompt")
    context = model.config.max_position_embeddings
    used = seen + len(tokens)
    if used >= context:
        raise InputError(f"the prompt has {used} tokens: expected fewer than {context}, the model's context")
    return context - used
