"""`Conversation`: the messages, and the answers streamed to them; every prompt is rendered from the whole list."""

import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.command_line.experts import WatchedReads
from afmoe_mlx.errors import ContextFullError, InputError, TokenizerError
from afmoe_mlx.generation import NO_LIMIT, GenerationChunk, SamplingOptions, stream_generate
from afmoe_mlx.generation.loop import Progress
from afmoe_mlx.generation.options import SAMPLING
from afmoe_mlx.messages import AnswerReader
from afmoe_mlx.messages.prompts import Message, Prompt, Prompts
from afmoe_mlx.messages.rounds import Call, calls_in, open_calls, readable, result_of
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer

from . import settings
from .recall import Recall
from .turns import last_content, system_of, turn_starts, with_user

Chunks = Generator[GenerationChunk, None, None]


class Conversation:
    """A conversation with a model: every prompt is rendered from the whole list of messages, and only what the
    cache does not hold of it is run.

    messages: the system message if there is one, then turns: a message of the user and its answer. An answer holds all
    that the model wrote, its reasoning too: `Prompts` hands it to the template, which strips that where it should.
    tools: what the model may call, in OpenAI's form. The calls of an answer are `open_calls`, until `add_result` has
    given each its result; then `go_on` streams the next answer of the turn.
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
        self._prompts = Prompts(tokenizer, self.template_variables, self._prompts.tools)
        self.messages = [readable(message, tokenizer) for message in self.messages]
        self._forget()

    def _forget(self) -> None:
        self._recall = Recall(self.model, self.store)
        self._draws = 0  # answers to the last message before this one
        self.reads = WatchedReads(self.model)  # of the last answer's experts
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
        return self._answer(with_user(self.messages, text), on_progress)

    def go_on(self, *, on_progress: Progress | None = None) -> Chunks:
        """Stream the answer to what tools have given; InputError if there is nothing of that; else as `reply`."""
        self._end()
        if not self.messages or self.messages[-1]["role"] != "tool":
            raise InputError("no tool has given anything to answer to")
        return self._answer(self.messages, on_progress)

    def regenerate(self, *, on_progress: Progress | None = None) -> Chunks:
        """Stream another answer to the last message, which takes the place of the one it has once something comes.

        What tools have given for it stays: no call is made again. With a seed, the n-th answer to a message is drawn
        with the seed + n, so that it is another and can be had again; without randomness (`is_greedy`) it is the same.
        InputError if there is no message; else as `reply`.
        """
        self._end()
        self._last_turn("answer again")
        is_answered = self.messages[-1]["role"] == "assistant"
        messages = self.messages[: len(self.messages) - is_answered]
        return self._answer(messages, on_progress, draws=self._draws + is_answered, asked=self.messages)

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
            fewer = ", offer fewer tools" if self.tools else ""
            raise ContextFullError(
                f"the conversation would have {len(prompt.tokens):,} tokens: expected fewer than "
                f"{self.context_limit:,}, the context: shorten the message, drop the oldest turns{fewer} or begin anew"
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
        self.reads = WatchedReads(self.model)
        return stream_generate(
            self.model,
            self.tokenizer,
            tokens[known:],
            cache=self._recall.cache,
            seen=tokens[:known],
            store=self.store,
            on_progress=self.reads.during(self._recall.marking([known, *prompt.places], on_progress)),
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
                if self.tools and not mark:
                    self.messages[-1] |= calls_in("".join(parts), self.opened, messages, self.tokenizer, self.tools)
            system = system_of(self.messages)
            self._recall.finish(seen, marks=[self._prompts.opening(system)] if self.store is not None else [])

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
        self.messages = system_of(self.messages)
        self._forget()

    def restore(self, messages: Sequence[Message]) -> None:
        """Take these messages, of a session, for the conversation."""
        self._end()
        self.messages = [readable(message, self.tokenizer) for message in messages]
        self._draws = 0

    def set_system(self, text: str | None) -> None:
        """Give the conversation another system prompt, or none."""
        self._end()
        system: list[Message] = [{"role": "system", "content": text}] if text else []
        self.messages = [*system, *self.messages[len(system_of(self.messages)) :]]

    def undo(self, turns: int = 1) -> int:
        """Drop the last turns, messages with their answers; how many there were to drop."""
        self._end()
        starts = turn_starts(self.messages)[-turns:] if turns > 0 else []
        if starts:
            self.messages = self.messages[: starts[0]]
        self._draws = 0
        return len(starts)

    def drop_oldest(self, turns: int) -> int:
        """Drop the first turns after the system prompt; how many there were to drop."""
        self._end()
        starts = [*turn_starts(self.messages), len(self.messages)]
        dropped = max(0, min(turns, len(starts) - 1))
        self.messages = [*system_of(self.messages), *self.messages[starts[dropped] :]]
        return dropped

    @property
    def system_prompt(self) -> str | None:
        system = system_of(self.messages)
        return system[0]["content"] if system else None

    @property
    def turns(self) -> int:
        """Messages of the user."""
        return len(turn_starts(self.messages))

    @property
    def last_user(self) -> str | None:
        return last_content(self.messages, "user")

    @property
    def last_answer(self) -> str | None:
        return last_content(self.messages, "assistant")

    def _last_turn(self, wish: str) -> int:
        if not (starts := turn_starts(self.messages)):
            raise InputError(f"there is no message to {wish}: send one first")
        return starts[-1]

    # --- tools

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return self._prompts.tools

    @tools.setter
    def tools(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._end()
        self._prompts.tools = tools

    @property
    def open_calls(self) -> list[Call]:
        """The calls of the last answer that have no result yet."""
        return open_calls(self.messages)

    @property
    def answers_tools(self) -> bool:
        """Whether the last answer is, or would be, to what tools have given."""
        asked = [message["role"] for message in self.messages if message["role"] != "assistant"]
        return asked[-1:] == ["tool"]

    def add_result(self, call: Call, text: str) -> None:
        """Keep what came of a call."""
        self.messages = [*self.messages, result_of(call, text)]

    def reader(self) -> AnswerReader:
        """A reader for the answer that has been begun."""
        return AnswerReader(self.tokenizer, self.tools, beginning=self.opened)

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
        if not turn_starts(self.messages):
            return self._prompts.opening(self.messages) if self.messages else 0
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
        return self.context_limit - self._prompts.count(with_user(self.messages, text), add_generation_prompt=True)

    def knows_variable(self, name: str) -> bool:
        """Whether the chat template mentions a variable, such as enable_thinking."""
        return self._prompts.knows_variable(name)
