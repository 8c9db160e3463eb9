"""The conversation: its messages are the truth, and what is known of it is not computed again."""

from collections.abc import Generator
from contextlib import suppress
from functools import cache as remembered
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from fake_engine import FakeConversation
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tiny import ARCHITECTURES, TEMPLATE, tiny_folder

from afmoe_mlx import generate, load
from afmoe_mlx.cache import KVQuantization, PrefixStore, shared_prefix
from afmoe_mlx.chat import Conversation
from afmoe_mlx.chat.conversation.waypoints import Waypoints
from afmoe_mlx.errors import ContextFullError, InputError, TokenizerError

# Small beside the answers, so that caches have dropped what came before them; the rest in proportion.
SLACK, CHUNK, ANSWER = 32, 16, 40

THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content.split('</think>')[-1] if message.role == 'assistant' else message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n' if enable_thinking is not defined or enable_thinking }}{% endif %}"
)


@remembered
def loaded_model(model_type: str, template: str = TEMPLATE, **changes: Any) -> Any:
    with TemporaryDirectory() as folder:
        tiny_folder(Path(folder), model_type, template=template, max_position_embeddings=2048, **changes)
        model, tokenizer = load(folder)
    make_cache = model.make_cache
    model.make_cache = lambda slack=None: make_cache(SLACK if slack is None else slack)
    tokenizer.eos_token_ids = frozenset()  # so that answers are as long as asked for
    return model, tokenizer


@pytest.fixture(params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest) -> Any:
    return loaded_model(request.param)


def text_of(chunks: Generator[Any, None, None]) -> str:
    return "".join(chunk.text for chunk in chunks)


def roles(conversation: Conversation) -> list[str]:
    return [message["role"] for message in conversation.messages]


