"""A conversation with a model: the messages are the truth, the cache only saves work."""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from afmoe_mlx.generation import GenerationChunk, stream_generate
from afmoe_mlx.generation.loop import Progress
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer


class Conversation:
    """Renders every prompt from the whole message list and runs only what the cache does not hold of it."""

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer, *, system_prompt: str | None = None, options: Mapping[str, Any]
    ) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, dict(options)
        self.system_prompt = system_prompt
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages: list[dict[str, Any]] = []
        if self.system_prompt is not None:
            self.messages.append({"role": "system", "content": self.system_prompt})
        self._cache = self.model.make_cache()
        self._cached: list[int] = []  # the tokens that the cache has seen
        self.tokens_run = 0  # prompt tokens of the last answer that were not in the cache

    def reply(self, text: str, *, on_progress: Progress | None = None) -> Generator[GenerationChunk, None, None]:
        """Stream the answer to a message, and keep both; what came of an answer closed before its end is kept too.

        A message that cannot be answered (InputError, TokenizerError) leaves the conversation as it was.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        tokens = self.tokenizer.apply_chat_template(messages)
        rest = tokens[self._reuse(tokens) :]
        chunks = stream_generate(
            self.model, self.tokenizer, rest, cache=self._cache, on_progress=on_progress, **self.options
        )
        self.tokens_run = len(rest)
        return self._keep(messages, tokens, chunks)

    def _keep(
        self, messages: list[dict[str, Any]], tokens: list[int], chunks: Iterator[GenerationChunk]
    ) -> Generator[GenerationChunk, None, None]:
        parts: list[str] = []
        seen = list(tokens)
        try:
            for chunk in chunks:
                parts.append(chunk.text)
                seen.append(chunk.token)
                yield chunk
        finally:
            # an interruption may have left a token in the cache that was never handed out
            self._cached = seen[: self._cache.offset]
            if parts:
                self.messages = [*messages, {"role": "assistant", "content": "".join(parts)}]

    def _reuse(self, tokens: list[int]) -> int:
        """Bring the cache to the longest prefix of `tokens` it holds, less one to run; how long that is."""
        held = min(len(self._cached), self._cache.offset)
        common = 0
        while common < min(held, len(tokens) - 1) and tokens[common] == self._cached[common]:
            common += 1
        surplus = self._cache.offset - common
        if surplus > self._cache.rewindable:
            self._cache, common = self.model.make_cache(), 0
        else:
            self._cache.rewind(surplus)
        self._cached = tokens[:common]
        return common
