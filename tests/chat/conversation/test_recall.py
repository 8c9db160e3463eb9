"""What is known of a conversation is not computed again, however it is gone back in."""

from copy import deepcopy
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx.cache import KVQuantization, PrefixStore, shared_prefix
from afmoe_mlx.chat import Conversation
from afmoe_mlx.chat.conversation.waypoints import Waypoints
from helpers.conversations import ANSWER, CHUNK, FIELD, OPENING, STRIPPING, checked, loaded_model, use_a_tool
from helpers.tiny import ARCHITECTURES


@pytest.fixture(scope="module", params=["no store", "store"])
def said(loaded: Any, request: pytest.FixtureRequest) -> Conversation:
    """Three turns, each far beyond what a cache can step back by itself."""
    options = {"max_tokens": ANSWER, "prefill_step_size": CHUNK}
    store = PrefixStore(loaded[0], block_size=16) if request.param == "store" else None
    conversation = Conversation(*loaded, system_prompt="the world", options=options, store=store)
    for text in ("hello to the world", "the world " * 30, "hello " * 20):
        list(conversation.reply(text))
    assert conversation._recall.cache.rewindable < ANSWER
    return conversation


@pytest.fixture
def talk(loaded: Any, said: Conversation) -> Conversation:
    """A copy of that conversation, with the same model."""
    return deepcopy(said, {id(part): part for part in loaded})


def size(loaded: Any, text: str) -> int:
    """Tokens of a message, and those that the template puts around it."""
    return len(loaded[1].apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True))


def test_regenerate_computes_one_token_of_the_prompt(talk: Conversation) -> None:
    for _ in range(2):
        checked(talk, talk.regenerate())
        assert talk.tokens_run == 1


def test_edit_computes_the_new_message_alone(loaded: Any, talk: Conversation) -> None:
    for text in ("the world, the world", "hello", "to the world " * 20):
        checked(talk, talk.edit(text))
        assert talk.last_user == text
        assert talk.tokens_run <= size(loaded, text)


@pytest.mark.parametrize("turns", [1, 3])
def test_undo_costs_nothing_but_the_next_message(loaded: Any, talk: Conversation, turns: int) -> None:
    assert talk.undo(turns) == turns
    checked(talk, talk.reply("says hello"))
    assert talk.tokens_run <= size(loaded, "says hello")
    assert talk.turns == 4 - turns


def test_a_turn_runs_only_the_tokens_the_cache_does_not_hold(loaded: Any) -> None:
    tokenizer = loaded[1]
    conversation = Conversation(*loaded, options={"max_tokens": 12})
    list(conversation.reply("hello"))
    for text in ("hello to the world", "the", "world"):
        held = conversation._recall.tokens
        list(conversation.reply(text))
        prompt = tokenizer.apply_chat_template(conversation.messages[:-1], add_generation_prompt=True)
        common = shared_prefix(held, prompt)
        assert common > 0
        assert conversation.tokens_run == len(prompt) - common


def test_a_round_with_a_tool_runs_only_the_tokens_the_cache_does_not_hold(loaded: Any) -> None:
    conversation = Conversation(*loaded, options={"max_tokens": 12})
    list(conversation.reply("hello"))
    for result in ("hello to the world", "the"):
        held = conversation._recall.tokens
        use_a_tool(conversation, result)
        checked(conversation, conversation.go_on())
        prompt = loaded[1].apply_chat_template(conversation.messages[:-1], add_generation_prompt=True)
        assert conversation.tokens_run == len(prompt) - shared_prefix(held, prompt)
    checked(conversation, conversation.regenerate())
    assert conversation.tokens_run == 1


def test_an_interrupted_answer_is_gone_back_from_as_well(talk: Conversation) -> None:
    chunks = talk.regenerate()
    for _ in range(ANSWER - 3):
        next(chunks)
    chunks.close()
    checked(talk, talk.regenerate())
    assert talk.tokens_run == 1


@pytest.mark.parametrize("said", ["no store"], indirect=True)
def test_places_of_what_was_undone_are_not_gone_back_to(talk: Conversation) -> None:
    talk.undo(3)
    for text in ("says " * 20, "the world, hello " * 3):
        checked(talk, talk.reply(text))
        checked(talk, talk.regenerate())
        assert talk.tokens_run == 1


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_reasoning_that_the_template_strips_costs_the_answer_that_it_belongs_to(model_type: str) -> None:
    model, tokenizer = loaded_model(model_type, STRIPPING)
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


# What goes back is text: the same of any architecture.
@pytest.mark.parametrize("template", [OPENING, FIELD], ids=["content", "field"])
@pytest.mark.parametrize("ending", ["limit", "stopped", "closed"])
def test_reasoning_that_goes_back_is_not_read_again(template: str, ending: str) -> None:
    model, tokenizer = loaded_model("afmoe", template)
    letters = mx.array(tokenizer.encode("ABCDEFGH"))  # which are encoded as they were written

    def spell(tokens: mx.array, logits: mx.array) -> mx.array:
        return mx.put_along_axis(mx.full(logits.shape, -99.0), letters[None], logits[:, letters], axis=-1)

    options: dict[str, Any] = {"max_tokens": 40, "reasoning_budget": 12 if ending == "closed" else None}
    options["logits_processors"] = [spell]
    conversation = Conversation(model, tokenizer, options=options)
    chunks = conversation.reply("hello to the world")
    if ending == "stopped":
        for _ in range(11):
            next(chunks)
        chunks.close()
    list(chunks)
    held = len(conversation._recall.tokens)
    list(conversation.reply("hello"))
    asked = tokenizer.apply_chat_template(conversation.messages[2:3], add_generation_prompt=True)
    closing = "" if ending == "closed" else "\n</think>\n\n"
    # the answer's last token, what ends it, the new message
    assert conversation.tokens_run <= 1 + len(tokenizer.encode(closing + "<|im_end|>\n")) + len(asked)
    assert held > 30


@pytest.mark.parametrize(("start", "run"), [(0, 1), (5000, 1), (500, None)])
def test_a_quantized_cache_is_gone_back_in_as_far_as_it_can(start: int, run: int | None) -> None:
    model, tokenizer = loaded_model("afmoe", head_dim=32)
    model.kv_quantization = KVQuantization(8, group_size=32, start=start)
    conversation = Conversation(model, tokenizer, options={"max_tokens": ANSWER, "prefill_step_size": CHUNK})
    list(conversation.reply("hello " * 450))
    list(conversation.regenerate())
    prompt = len(tokenizer.apply_chat_template(conversation.messages[:-1], add_generation_prompt=True))
    assert prompt < 500 < prompt + ANSWER
    assert conversation.tokens_run == (run or prompt)


def test_the_bytes_kept_are_those_of_the_store_and_of_the_places_to_go_back_to(talk: Conversation) -> None:
    stored = 0 if talk.store is None else talk.store.nbytes
    assert talk.kept_bytes > stored
    talk.clear()
    assert talk.kept_bytes == (0 if talk.store is None else talk.store.nbytes)


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