def checked(conversation: Conversation, chunks: Generator[Any, None, None]) -> str:
    """An answer, each of its tokens the likeliest by the logits of its prompt and itself run from scratch."""
    came = list(chunks)
    model, tokenizer = conversation.model, conversation.tokenizer
    messages = [{"role": m["role"], "content": m["content"]} for m in conversation.messages[:-1]]
    prompt = tokenizer.apply_chat_template(messages, **conversation.template_variables)
    answer = [chunk.token for chunk in came]
    logits = np.array(model(mx.array([prompt + answer])))[0, len(prompt) - 1 : -1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    cached = np.stack([np.array(chunk.logprobs) for chunk in came])
    assert np.abs(cached - logprobs).max() < 1e-4
    assert (logits.max(-1) - logits[np.arange(len(answer)), answer]).max() < 1e-4
    return "".join(chunk.text for chunk in came)


# --- answers


def test_every_answer_is_that_of_the_whole_conversation_run_from_scratch(loaded: Any) -> None:
    conversation = Conversation(*loaded, system_prompt="the world", options={"max_tokens": 12})
    for text in ("hello", "hello to the world", "the"):
        answer = text_of(conversation.reply(text))
        prompt = loaded[1].apply_chat_template(conversation.messages[:-1])
        assert answer == generate(*loaded, prompt, max_tokens=12)
    assert roles(conversation) == ["system"] + ["user", "assistant"] * 3


def test_what_came_of_an_interrupted_answer_is_kept_and_continued_from(loaded: Any) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": 40})
    chunks = conversation.reply("hello")
    came = "".join(next(chunks).text for _ in range(7))
    chunks.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": came, "stopped": True}
    conversation.options["max_tokens"] = 8
    answer = text_of(conversation.reply("the world"))
    prompt = loaded[1].apply_chat_template([{"role": "user", "content": "hello"}, *conversation.messages[1:-1]])
    assert answer == generate(*loaded, prompt, max_tokens=8)


def test_clear_forgets_all_but_the_system_prompt(loaded: Any) -> None:
    conversation = Conversation(*loaded, system_prompt="the world", options={"max_tokens": 4})
    first = text_of(conversation.reply("hello"))
    conversation.clear()
    assert roles(conversation) == ["system"]
    assert text_of(conversation.reply("hello")) == first


def test_an_answer_that_is_dropped_is_kept_as_one_that_is_closed() -> None:
    conversation = FakeConversation(["one two three"])
    for _ in conversation.reply("hello"):
        break
    assert conversation.messages[-1] == {"role": "assistant", "content": "one", "stopped": True}


def test_what_changes_the_conversation_ends_the_answer_under_way() -> None:
    conversation = FakeConversation(["one two three", "four"])
    chunks = conversation.reply("hello")
    next(chunks)
    assert conversation.current_messages == [{"role": "user", "content": "hello"}]
    assert text_of(conversation.reply("and")) == "four"
    assert [message["content"] for message in conversation.messages] == ["hello", "one", "and", "four"]
    assert list(chunks) == []
    chunks = conversation.reply("more")
    next(chunks)
    conversation.clear()
    assert (list(chunks), conversation.messages) == ([], [])


def test_an_answer_never_begun_changes_nothing() -> None:
    conversation = FakeConversation()
    conversation.reply("hello").close()
    conversation.reply("hello")
    assert conversation.messages == conversation.current_messages == []


def test_a_failure_in_the_middle_of_an_answer_keeps_what_came() -> None:
    conversation = FakeConversation([["one", MemoryError()]])
    with pytest.raises(MemoryError):
        list(conversation.reply("hello"))
    assert conversation.messages[-1] == {"role": "assistant", "content": "one", "stopped": True}
    assert conversation.current_messages == conversation.messages


def test_an_answer_is_kept_though_remembering_what_was_computed_is_interrupted(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": ANSWER})

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversation._recall, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(conversation.reply("hello"))
    assert roles(conversation) == ["user", "assistant"]
    checked(conversation, conversation.reply("the world"))


def test_a_failure_before_the_first_word_leaves_the_conversation_as_it_was() -> None:
    conversation = FakeConversation(["fine", [KeyboardInterrupt()], [KeyboardInterrupt()], [KeyboardInterrupt()]])
    list(conversation.reply("hello"))
    before = list(conversation.messages)
    for chunks in (conversation.reply("more"), conversation.regenerate(), conversation.edit("other")):
        with suppress(KeyboardInterrupt):
            list(chunks)
        assert conversation.messages == before


def test_a_message_without_an_answer_is_answered_along_with_the_next() -> None:
    conversation = FakeConversation(["fine"])
    conversation.restore([{"role": "user", "content": "hello"}])
    list(conversation.reply("are you there?"))
    assert [message["content"] for message in conversation.messages] == ["hello\n\nare you there?", "fine"]


def test_a_message_without_an_answer_is_answered_by_regenerate() -> None:
    conversation = FakeConversation(["fine"])
    conversation.restore([{"role": "user", "content": "hello"}])
    list(conversation.regenerate())
    assert [message["content"] for message in conversation.messages] == ["hello", "fine"]


# --- going back: what is computed again is the changed message alone


def stores(model: Any, kind: str) -> PrefixStore | None:
    return {"no store": None, "store": PrefixStore(model, block_size=16)}[kind]


def a_long_talk(loaded: Any, kind: str) -> Conversation:
    """Three turns, each far beyond what a cache can step back by itself."""
    options = {"max_tokens": ANSWER, "prefill_step_size": CHUNK}
    store = stores(loaded[0], kind)
    conversation = Conversation(*loaded, system_prompt="the world", options=options, store=store)
    for text in ("hello to the world", "the world " * 30, "hello " * 20):
        list(conversation.reply(text))
    assert conversation._recall.cache.rewindable < ANSWER
    return conversation


def size(loaded: Any, text: str) -> int:
    """Tokens of a message, and those that the template puts around it."""
    return len(loaded[1].apply_chat_template([{"role": "user", "content": text}]))


KINDS = ("no store", "store")


@pytest.mark.parametrize("kind", KINDS)
def test_regenerate_computes_one_token_of_the_prompt(loaded: Any, kind: str) -> None:
    conversation = a_long_talk(loaded, kind)
    for _ in range(3):
        checked(conversation, conversation.regenerate())
        assert conversation.tokens_run == 1


@pytest.mark.parametrize("kind", KINDS)
def test_edit_computes_the_new_message_alone(loaded: Any, kind: str) -> None:
    conversation = a_long_talk(loaded, kind)
    for text in ("the world, the world", "hello", "to the world " * 20):
        checked(conversation, conversation.edit(text))
        assert conversation.last_user == text
        assert conversation.tokens_run <= size(loaded, text)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_undo_costs_nothing_but_the_next_message(loaded: Any, kind: str, turns: int) -> None:
    conversation = a_long_talk(loaded, kind)
    assert conversation.undo(turns) == turns
    checked(conversation, conversation.reply("says hello"))
    assert conversation.tokens_run <= size(loaded, "says hello")
    assert conversation.turns == 4 - turns


def test_a_turn_runs_only_the_tokens_the_cache_does_not_hold(loaded: Any) -> None:
    tokenizer = loaded[1]
    conversation = Conversation(*loaded, options={"max_tokens": 12})
    list(conversation.reply("hello"))
    for text in ("hello to the world", "the", "world"):
        held = conversation._recall.tokens
        list(conversation.reply(text))
        prompt = tokenizer.apply_chat_template(conversation.messages[:-1])
        common = shared_prefix(held, prompt)
        assert common > 0
        assert conversation.tokens_run == len(prompt) - common


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_answer_is_gone_back_from_as_well(loaded: Any, kind: str) -> None:
    conversation = a_long_talk(loaded, kind)
    chunks = conversation.regenerate()
    for _ in range(ANSWER - 3):
        next(chunks)
    chunks.close()
    checked(conversation, conversation.regenerate())
    assert conversation.tokens_run == 1


def test_places_of_what_was_undone_are_not_gone_back_to(loaded: Any) -> None:
    conversation = a_long_talk(loaded, "no store")
    conversation.undo(3)
    for text in ("says " * 20, "the world, hello " * 3):
        checked(conversation, conversation.reply(text))
        checked(conversation, conversation.regenerate())
        assert conversation.tokens_run == 1


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_reasoning_that_the_template_strips_costs_the_answer_that_it_belongs_to(model_type: str) -> None:
    model, tokenizer = loaded_model(model_type, THINKING_TEMPLATE)
    options = {"max_tokens": ANSWER, "prefill_step_size": CHUNK}
    conversation = Conversation(model, tokenizer, options=options)
    list(conversation.reply("hello to the world " * 10))
    assert conversation.opened == "<think>\n"
    assert conversation.last_answer.startswith("<think>\n")  # type: ignore[union-attr]
    conversation.messages[-1]["content"] += "</think>the world"
    checked(conversation, conversation.reply("hello"))
    assert conversation.tokens_run <= size((0, tokenizer), "the world") + size((0, tokenizer), "hello")
    conversation.template_variables = {"enable_thinking": False, "unknown": 1}
    assert conversation.knows_variable("enable_thinking")
    assert not conversation.knows_variable("unknown")
    list(conversation.regenerate())
    assert conversation.opened == ""
    assert not conversation.last_answer.startswith("<think>")  # type: ignore[union-attr]


@pytest.mark.parametrize(("start", "run"), [(0, 1), (5000, 1), (500, None)])
def test_a_quantized_cache_is_gone_back_in_as_far_as_it_can(start: int, run: int | None) -> None:
    model, tokenizer = loaded_model("afmoe", head_dim=32)
    model.kv_quantization = KVQuantization(8, group_size=32, start=start)
    conversation = Conversation(model, tokenizer, options={"max_tokens": ANSWER, "prefill_step_size": CHUNK})
    list(conversation.reply("hello " * 450))
    list(conversation.regenerate())
    prompt = len(tokenizer.apply_chat_template(conversation.messages[:-1]))
    assert prompt < 500 < prompt + ANSWER
    assert conversation.tokens_run == (run or prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_kept_are_those_of_the_store_and_of_the_places_to_go_back_to(loaded: Any, kind: str) -> None:
    conversation = a_long_talk(loaded, kind)
    stored = 0 if conversation.store is None else conversation.store.nbytes
    assert conversation.kept_bytes > stored
    conversation.clear()
    assert conversation.kept_bytes == (0 if conversation.store is None else conversation.store.nbytes)


def test_places_beyond_their_memory_are_let_go_the_oldest_first() -> None:
    model, _ = loaded_model("afmoe")
    cache = model.make_cache()
    tokens = [i % 40 for i in range(400)]
    waypoints = Waypoints(max_bytes=1 << 40)
    for start in range(0, 400, 20):
        model(mx.array([tokens[start : start + 20]]), cache=cache)
        waypoints.mark(cache, [start + 20])
    assert [waypoints.nearest(cache, place) for place in (19, 20, 399, 400)] == [0, 20, 380, 400]
    waypoints.max_bytes = waypoints.nbytes // 2
    waypoints.mark(cache, [])
    assert waypoints.nbytes <= waypoints.max_bytes
    assert [waypoints.nearest(cache, place) for place in (200, 300, 400)] == [0, 300, 400]
    waypoints.go_back(cache, 300)
    again = model(mx.array([tokens[300:320]]), cache=cache)
    assert np.abs(np.array(again) - np.array(model(mx.array([tokens[:320]])))[:, 300:]).max() < 1e-4


# --- the messages


def test_a_seed_draws_another_answer_each_time_and_the_same_ones_again(loaded: Any) -> None:
    def answers() -> list[str]:
        conversation = Conversation(*loaded, options={"max_tokens": 30, "temperature": 1.0, "seed": 2**64 - 2})
        return [text_of(conversation.reply("hello")), *(text_of(conversation.regenerate()) for _ in range(3))]

    first = answers()
    assert len(set(first)) == 4
    assert answers() == first


def test_the_seed_of_a_message_does_not_depend_on_the_answers_before(loaded: Any) -> None:
    options = {"max_tokens": 30, "temperature": 1.0, "seed": 3}
    conversation = Conversation(*loaded, options=options)
    first = text_of(conversation.reply("hello"))
    list(conversation.regenerate())
    conversation.undo()
    assert text_of(conversation.reply("hello")) == first


def test_it_says_whether_an_answer_drawn_again_is_the_same() -> None:
    assert FakeConversation(options={"max_tokens": 3}).is_greedy
    assert not FakeConversation(options={"max_tokens": 3, "temperature": 0.5}).is_greedy


def test_undo_and_drop_oldest_take_whole_turns() -> None:
    conversation = FakeConversation(["a", "b", "c", "d"], system_prompt="be")
    for text in "1234":
        list(conversation.reply(text))
    assert conversation.undo(0) == conversation.drop_oldest(0) == 0
    assert conversation.undo() == 1
    assert conversation.drop_oldest(1) == 1
    assert [message["content"] for message in conversation.messages] == ["be", "2", "b", "3", "c"]
    assert (conversation.last_user, conversation.last_answer, conversation.turns) == ("3", "c", 2)
    assert conversation.undo(9) == 2
    assert conversation.undo() == conversation.drop_oldest(3) == 0
    assert roles(conversation) == ["system"]
    assert conversation.last_user is conversation.last_answer is None


def test_drop_oldest_can_drop_all() -> None:
    conversation = FakeConversation(["a", "b"])
    list(conversation.reply("1"))
    assert conversation.drop_oldest(5) == 1
    assert conversation.messages == []


@pytest.mark.parametrize("text", ["be kind", None, ""])
def test_the_system_prompt_is_the_first_message_or_none(text: str | None) -> None:
    conversation = FakeConversation(["a"], system_prompt="be")
    list(conversation.reply("1"))
    conversation.set_system(text)
    assert roles(conversation) == ["system", "user", "assistant"][0 if text else 1 :]
    assert conversation.system_prompt == (text or None)


def test_there_must_be_a_message_to_go_back_to() -> None:
    conversation = FakeConversation(system_prompt="be")
    with pytest.raises(InputError, match="no message to answer again: send one"):
        conversation.regenerate()
    with pytest.raises(InputError, match="no message to edit: send one"):
        conversation.edit("hello")


def test_another_model_goes_on_with_the_same_messages() -> None:
    first, other = loaded_model("afmoe"), loaded_model("lfm2_moe")
    conversation = Conversation(*first, options={"max_tokens": 8}, store=PrefixStore(first[0], block_size=8))
    list(conversation.reply("hello"))
    conversation.switch(*other, {"max_tokens": 9}, PrefixStore(other[0], block_size=8))
    checked(conversation, conversation.reply("the world"))
    assert conversation.turns == 2
    conversation.switch(*first, {"max_tokens": 9}, None)
    checked(conversation, conversation.regenerate())


def test_a_model_without_a_template_is_refused_and_the_old_one_stays() -> None:
    conversation = FakeConversation(["a"])
    model, tokenizer = loaded_model("afmoe")
    bare = tokenizer.with_extra_eos([])
    bare._templates = {}
    before = conversation.model
    with pytest.raises(TokenizerError, match="no chat template"):
        conversation.switch(model, bare, {}, None)
    assert conversation.model is before
    assert text_of(conversation.reply("hello")) == "a"


# --- the context


def test_the_context_is_counted_as_it_is_rendered(loaded: Any) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": 5})
    assert (conversation.context_used, conversation.context_limit) == (0, 2048)
    conversation.set_system("the world")
    assert 0 < conversation.context_used < 30
    list(conversation.reply("hello"))
    rendered = loaded[1].apply_chat_template(conversation.messages, add_generation_prompt=False)
    assert conversation.context_used == len(rendered)
    prompt = loaded[1].apply_chat_template([*conversation.messages, {"role": "user", "content": "to"}])
    assert conversation.room_for("to") == 2048 - len(prompt)
    assert conversation.room_for("hello " * 5000) < 0


def test_a_message_that_does_not_fit_says_so_and_leaves_the_conversation_as_it_was(loaded: Any) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": 4}, context=100)
    list(conversation.reply("hello"))
    before = list(conversation.messages)
    for ask in (conversation.reply, conversation.edit):
        with pytest.raises(ContextFullError, match=r"expected fewer than 100, the context: .*drop the oldest turns"):
            ask("hello " * 1000)
        assert conversation.messages == before
    checked(conversation, conversation.reply("the"))


def test_an_answer_ends_with_the_context(loaded: Any) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": 500}, context=100)
    room = conversation.room_for("hello")
    last = list(conversation.reply("hello"))[-1]
    assert (last.finish_reason, last.generation_tokens) == ("length", room)
    assert "stopped" not in conversation.messages[-1]
    with pytest.raises(ContextFullError):
        conversation.reply("the world")
    assert conversation.drop_oldest(1) == 1
    assert conversation.room_for("hello") == room


def test_a_context_longer_than_the_models_is_the_models() -> None:
    assert FakeConversation(context=100).context_limit == 100
    model, tokenizer = loaded_model("afmoe")
    assert Conversation(model, tokenizer, options={}, context=10**6).context_limit == 2048


# --- any sequence of these


class Talk(RuleBasedStateMachine):
    """Whatever was done before, the next answer is that of a fresh conversation with the same messages."""

    texts = st.sampled_from(["hello", "the world", "hello to the world " * 3, "to", "says hello, hello " * 6])

    @initialize(
        model_type=st.sampled_from(ARCHITECTURES),
        system=st.sampled_from([None, "the world", "hello " * 30]),
        answer=st.sampled_from([3, 20, 50]),
        block_size=st.sampled_from([None, 8, 32]),
    )
    def begin(self, model_type: str, system: str | None, answer: int, block_size: int | None) -> None:
        self.options = {"max_tokens": answer, "prefill_step_size": CHUNK}
        self.block_size = block_size
        model, tokenizer = loaded_model(model_type)
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
        model, tokenizer = loaded_model(model_type)
        self.talk.switch(model, tokenizer, self.options, self.store(model))


Talk.TestCase.settings = settings(max_examples=15, stateful_step_count=10, deadline=None)
TestEveryAnswerIsThatOfAFreshConversation = Talk.TestCase
