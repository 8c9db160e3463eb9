"""Whatever is done with a conversation, every answer is that of a fresh one."""

from contextlib import suppress
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.chat import Conversation
from afmoe_mlx.errors import ContextFullError, InputError
from helpers.conversations import CHUNK, FIELD, OPENING, STRIPPING, checked, loaded_model, use_a_tool
from helpers.tiny import ARCHITECTURES, TEMPLATE


class Talk(RuleBasedStateMachine):
    """Whatever was done before, the next answer is that of a fresh conversation with the same messages."""

    texts = st.sampled_from(["hello", "the world", "hello to the world " * 3, "to", "says hello, hello " * 6])

    @initialize(
        model_type=st.sampled_from(ARCHITECTURES),
        system=st.sampled_from([None, "the world", "hello " * 30]),
        answer=st.sampled_from([3, 20, 50]),
        block_size=st.sampled_from([None, 8, 32]),
        template=st.sampled_from([TEMPLATE, OPENING, STRIPPING, FIELD]),
        budget=st.sampled_from([None, 0, 5]),
    )
    def begin(
        self,
        model_type: str,
        system: str | None,
        answer: int,
        block_size: int | None,
        template: str,
        budget: int | None,
    ) -> None:
        self.options = {"max_tokens": answer, "prefill_step_size": CHUNK, "reasoning_budget": budget}
        self.block_size, self.template = block_size, template
        model, tokenizer = loaded_model(model_type, template)
        self.talk = Conversation(
            model, tokenizer, system_prompt=system, options=self.options, store=self.store(model), context=900
        )

    def store(self, model: Any) -> PrefixStore | None:
        return None if self.block_size is None else PrefixStore(model, block_size=self.block_size)

    def answered(self, ask: Any, *arguments: str) -> None:
        try:
            chunks = ask(*arguments)
        except ContextFullError:
            self.talk.drop_oldest(2)
        except InputError:
            assert self.talk.turns == 0
        else:
            checked(self.talk, chunks)
            assert len(self.talk._recall.tokens) == self.talk._recall.cache.offset

    @rule(text=texts)
    def reply(self, text: str) -> None:
        self.answered(self.talk.reply, text)

    @rule(text=texts)
    def edit(self, text: str) -> None:
        self.answered(self.talk.edit, text)

    @rule()
    def regenerate(self) -> None:
        self.answered(self.talk.regenerate)

    @rule(text=texts)
    def use_a_tool(self, text: str) -> None:
        if self.talk.messages and self.talk.messages[-1]["role"] == "assistant":
            use_a_tool(self.talk, text)
            self.answered(self.talk.go_on)

    @rule(text=texts, after=st.integers(0, 30))
    def interrupt(self, text: str, after: int) -> None:
        with suppress(ContextFullError):
            for count, _ in enumerate(self.talk.reply(text)):
                if count == after:
                    break

    @rule(turns=st.integers(1, 3))
    def undo(self, turns: int) -> None:
        self.talk.undo(turns)

    @rule(turns=st.integers(1, 2))
    def drop_oldest(self, turns: int) -> None:
        self.talk.drop_oldest(turns)

    @rule()
    def clear(self) -> None:
        self.talk.clear()

    @rule(text=st.sampled_from([None, "hello", "the world"]))
    def set_system(self, text: str | None) -> None:
        self.talk.set_system(text)

    @rule(model_type=st.sampled_from(ARCHITECTURES))
    def switch(self, model_type: str) -> None:
        model, tokenizer = loaded_model(model_type, self.template)
        self.talk.switch(model, tokenizer, self.options, self.store(model))


Talk.TestCase.settings = settings(max_examples=9, stateful_step_count=10, deadline=None)

TestEveryAnswerIsThatOfAFreshConversation = Talk.TestCase
