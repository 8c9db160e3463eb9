"""Generation: prefill, the decode loop, sampling and stopping."""

from .chunks import GenerationChunk
from .drafts import DraftModel, PromptLookup, check_same_tokenizer
from .grammar import RULES, ConstraintOptions
from .loop import decode, prefill
from .options import NO_LIMIT, SamplingOptions, StoppingOptions, unused_keys
from .processors import make_logits_processors
from .prompt import encode_prompt
from .sampling import make_sampler
from .stopping import StopStrings
from .stream import check_options, generate, stream_generate

__all__ = [
    "NO_LIMIT",
    "RULES",
    "ConstraintOptions",
    "DraftModel",
    "GenerationChunk",
    "PromptLookup",
    "SamplingOptions",
    "StopStrings",
    "StoppingOptions",
    "check_options",
    "check_same_tokenizer",
    "decode",
    "encode_prompt",
    "generate",
    "make_logits_processors",
    "make_sampler",
    "prefill",
    "stream_generate",
    "unused_keys",
]
