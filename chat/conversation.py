"""A conversation with a model: the messages are the truth, the cache only saves work."""

from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

from afmoe_mlx.cache import PrefixStore, shared_prefix
from afmoe_mlx.generation import GenerationChunk, stream_generate
from afmoe_mlx.generation.loop import Progress
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer


class Conversation:
    """Renders every prompt from the whole message list and runs only what is not known of it.

    That is what the cache holds, or can step back to, and what the store has of this conversation and others.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        system_prompt: str | None = None,
        options: Mapping[str, Any],
        store: PrefixStore | None = None,
    ) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, dict(options)
        self.system_prompt, self.store = system_prompt, store
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system prompt; an answer under way is not kept either."""
        self._turn = object()
        self.messages: list[dict[str, Any]] = []
        if self.system_prompt is not None:
            self.messages.append({"role": "system", "content": self.system_prompt})
        self._cache = self.model.make_cache()
        self._cached: list[int] = []  # the tokens that the cache has seen
        self.tokens_run = 0  # prompt tokens of the last answer that were not known

    def reply(self, text: str, *, on_progress: Progress | None = None) -> Generator[GenerationChunk, None, None]:
        """Stream the answer to a message, and keep both; what came of an answer closed before its end is kept too.

        A message that cannot be answered (InputError, TokenizerError) leaves the conversation as it was.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        tokens = self.tokenizer.apply_chat_template(messages)
        reused = self._reuse(tokens)
        seen, rest = tokens[:reused], tokens[reused:]
        chunks = stream_generate(
            self.model,
            self.tokenizer,
            rest,
            cache=self._cache,
            seen=seen,
            store=self.store,
            on_progress=on_progress,
            **self.options,
        )
        self.tokens_run = len(rest)
        return self._keep(messages, tokens, chunks)

    def _keep(
        self, messages: list[dict[str, Any]], tokens: list[int], chunks: Generator[GenerationChunk, None, None]
    ) -> Generator[GenerationChunk, None, None]:
        parts: list[str] = []
        seen = list(tokens)
        turn = self._turn = object()
        try:
            with closing(chunks):
                for chunk in chunks:
                    parts.append(chunk.text)
                    seen.append(chunk.token)
                    yield chunk
        finally:
            if self._turn is turn:
                self._finish(messages, seen, parts)

    def _finish(self, messages: list[dict[str, Any]], seen: list[int], parts: list[str]) -> None:
        """Keep what came of an answer; seen: the tokens of its prompt and its own."""
        # an interruption may have left a token in the cache that was never handed out
        self._cached = seen[: self._cache.offset]
        if self.store is not None:
            self.store.insert(self._cached, self._cache, marks=[self._opening()])
        if parts:
            self.messages = [*messages, {"role": "assistant", "content": "".join(parts)}]

    def _opening(self) -> int:
        """How many tokens every conversation with this system prompt begins with."""
        system = [message for message in self.messages[:1] if message["role"] == "system"]
        first, second = (
            self.tokenizer.apply_chat_template([*system, {"role": "user", "content": content}]) for content in "ab"
        )
        return shared_prefix(first, second)

    def _reuse(self, tokens: list[int]) -> int:
        """Bring the cache to the longest prefix of `tokens` that is known, less one to run; how long that is."""
        common = shared_prefix(self._cached[: self._cache.offset], tokens[:-1])
        surplus = self._cache.offset - common
        is_near = surplus <= self._cache.rewindable
        if self.store is not None and self.store.reach(tokens) > (common if is_near else -1):
            self._cache, common = self.store.lookup(tokens)
        elif is_near:
            self._cache.rewind(surplus)
        else:
            self._cache, common = self.model.make_cache(), 0
        self._cached = tokens[:common]
        return common
