"""`--draft-model`: the draft model of speculative decoding, loaded."""

from collections.abc import Mapping
from typing import Any

from ..api import load
from ..generation import DraftModel, check_same_tokenizer
from ..generation.drafts import NUM_DRAFT_TOKENS
from ..tokenizer import Tokenizer


def with_draft_model(options: Mapping[str, Any], name: str | None, tokenizer: Tokenizer, *, force: bool) -> Any:
    """Options of `stream_generate`, with the draft model of this name, if any; InputError if its tokenizer is another.

    force: load it even if it does not fit in memory.
    """
    if name is None:
        return options
    model, its_tokenizer = load(name, force=force)
    check_same_tokenizer(tokenizer, its_tokenizer)
    return {**options, "draft_model": DraftModel(model, options.get("num_draft_tokens", NUM_DRAFT_TOKENS))}
