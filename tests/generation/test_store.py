"""Generation with a prefix store runs what the store does not know, and answers alike."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx import load, stream_generate
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.chat import Conversation
from afmoe_mlx.errors import InputError
from helpers.stores import check, ids, seen
from helpers.tiny import ARCHITECTURES, tiny_folder


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_folder(tmp_path_factory.mktemp("model") / "m", request.param, max_position_embeddings=2048))


TEXT = "hello to the world, says the world to all who hear it. " * 4


def test_generation_runs_what_the_store_does_not_know_and_answers_alike(loaded: Any) -> None:
    model, tokenizer = loaded
    store = PrefixStore(model, block_size=16)
    options: dict[str, Any] = {"max_tokens": 20, "prefill_step_size": 32, "repetition_penalty": 1.3}
    expected = list(stream_generate(*loaded, TEXT, **options))
    first, second = (list(stream_generate(*loaded, TEXT, store=store, **options)) for _ in range(2))
    length = len(tokenizer.encode(TEXT))
    assert [c.token for c in first] == [c.token for c in second] == [c.token for c in expected]
    assert (first[-1].cached_tokens, first[-1].prompt_tokens) == (0, length)
    assert (second[-1].cached_tokens, second[-1].prompt_tokens) == ((length - 1) // 16 * 16, length)


def test_a_long_prompt_is_kept_chunk_by_chunk_so_that_no_window_is_lost(loaded: Any) -> None:
    model, tokenizer = loaded
    store = PrefixStore(model, block_size=16)
    prompt = tokenizer.encode(TEXT * 14)
    assert len(prompt) > 1200
    list(stream_generate(*loaded, prompt, store=store, max_tokens=1, prefill_step_size=128))
    assert [store.reach([*prompt[:at], 0]) for at in range(16, 1200, 16)] == list(range(16, 1200, 16))


def test_an_answer_is_kept_too_even_one_broken_off(loaded: Any) -> None:
    model, tokenizer = loaded
    store = PrefixStore(model, block_size=4)
    chunks = stream_generate(*loaded, "hello", store=store, max_tokens=60)
    answer = [next(chunks).token for _ in range(30)]
    chunks.close()  # type: ignore[attr-defined]
    sequence = [*tokenizer.encode("hello"), *answer]
    assert check(store, sequence) == (len(sequence) - 1) // 4 * 4


def test_a_cache_with_a_store_needs_the_tokens_it_has_seen(loaded: Any) -> None:
    model = loaded[0]
    with pytest.raises(InputError, match="seen has 0 tokens, the cache 8"):
        stream_generate(*loaded, "hello", store=PrefixStore(model), cache=seen(model, ids(8)))


def test_a_conversation_comes_back_to_what_was_cleared_or_lies_beyond_the_windows_reach(loaded: Any) -> None:
    model, tokenizer = loaded
    store = PrefixStore(model, block_size=16)
    options = {"max_tokens": 24}
    conversation = Conversation(*loaded, system_prompt=TEXT, options=options, store=store)
    texts = ["hello " * 40, "the world " * 40, "hello to the world " * 20]

    def say(text: str) -> None:
        answer = "".join(chunk.text for chunk in conversation.reply(text))
        fresh = Conversation(*loaded, system_prompt=TEXT, options=options)
        fresh.messages = conversation.messages[:-2]
        assert answer == "".join(chunk.text for chunk in fresh.reply(text))

    for text in texts:
        say(text)
    before = list(conversation.messages)
    conversation.clear()
    say("the")
    conversation.messages = before[:-2]
    say(texts[2])
    assert conversation.tokens_run <= 16
    conversation.messages = before[:3]
    conversation._recall.cache.rewind(0)
    say("another second message")
    prompt = tokenizer.apply_chat_template(conversation.messages[:-1], add_generation_prompt=True)
    kept = tokenizer.apply_chat_template(before[:3], add_generation_prompt=True)
    assert conversation.tokens_run <= len(prompt) - len(kept) + 2 * 16


def test_an_answer_whose_cache_was_used_for_another_text_is_not_kept(tmp_path: Path) -> None:
    net, tokenizer = load(tiny_folder(tmp_path / "tiny"))
    store, cache = PrefixStore(net, block_size=4), net.make_cache()
    chunks = stream_generate(net, tokenizer, list(range(1, 20)), max_tokens=30, cache=cache, store=store)
    answer = [next(chunks).token for _ in range(5)]
    cache.rewind(cache.rewindable)
    other = [7, 3] * 20
    net(mx.array([other]), cache=cache)
    chunks.close()
    before = [*range(1, 20), *answer]
    known, count = store.lookup([*before, 5, 5])
    straight = net.make_cache()
    net(mx.array([before[:count]]), cache=straight)
    assert count <= 19
    probe = mx.array([[9, 9]])
    assert mx.abs(net(probe, cache=known) - net(probe, cache=straight)).max() < 2e-5
