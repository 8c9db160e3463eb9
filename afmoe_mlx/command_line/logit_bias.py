"""`--logit-bias` and `/set logit_bias`: biases of tokens from what was typed."""

import math
from collections.abc import Iterable

from ..errors import InputError


def parse_logit_bias(texts: Iterable[str]) -> dict[int, float]:
    """Biases by token id from texts such as "42=-5", of which a later one wins; InputError for any other."""
    found = {}
    for text in texts:
        token, _, bias = text.partition("=")
        try:
            if not token.strip().isdecimal() or not math.isfinite(float(bias)):
                raise ValueError
            found[int(token)] = float(bias)
        except ValueError:
            raise InputError(f"logit_bias is {text!r}, expected ID=VALUE, a token's id and a number: 42=-5") from None
    return found
