"""A conversation whose answers are written beforehand: all of the chat's engine but the model."""

import re
import zlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx

from afmoe_mlx.chat.conversation.conversation import Conversation
from afmoe_mlx.generation import GenerationChunk
from afmoe_mlx.generation.loop import Progress
from afmoe_mlx.messages.prompts import Prompt

Script = str | Sequence[str | BaseException]
"""An answer, cut into words, or its pieces as they are; an exception is raised where it stands."""


class FakeTokenizer:
    """A token a word, a blank or a run of blanks; messages are rendered as `<role>content</>`."""

    chat_template = tool_template = "enable_thinking decides whether the answer begins with <think>"
    generation_config: dict[str, Any] = {}  # noqa: RUF012
    eos_token_ids = frozenset({0})

    def __init__(self, *, opens_thinking: bool = False) -> None:
        self.opens_thinking = opens_thinking

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [zlib.crc32(piece.encode()) % 1000 + 1 for piece in pieces(text)]

    def check_length(self, text: str, context: int) -> None:
        """Nothing is certain before a text is encoded."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        enable_thinking: bool = True,
    ) -> Any:
        text = "".join(f"<{message['role']}> {message['content']} </> " for message in messages)
        if add_generation_prompt:
            text += "<assistant> " + ("<think>\n" if self.opens_thinking and enable_thinking else "")
        return self.encode(text) if tokenize else text


class FakeModel:
    """A context, and caches that count."""

    def __init__(self, context: int = 4096) -> None:
        self.config = SimpleNamespace(max_position_embeddings=context, vocab_size=1001)

    def make_cache(self, slack: int | None = None) -> "FakeCache":
        return FakeCache()


class FakeCache:
    """Holds nothing, and can step back to anywhere."""

    layers = ()

    def __init__(self) -> None:
        self.offset = self.changes = 0

    @property
    def rewindable(self) -> int:
        return self.offset

    def rewind(self, n: int) -> None:
        self.offset -= n


class FakeConversation(Conversation):
    """Answers from `answers`, one after the other, then with "You said: …"; all else is the real one's.

    prompts: the tokens of each prompt that was answered. An answer longer than max_tokens or the context ends with
    "length". `FakeConversation(["one two", ["thr", KeyboardInterrupt()]])`
    """

    def __init__(
        self,
        answers: Iterable[Script] = (),
        *,
        context: int = 4096,
        options: Mapping[str, Any] | None = None,
        opens_thinking: bool = False,
        **more: Any,
    ) -> None:
        self.answers = list(answers)
        self.prompts: list[list[int]] = []
        tokenizer: Any = FakeTokenizer(opens_thinking=opens_thinking)
        model: Any = FakeModel(context)
        super().__init__(model, tokenizer, options=options or {"max_tokens": 2048}, **more)

    def _stream(
        self, prompt: Prompt, options: Mapping[str, Any], on_progress: Progress | None
    ) -> Generator[GenerationChunk, None, None]:
        known = self._recall.begin(prompt.tokens)
        self.tokens_run = len(prompt.tokens) - known
        return self._script(prompt.tokens, known, options["max_tokens"], on_progress)

    def _script(
        self, tokens: list[int], known: int, limit: int, on_progress: Progress | None
    ) -> Generator[GenerationChunk, None, None]:
        self.prompts.append(tokens)
        script = self.answers.pop(0) if self.answers else f"You said: {len(tokens)} tokens"
        answer = pieces(script) if isinstance(script, str) else list(script)
        for done in (0, len(tokens) - known):
            if on_progress is not None:
                on_progress(done, len(tokens) - known)
        cache: Any = self._recall.cache
        cache.offset = len(tokens)
        for count, piece in enumerate(answer, 1):
            if isinstance(piece, BaseException):
                raise piece
            reason = "stop" if count == len(answer) else "length" if count == limit else None
            yield chunk(piece, count, reason, prompt_tokens=len(tokens), cached_tokens=known)
            cache.offset += 1
            if reason:
                return


def pieces(text: str) -> list[str]:
    return re.findall(r"\s+|\S+", text)


def chunk(
    text: str, count: int, finish_reason: str | None = None, *, prompt_tokens: int = 10, cached_tokens: int = 0
) -> GenerationChunk:
    """A chunk at 50 tokens/s, read at 500."""
    return GenerationChunk(
        text=text,
        token=zlib.crc32(text.encode()) % 1000 + 1,
        logprobs=mx.zeros(1),
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        prompt_tps=500.0,
        generation_tokens=count,
        generation_tps=50.0,
        peak_memory_gb=0.1,
        cached_tokens=cached_tokens,
    )
