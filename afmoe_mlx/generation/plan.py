"""`Plan`: what the options of an answer come to with a model and its tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..models import ModelConfig
from ..tokenizer import Tokenizer
from .budget import ReasoningBudget
from .chunks import AnswerChunks
from .constraint import Constraint
from .grammar import ConstraintOptions
from .options import NO_LIMIT, SAMPLING, STOPPING, SamplingOptions, StoppingOptions
from .processors import LogitsProcessor, check_token_ids, make_logits_processors
from .prompt import Prompt, encode_prompt
from .sampling import Sampler, make_sampler
from .speculate import Tally
from .stopping import StopStrings


class Constrained(Protocol):
    """What holds an answer to a constraint."""

    @property
    def constraint(self) -> Constraint | None:
        """How far the answer has come in it."""


@dataclass(frozen=True)
class Plan:
    """How one answer is to be made."""

    tokenizer: Tokenizer
    """Whose ends are the answer's."""
    prompt: list[int]
    sampler: Sampler
    processors: Sequence[LogitsProcessor]
    ending: StoppingOptions
    rules: ConstraintOptions
    skip_special_tokens: bool

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        tokenizer: Tokenizer,
        prompt: Prompt,
        *,
        sampler: Sampler | None = None,
        logits_processors: Sequence[LogitsProcessor] | None = None,
        skip_special_tokens: bool = False,
        seen: Sequence[int] = (),
        rules: ConstraintOptions | None = None,
        **options: Any,
    ) -> "Plan":
        """By the options of `stream_generate`; InputError and TokenizerError for those that make no sense.

        seen: the tokens before the prompt. rules: in place of the options that constrain the answer.
        """
        config, vocab_size = tokenizer.generation_config, model.vocab_size
        sampling, stopping = ({name: options.get(name) for name in names} for names in (SAMPLING, STOPPING))
        chosen = SamplingOptions.from_generation_config(config, **sampling)
        ending = StoppingOptions.from_generation_config(config, **stopping)
        tokenizer = tokenizer.with_extra_eos(ending.extra_eos_token)
        check_token_ids(chosen.logit_bias or (), vocab_size, "logit_bias")
        if isinstance(prompt, str):
            tokenizer.check_length(prompt, model.max_position_embeddings)
        unspoken = {*tokenizer.encode("\n", add_special_tokens=False), *tokenizer.eos_token_ids}
        known = sorted(token for token in unspoken if 0 <= token < vocab_size)  # a config may name others
        tokens = encode_prompt(tokenizer, prompt)
        return cls(
            tokenizer,
            tokens,
            sampler or make_sampler(chosen, xtc_special_tokens=known),
            make_logits_processors(chosen, len(seen) + len(tokens)) if logits_processors is None else logits_processors,
            ending,
            ConstraintOptions.of(options) if rules is None else rules,
            skip_special_tokens,
        )

    def limit(self, room: int) -> int:
        """Tokens that the answer has at most, where so many fit."""
        return room if self.ending.max_tokens == NO_LIMIT else min(int(self.ending.max_tokens), room)

    def budget(self, before: Sequence[int]) -> ReasoningBudget | None:
        """That of the reasoning of an answer after these tokens, if it has one."""
        tokens = self.ending.reasoning_budget
        return None if tokens is None else ReasoningBudget(self.tokenizer, int(tokens), before)

    def chunks(
        self,
        *,
        prompt_tokens: int,
        limit: int,
        cached_tokens: int = 0,
        tally: Tally | None = None,
        held: Constrained | None = None,
    ) -> AnswerChunks:
        """What makes chunks of the answer's tokens. held: by what it is held to its constraint, if it has one."""

        def judge(text: str, reason: str, is_eos: bool) -> tuple[str, str | None]:
            if held is None or (constraint := held.constraint) is None:
                return reason, None
            is_stopped = reason == "stop" and not is_eos  # by a text
            violation = self.rules.violation(text, is_complete=constraint.is_complete and not is_stopped)
            return "length" if constraint.is_cut else reason, violation

        return AnswerChunks(
            self.tokenizer.stream(skip_special_tokens=self.skip_special_tokens),
            self.tokenizer.eos_token_ids,
            StopStrings(self.ending.stop),
            prompt_tokens=prompt_tokens,
            limit=limit,
            cached_tokens=cached_tokens,
            tally=tally,
            judge=judge,
        )
