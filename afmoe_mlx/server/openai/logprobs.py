"""Log-probabilities as chat completions have them, and as completions do."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ..question import TokenLogprob

LEAST = -9999.0
"""In place of what JSON has not: that of a token that cannot come."""


def of_chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Tokens of content in a chat completion."""
    return {"content": [_entry(token) | {"top_logprobs": [_entry(top) for top in token.top]} for token in tokens]}


def of_text(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Tokens in a completion; offset: in characters, where the first begins in the answer's text."""
    texts = [_text(token) for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [_value(token) for token in tokens],
        "top_logprobs": [{_text(top): _value(top) for top in token.top} for token in tokens],
        "text_offset": [*accumulate(map(len, texts), initial=offset)][:-1],
    }


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {"token": _text(token), "logprob": _value(token), "bytes": list(token.text)}


def _value(token: TokenLogprob) -> float:
    return max(token.logprob, LEAST)


def _text(token: TokenLogprob) -> str:
    """A token's text; of one that is part of a character, its bytes, as OpenAI writes them."""
    try:
        return token.text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.text)
