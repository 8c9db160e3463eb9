"""Generation: prefill, the decode loop, sampling and stopping."""

from .answers import BatchAnswer, BatchAnswers, BatchStats
from .batch import MAX_ROWS, BatchEngine
from .batch_response import BatchResponse, batch_generate
from .chunks import GenerationChunk
from .drafts import DraftModel, PromptLookup, check_same_tokenizer
from .grammar import CONSTRAINT, RULES, ConstraintOptions, is_constrained
from .loop import decode, prefill
from .options import NO_LIMIT, THE_ANSWER, SamplingOptions, StoppingOptions, unused_keys
from .plan import Plan
from .processors import check_token_ids, make_logits_processors
from .prompt import encode_prompt
from .requests import Chosen, Event, Request, RowSampler, greedy_rows
from .sampling import make_sampler
from .stopping import StopStrings
from .stream import check_options, generate, stream_generate

__all__ = [
    "CONSTRAINT",
    "MAX_ROWS",
    "NO_LIMIT",
    "RULES",
    "THE_ANSWER",
    "BatchAnswer",
    "BatchAnswers",
    "BatchEngine",
    "BatchResponse",
    "BatchStats",
    "Chosen",
    "ConstraintOptions",
    "DraftModel",
    "Event",
    "GenerationChunk",
    "Plan",
    "PromptLookup",
    "Request",
    "RowSampler",
    "SamplingOptions",
    "StopStrings",
    "StoppingOptions",
    "batch_generate",
    "check_options",
    "check_same_tokenizer",
    "check_token_ids",
    "decode",
    "encode_prompt",
    "generate",
    "greedy_rows",
    "is_constrained",
    "make_logits_processors",
    "make_sampler",
    "prefill",
    "stream_generate",
    "unused_keys",
]
