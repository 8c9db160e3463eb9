"""`Conversation`: the messages, and the answers streamed to them; every prompt is rendered from the whole list."""

import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.errors import ContextFullError, InputError, TokenizerError
from afmoe_mlx.generation import NO_LIMIT, GenerationChunk, SamplingOptions, stream_generate
from afmoe_mlx.generation.loop import Progress
from afmoe_mlx.generation.options import SAMPLING
from afmoe_mlx.messages.prompts import Message, Prompt, Prompts
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer

from . import settings
from .recall import Recall

Chunks = Generator[GenerationChunk, None, None]


class Conversation:
    """A conversation with a model: every prompt is rendered from the whole list of messages, and only what the
    cache does not hold of it is run.

    messages: the system message if there is one, then turns: a message of the user and its answer. An answer holds all
    that the model wrote, its reasoning too: `Prompts` hands it to the template, which strips that where it should.
    context: tokens the conversation may have, if fewer than the model's own context.
    template_variables: what else the chat template sees, of those that it mentions: {"enable_thinking": False}.

    One answer is under way at a time: whatever changes the conversation first ends it, and what came of it is kept.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        system_prompt: str | None = None,
        options: Mapping[str, Any],
        store: PrefixStore | None = None,
        context: int | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._under_way: weakref.ref[Chunks] | None = None
        self._asked: list[Message] = []  # the messages while an answer is under way
        self.messages: list[Message] = []
        self.context = context
        self._prompts = Prompts(tokenizer, dict(template_variables or {}))
        self.switch(model, tokenizer, options, store)
        self.set_system(system_prompt)

    def switch(
        self, model: CausalLM, tokenizer: Tokenizer, options: Mapping[str, Any], store: PrefixStore | None
    ) -> None:
        """Go on with another model; the messages stay. TokenizerError, and nothing changes, if it has no template."""
        if tokenizer.chat_template is None:
            raise TokenizerError("the model has no chat template, so it cannot chat: choose another")
        self._end()
        self.model, self.tokenizer, self.options, self.store = model, tokenizer, dict(options), store
        self._prompts = Prompts(tokenizer, self.template_variables)
        self._forget()

    def _forget(self) -> None:
        self._recall = Recall(self.model, self.store)
        self._draws = 0  # answers to the last message before this one
        self.tokens_run = 0  # prompt tokens of the last answer that were not known
        self.opened = ""  # what of the last answer the template itself wrote: "<think>\n" or nothing

    # --- answers

    def reply(self, text: str, *, on_progress: Progress | None = None) -> Chunks:
        """Stream the answer to a message, and keep both; what came of an answer closed before its end is kept too.

        If the last message has no answer, as when a program was killed, the two are answered as one. The answer ends
        with finish_reason "length" where the context does. ContextFullError for a message that does not fit, InputError
        and TokenizerError for one that cannot be answered: the conversation stays as it was, as it does when nothing
        of the answer came.
        """
        self._end()
        return self._answer(self._with(text), on_progress)

    def regenerate(self, *, on_progress: Progress | None = None) -> Chunks:
        """Stream another answer to the last message, which takes the place of the one it has once something comes.

        With a seed, the n-th answer to a message is drawn with the seed + n, so that it is another and can be had
        again; without randomness (`is_greedy`) it is the same. InputError if there is no message; else as `reply`.
        """
        self._end()
        start = self._last_turn("answer again")
        draws = self._draws + (len(self.messages) > start + 1)
        return self._answer(self.messages[: start + 1], on_progress, draws=draws, asked=self.messages)

    def edit(self, text: str, *, on_progress: Progress | None = None) -> Chunks:
        """Stream the answer to `text` in place of the last message; InputError if there is none; else as `reply`."""
        self._end()
        start = self._last_turn("edit")
        return self._answer([*self.messages[:start], {"role": "user", "content": text}], on_progress)

    @property
    def is_greedy(self) -> bool:
        """Whether an answer drawn again is the same."""
        sampling = {name: self.options.get(name) for name in SAMPLING}
        return SamplingOptions.from_generation_config(self.tokenizer.generation_config, **sampling).temperature == 0

    @property
    def current_messages(self) -> list[Message]:
        """The messages and, while its answer is under way, the one being answered: what a session saves."""
        return self.messages if self._running() is None else self._asked

    def _answer(
        self,
        messages: list[Message],
        on_progress: Progress | None,
        *,
        draws: int = 0,
        asked: list[Message] | None = None,
    ) -> Chunks:
        self.tokenizer.check_length(messages[-1]["content"], self.context_limit)
        prompt = self._prompts.prompt(messages)
        if (room := self.context_limit - len(prompt.tokens)) <= 0:
            raise ContextFullError(
                f"the conversation would have {len(prompt.tokens):,} tokens: expected fewer than "
                f"{self.context_limit:,}, the context: shorten the message, drop the oldest turns or begin anew"
            )
        limit = settings.max_tokens(self.options, self.tokenizer.generation_config)
        options = self.options | {"max_tokens": room if limit == NO_LIMIT else min(limit, room)}
        if options.get("seed") is not None:
            options["seed"] = (options["seed"] + draws) % 2**64
        chunks = self._stream(prompt, options, on_progress)
        self._draws, self.opened = draws, prompt.opened
        self._asked = messages if asked is None else asked
        answer = self._keep(messages, prompt.tokens, chunks)
        self._under_way = weakref.ref(answer)
        return answer

    def _stream(self, prompt: Prompt, options: Mapping[str, Any], on_progress: Progress | None) -> Chunks:
        tokens = prompt.tokens
        known = self._recall.begin(tokens)
        self.tokens_run = len(tokens) - known
        return stream_generate(
            self.model,
            self.tokenizer,
            tokens[known:],
            cache=self._recall.cache,
            seen=tokens[:known],
            store=self.store,
            on_progress=self._recall.marking([known, *prompt.places], on_progress),
            **options,
        )

    def _keep(self, messages: list[Message], tokens: list[int], chunks: Chunks) -> Chunks:
        parts: list[str] = []
        seen, reason = list(tokens), None
        try:
            with closing(chunks):
                for chunk in chunks:
                    parts.append(chunk.text)
                    seen.append(chunk.token)
                    reason = chunk.finish_reason
                    yield chunk
        finally:
            self._under_way = None
            if parts:  # before anything that another Ctrl-C could interrupt
                answer: Message = {"role": "assistant", "content": self.opened + "".join(parts)}
                mark: Message = {None: {"stopped": True}, "length": {"cut_off": True}}.get(reason, {})
                self.messages = [*messages, answer | mark]
            self._recall.finish(seen, marks=[self._prompts.opening(self._system)] if self.store is not None else [])

    def _running(self) -> Chunks | None:
        return None if self._under_way is None else self._under_way()

    def _end(self) -> None:
        """End an answer under way; what came of it is kept."""
        if (answer := self._running()) is not None:
            answer.close()
        self._under_way = None

    # --- messages

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self._end()
        self.messages = self._system
        self._forget()

    def restore(self, messages: Sequence[Message]) -> None:
        """Take these messages, of a session, for the conversation."""
        self._end()
        self.messages = [dict(message) for message in messages]
        self._draws = 0

    def set_system(self, text: str | None) -> None:
        """Give the conversation another system prompt, or none."""
        self._end()
        system: list[Message] = [{"role": "system", "content": text}] if text else []
        self.messages = [*system, *self.messages[len(self._system) :]]

    def undo(self, turns: int = 1) -> int:
        """Drop the last turns, messages with their answers; how many there were to drop."""
        self._end()
        starts = self._turn_starts()[-turns:] if turns > 0 else []
        if starts:
            self.messages = self.messages[: starts[0]]
        self._draws = 0
        return len(starts)

    def drop_oldest(self, turns: int) -> int:
        """Drop the first turns after the system prompt; how many there were to drop."""
        self._end()
        starts = [*self._turn_starts(), len(self.messages)]
        dropped = max(0, min(turns, len(starts) - 1))
        self.messages = [*self._system, *self.messages[starts[dropped] :]]
        return dropped

    @property
    def system_prompt(self) -> str | None:
        return self._system[0]["content"] if self._system else None

    @property
    def turns(self) -> int:
        """Messages of the user."""
        return len(self._turn_starts())

    @property
    def last_user(self) -> str | None:
        return self._last("user")

    @property
    def last_answer(self) -> str | None:
        return self._last("assistant")

    @property
    def _system(self) -> list[Message]:
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def _with(self, text: str) -> list[Message]:
        """The messages with one more of the user's."""
        before = self.messages
        if before and before[-1]["role"] == "user":  # most templates refuse two in a row
            before, text = before[:-1], f"{before[-1]['content']}\n\n{text}"
        return [*before, {"role": "user", "content": text}]

    def _last(self, role: str) -> str | None:
        return next((message["content"] for message in reversed(self.messages) if message["role"] == role), None)

    def _turn_starts(self) -> list[int]:
        return [i for i, message in enumerate(self.messages) if message["role"] == "user"]

    def _last_turn(self, wish: str) -> int:
        if not (starts := self._turn_starts()):
            raise InputError(f"there is no message to {wish}: send one first")
        return starts[-1]

    # --- tokens

    @property
    def template_variables(self) -> dict[str, Any]:
        return self._prompts.variables

    @template_variables.setter
    def template_variables(self, variables: Mapping[str, Any]) -> None:
        self._prompts.variables = dict(variables)

    @property
    def context_limit(self) -> int:
        """Tokens that the conversation and the answer under way may have together."""
        own = self.model.config.max_position_embeddings
        return own if self.context is None else min(own, self.context)

    @property
    def context_used(self) -> int:
        """Tokens of the whole conversation, as it is rendered now."""
        if not self._turn_starts():
            return self._prompts.opening(self._system) if self.messages else 0
        return self._prompts.count(self.messages, add_generation_prompt=False)

    @property
    def kept_bytes(self) -> int:
        """What is held in memory to come back to this conversation and others, the cache in use aside."""
        return self._recall.nbytes

    def room_for(self, text: str) -> int:
        """Tokens left for the answer to a message; none, or negative, when the message does not fit.

        ContextFullError for a message that is longer than the context by itself.
        """
        self.tokenizer.check_length(text, self.context_limit)
        return self.context_limit - self._prompts.count(self._with(text), add_generation_prompt=True)

    def knows_variable(self, name: str) -> bool:
        """Whether the chat template mentions a variable, such as enable_thinking."""
        return self._prompts.knows_variable(name)
