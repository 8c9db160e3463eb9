"""Generation: prefill, the decode loop, sampling and stopping."""

from .decode import decode, prefill
from .generate import GenerationChunk, encode_prompt, generate, stream_generate
from .sampling import SamplingOptions, make_logits_processors, make_sampler
from .stopping import StopStrings

__all__ = [
    "GenerationChunk",
    "SamplingOptions",
    "StopStrings",
    "decode",
    "encode_prompt",
    "generate",
    "make_logits_processors",
    "make_sampler",
    "prefill",
    "stream_generate",
]
