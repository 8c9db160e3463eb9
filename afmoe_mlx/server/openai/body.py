"""`AnswerBody`: the fields that chat completions and completions share, and the options that they come to."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ...generation import THE_ANSWER
from ..endpoint import Body
from ..fields import WHOLE, Count, Fields, Flag, Integer, Limit, Number, Share, StopTexts, Temperature
from .hints import HINTS

MOST_ANSWERS = 128
"""To one request."""
_STRIDE = 0x9E3779B97F4A7C15  # of seeds: far apart, and different for as many answers as there are

Penalty = Annotated[Number, Field(ge=-2, le=2)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]

# Passed on as they are: what the request does not say is left to the model's generation_config.json.
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "repetition_context_size",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
)


class StreamOptions(Fields):
    """What else a stream tells. Padding against listeners, `include_obfuscation`, is not among it."""

    include_usage: Flag | None = None
    include_obfuscation: Flag | None = None


class AnswerBody(Body):
    """How many answers, how their tokens are chosen, where they end, how they are told."""

    HINTS: ClassVar[Mapping[str, str]] = HINTS

    model: str | None = None
    n: Annotated[Integer, Field(ge=1, le=MOST_ANSWERS), WHOLE] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[Number, Field(gt=0)] | None = None
    repetition_context_size: Count | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**64), WHOLE] | None = None
    stop: StopTexts | None = None

    @property
    def answers(self) -> int:
        """To each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def limit(self) -> int | None:
        """Tokens of an answer, as it was asked for."""
        return self.max_tokens

    def options(self, choice: int) -> dict[str, Any]:
        """Those of `stream_generate`, for the answer of this number to a prompt: with a seed each has its own."""
        found = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if "repetition_penalty" in found:
            found.setdefault("repetition_context_size", 0)
        for name in ("presence", "frequency"):
            if f"{name}_penalty" in found:
                found[f"{name}_context_size"] = THE_ANSWER
        if self.limit is not None:
            found["max_tokens"] = self.limit
        if self.seed is not None:
            found["seed"] = (self.seed + choice * _STRIDE) % 2**64
        return found
