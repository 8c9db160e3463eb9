"""A conversation's messages are the truth: answers, edits, interruptions, context."""

from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import generate, load
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.chat import Conversation
from afmoe_mlx.errors import ContextFullError, InputError, TokenizerError
from afmoe_mlx.messages.reasoning import split_thinking
from helpers.conversations import ANSWER, checked, loaded_model
from helpers.fake_engine import FakeConversation
from helpers.tiny import scripted, tiny_folder
from helpers.tiny_tokenizers import rename_special


def text_of(chunks: Generator[Any, None, None]) -> str:
    return "".join(chunk.text for chunk in chunks)


def roles(conversation: Conversation) -> list[str]:
    return [message["role"] for message in conversation.messages]


def test_an_answer_without_a_limit_ends_with_the_context_of_the_conversation() -> None:
    conversation = FakeConversation(["word " * 200], context=100, options={"max_tokens": -1})
    conversation.context = 40
    chunks = list(conversation.reply("hello"))
    assert chunks[-1].finish_reason == "length"
    assert conversation.context_used <= 40 + 2  # the tokens that close the turn


def test_every_answer_is_that_of_the_whole_conversation_run_from_scratch(loaded: Any) -> None:
    conversation = Conversation(*loaded, system_prompt="the world", options={"max_tokens": 12})
    for text in ("hello", "hello to the world", "the"):
        answer = text_of(conversation.reply(text))
        prompt = loaded[1].apply_chat_template(conversation.messages[:-1], add_generation_prompt=True)
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
    asked = [{"role": "user", "content": "hello"}, *conversation.messages[1:-1]]
    prompt = loaded[1].apply_chat_template(asked, add_generation_prompt=True)
    assert answer == generate(*loaded, prompt, max_tokens=8)


def test_reasoning_between_special_tokens_is_told_from_the_answer(tmp_path: Path) -> None:
    folder = rename_special(tiny_folder(tmp_path / "m"), "<s>", "<think>")
    model, tokenizer = load(rename_special(folder, "</s>", "</think>"))
    said = tokenizer.encode("<think>hello</think>world<|im_end|>")
    assert said[0] == tokenizer.token_to_id("<think>")
    conversation = Conversation(model, tokenizer, options={"sampler": scripted(said)})
    assert split_thinking(text_of(conversation.reply("hello"))) == ("hello", "world")


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


def test_a_seed_draws_another_answer_each_time_and_the_same_ones_again(loaded: Any) -> None:
    def answers() -> list[str]:
        conversation = Conversation(*loaded, options={"max_tokens": 12, "temperature": 1.0, "seed": 2**64 - 2})
        return [text_of(conversation.reply("hello")), *(text_of(conversation.regenerate()) for _ in range(3))]

    first = answers()
    assert len(set(first)) == 4
    assert answers() == first


def test_the_seed_of_a_message_does_not_depend_on_the_answers_before(loaded: Any) -> None:
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 3}
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


def test_the_context_is_counted_as_it_is_rendered(loaded: Any) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": 5})
    assert (conversation.context_used, conversation.context_limit) == (0, 2048)
    conversation.set_system("the world")
    assert 0 < conversation.context_used < 30
    list(conversation.reply("hello"))
    rendered = loaded[1].apply_chat_template(conversation.messages)
    assert conversation.context_used == len(rendered)
    asked = [*conversation.messages, {"role": "user", "content": "to"}]
    prompt = loaded[1].apply_chat_template(asked, add_generation_prompt=True)
    assert conversation.room_for("to") == 2048 - len(prompt)
    assert conversation.room_for("hello " * 2000) < 0


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
