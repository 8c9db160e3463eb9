"""A model whose later layers are followers' gives what the whole model gives."""

import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import batch_generate, load, load_model
from afmoe_mlx.cache import KVQuantization, PrefixStore, save_cache
from afmoe_mlx.chat import Conversation
from afmoe_mlx.errors import CacheError, HostError, InputError
from afmoe_mlx.generation import stream_generate
from afmoe_mlx.generation.loop import prefill
from afmoe_mlx.hosts.orders import Drop, Rewind, Run
from afmoe_mlx.models import CausalLM, ExpertPlacement, Trace
from helpers.experts import WIDE, wide_folder
from helpers.hosts import LocalCrew, split
from helpers.tiny import ARCHITECTURES, tiny_folder, tokens

IDS = tokens(1, 40)
LAYERS = 4
CUTS = ([3], [2, 3], [1, 2, 3])
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), request.param, num_hidden_layers=LAYERS)


def near(found: mx.array, expected: mx.array) -> bool:
    return found.shape == expected.shape and mx.abs(found - expected).max().item() < TOLERANCE


FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": mx.float32},
    "4 bits": {"bits": 4, "group_size": 32},
    "mxfp4": {"mode": "mxfp4", "group_size": 32, "bits": 4},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("name", FORMATS)
def test_quantized_or_not_the_logits_are_the_whole_models(tmp_path: Path, model_type: str, name: str) -> None:
    folder = wide_folder(tmp_path / "model", model_type, **FORMATS[name])
    whole = load_model(folder)[0]
    led, _ = split(folder, [len(whole.layers) - 1])
    assert near(led(IDS), whole(IDS))


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_steps_and_rewinds_give_the_logits_of_the_whole_model(
    folder: Path, cuts: list[int], compiled: bool
) -> None:
    """By the parts of a compiled step too, uncompiled: that they compute what they are made of is tested elsewhere."""
    whole, (led, crew) = load_model(folder)[0], split(folder, cuts)
    for model in (whole, led, *(follower.model for follower in crew.followers)):
        model.compiles_decode = compiled
    mx.disable_compile()
    try:
        assert_all_steps_near(whole, led)
    finally:
        mx.enable_compile()


def test_quantized_keys_are_kept_as_of_the_whole_model(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", num_hidden_layers=LAYERS, head_dim=32)
    assert_all_steps_near(load_model(folder)[0], split(folder, [2, 3])[0], KVQuantization(8, 32, start=20))


def assert_all_steps_near(whole: CausalLM, led: CausalLM, kept: KVQuantization | None = None) -> None:
    caches = [model.make_cache(16, kv_quantization=kept) for model in (whole, led)]

    def run(start: int, end: int) -> None:
        a, b = (model(IDS[:, start:end], cache=c) for model, c in zip((whole, led), caches, strict=True))
        assert near(b, a)
        assert caches[0].rewindable == caches[1].rewindable

    for start, end in ((0, 12), (12, 13), (13, 17)):
        run(start, end)
    for cache in caches:
        cache.rewind(3)
    for start, end in ((14, 30), (30, 31), (31, 40)):
        run(start, end)


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_any_chunking_with_any_steps_back_leads_to_the_same_logits(data: st.DataObject) -> None:
    whole, (led, _) = _pair(data.draw(st.sampled_from(ARCHITECTURES)), tuple(data.draw(st.sampled_from(CUTS))))
    cache, place = led.make_cache(16), 0
    logits = None
    while place < IDS.shape[1]:
        length = data.draw(st.integers(1, min(12, IDS.shape[1] - place)))
        logits = led(IDS[:, place : place + length], cache=cache)
        place += length
        back = data.draw(st.integers(0, max(min(cache.rewindable, 3), 0)))
        if place < IDS.shape[1]:
            cache.rewind(back)
            place -= back
    assert logits is not None
    assert near(logits[:, -1], whole(IDS)[:, -1])


_PAIRS: dict[Any, Any] = {}


def _pair(model_type: str, cuts: tuple[int, ...]) -> tuple[CausalLM, tuple[CausalLM, LocalCrew]]:
    if (model_type, cuts) not in _PAIRS:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = tiny_folder(Path(folder), model_type, num_hidden_layers=LAYERS)
            _PAIRS[model_type, cuts] = load_model(path)[0], split(path, cuts)
    found: tuple[CausalLM, tuple[CausalLM, LocalCrew]] = _PAIRS[model_type, cuts]
    return found


MASKS = {
    "left": [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
}


@pytest.mark.parametrize("side", MASKS)
def test_padded_rows_are_those_of_the_whole_model(folder: Path, side: str) -> None:
    whole, (led, _) = load_model(folder)[0], split(folder, [2, 3])
    ids, mask = tokens(2, 6), mx.array(MASKS[side])
    kept = mask[..., None].astype(mx.bool_)
    caches = [model.make_cache() for model in (whole, led)]
    for options in ({}, {"logits_to_keep": 2}, {"position_ids": mx.arange(6)[None] + 3}):
        a, b = (model(ids, attention_mask=mask, **options) for model in (whole, led))  # type: ignore[arg-type]
        held = kept[:, -a.shape[1] :]
        assert near(mx.where(held, b, 0), mx.where(held, a, 0))
    pairs = list(zip((whole, led), caches, strict=True))
    a, b = (model(ids, cache=cache, attention_mask=mask) for model, cache in pairs)
    assert near(mx.where(kept, b, 0), mx.where(kept, a, 0))
    a, b = (model(tokens(2, 3, seed=1), cache=cache) for model, cache in pairs)
    assert near(b, a)


def test_embeddings_labels_and_columns_go_in_and_come_out_as_of_the_whole(folder: Path) -> None:
    whole, (led, _) = load_model(folder)[0], split(folder, [2])
    assert near(led(inputs_embeds=led.embed(IDS)), whole(IDS))
    assert near(led(IDS, logits_to_keep=mx.array([1, 5])), whole(IDS, logits_to_keep=mx.array([1, 5])))
    assert near(led.last_hidden_state(IDS), whole.last_hidden_state(IDS))
    assert abs(led(IDS, labels=IDS)[0].item() - whole(IDS, labels=IDS)[0].item()) < TOLERANCE


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, CausalLM, LocalCrew, Any]:
    whole, tokenizer = load(folder)
    tokenizer.eos_token_ids = frozenset()  # so that answers are as long as asked for
    led, crew = split(folder, [2, 3])
    return whole, led, crew, tokenizer


ANSWERS: dict[str, dict[str, Any]] = {
    "penalties": {"temperature": 0.8, "seed": 4, "repetition_penalty": 1.3},
    "lookup": {"temperature": 0, "prompt_lookup": True},
    "seeded lookup": {"temperature": 0.8, "seed": 1, "prompt_lookup": 3},
    "regex": {"temperature": 0.8, "seed": 2, "regex": "[a-z ]{20,40}"},
    "chunks": {"temperature": 0, "prefill_step_size": 7},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_texts_are_those_of_the_whole_model(loaded: Any, folder: Path, name: str) -> None:
    whole, led, _, tokenizer = loaded
    if "regex" in ANSWERS[name]:
        tokenizer = load(folder)[1]  # which has a token that ends
    prompt = "the world is the world is the world, hello to the " * 3
    a, b = (
        [chunk.token for chunk in stream_generate(model, tokenizer, prompt, max_tokens=24, **ANSWERS[name])]
        for model in (whole, led)
    )
    assert a == b


def test_a_draft_model_guesses_for_a_model_on_several_hosts(loaded: Any) -> None:
    whole, led, _, tokenizer = loaded
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 0.8, "seed": 5, "draft_model": whole}
    a, b = ([c.token for c in stream_generate(model, tokenizer, "hello", **options)] for model in (whole, led))
    assert a == b


def test_several_prompts_are_answered_one_after_the_other(loaded: Any) -> None:
    whole, led, crew, tokenizer = loaded
    prompts = ["hello", "the world is a", "hello to the world " * 5]
    crew.told.clear()
    found = [batch_generate(model, tokenizer, prompts, max_tokens=12, temperature=0).texts for model in (whole, led)]
    assert found[0] == found[1]
    assert {order.rows for order in crew.told if isinstance(order, Run)} == {1}


def test_a_chat_edits_and_steps_back_as_with_the_whole_model(loaded: Any) -> None:
    answers = []
    for model in loaded[:2]:
        options = {"max_tokens": 20, "temperature": 0}
        chat = Conversation(model, loaded[3], options=options, store=PrefixStore(model, block_size=16))
        for say, text in ((chat.reply, "hello to the world"), (chat.reply, "and the rest"), (chat.edit, "or this")):
            answers.append([chunk.token for chunk in say(text)])
        chat.undo(2)
        answers.append([chunk.token for chunk in chat.reply("hello")])
    assert answers[:4] == answers[4:]


@pytest.mark.parametrize("keeps", [False, True], ids=["", "store"])
def test_a_chat_steps_back_beyond_the_slack_as_with_the_whole_model(loaded: Any, keeps: bool) -> None:
    answers = []
    for model in loaded[:2]:
        make_cache, store = model.make_cache, PrefixStore(model, block_size=16) if keeps else None
        model.make_cache = lambda slack=None, made=make_cache, **more: made(16, **more)
        chat = Conversation(model, loaded[3], options={"max_tokens": 30, "temperature": 0}, store=store)
        for say, text in ((chat.reply, "hello to the world"), (chat.reply, "and the rest"), (chat.edit, "or this")):
            answers.append([chunk.token for chunk in say(text)])
        chat.undo(2)
        answers.append([chunk.token for chunk in chat.reply("hello")])
        del model.make_cache
    assert answers[:4] == answers[4:]


def test_a_token_takes_one_message_a_host_and_a_chunk_for_the_cache_alone_none_back(folder: Path) -> None:
    led, crew = split(folder, [1, 2, 3])
    links = [led.beyond.link, *(follower._link for follower in crew.followers)]  # type: ignore[union-attr]
    logits = prefill(led, IDS[0].tolist(), cache := led.make_cache(), step_size=10)  # type: ignore[arg-type]
    assert [link.sent for link in links] == [4, 4, 4, 1]
    mx.eval(led(mx.argmax(logits, -1)[None], cache=cache))
    assert [link.sent for link in links] == [5, 5, 5, 2]


def test_followers_forget_a_cache_that_the_leader_has_dropped(folder: Path) -> None:
    led, crew = split(folder, [2])
    mx.eval(led(IDS, cache=(cache := led.make_cache())))
    number = cache.number  # type: ignore[attr-defined]
    del cache
    mx.eval(led(IDS, cache=led.make_cache()))
    assert any(isinstance(order, Drop) and number in order.numbers for order in crew.told)
    assert list(crew.followers[0]._caches) == [number + 1]


def test_followers_forget_a_store_once_all_its_owners_have(folder: Path) -> None:
    led, crew = split(folder, [2])
    store = PrefixStore(led, block_size=16)
    other = store.for_owner("somebody")

    def held() -> int:
        led.make_cache()
        crew.run()
        return len(crew.followers[0]._stores)

    assert held() == 1
    del store
    assert held() == 1
    del other
    assert held() == 0


def test_a_step_back_of_nothing_tells_nobody(folder: Path) -> None:
    led, crew = split(folder, [2])
    cache = led.make_cache()
    for _ in range(2):
        mx.eval(led(IDS[:, :5], cache=cache))
    assert not [order for order in crew.told if isinstance(order, Rewind)]
    cache.rewind(2)
    assert [order for order in crew.told if isinstance(order, Rewind)] == [Rewind(cache.number, 2)]  # type: ignore[attr-defined]


def test_a_store_gives_what_all_hosts_have(folder: Path, tmp_path: Path) -> None:
    ids = tokens(1, 100)[0].tolist()
    whole = load_model(folder)[0]
    led, _ = split(folder, [2, 3], directories=[tmp_path / "a", tmp_path / "b"])
    store = PrefixStore(led, block_size=16, directory=tmp_path / "own")
    cache, found = store.lookup(ids)  # type: ignore[arg-type]
    assert found == 0
    mx.eval(led(mx.array([ids]), cache=cache))
    store.insert(ids, cache, marks=[40])  # type: ignore[arg-type]
    store.flush()
    for again in (store, PrefixStore(led, block_size=16, directory=tmp_path / "own")):
        cache, found = again.lookup(ids)  # type: ignore[arg-type]
        assert found >= 80
        assert near(led(mx.array([ids[found:]]), cache=cache)[:, -1], whole(mx.array([ids]))[:, -1])
    assert store.for_owner("somebody").lookup(ids)[1] == 0  # type: ignore[arg-type]
    for path in (tmp_path / "b").rglob("*"):  # one host has lost what it kept
        if path.is_file():
            path.unlink()
    cache, found = PrefixStore(led, block_size=16, directory=tmp_path / "own").lookup(ids)  # type: ignore[arg-type]
    assert found == cache.offset == 0
    assert near(led(mx.array([ids]), cache=cache)[:, -1], whole(mx.array([ids]))[:, -1])


@pytest.mark.parametrize("reading", [(True, False), (False, True), (True, True)], ids=str)
def test_experts_may_be_read_on_any_of_the_hosts(tmp_path: Path, reading: tuple[bool, ...]) -> None:
    folder = wide_folder(tmp_path / "model", "afmoe", dtype=mx.float32)
    whole = load_model(folder)[0]
    few = ExpertPlacement(WIDE["num_experts"] // 2)
    places = [(lambda *_: few) if reads else None for reads in reading]
    led, _ = split(folder, [len(whole.layers) - 1], places=places)
    assert led.reads_experts
    caches = [model.make_cache() for model in (whole, led)]
    a, b = (
        prefill(model, IDS[0].tolist(), cache, step_size=9)  # type: ignore[arg-type]
        for model, cache in zip((whole, led), caches, strict=True)
    )
    assert near(b, a)
    a, b = (model(IDS[:, :1], cache=cache) for model, cache in zip((whole, led), caches, strict=True))
    assert near(b, a)


def test_what_cannot_be_on_several_hosts_is_refused_and_leaves_all_in_step(folder: Path, tmp_path: Path) -> None:
    whole, (led, _) = load_model(folder)[0], split(folder, [2])
    cache = led.make_cache()
    mx.eval(led(IDS[:, :8], cache=cache))
    for error, call in (
        (InputError, partial(led, IDS[:, 8:9], cache=cache, trace=Trace())),
        (InputError, partial(led.step, mx.array([1, 2]), [cache, led.make_cache()])),
        (CacheError, partial(led, IDS[:, 8:9], cache=whole.make_cache())),
        (CacheError, partial(save_cache, tmp_path / "cache.safetensors", led, cache, list(range(8)))),
    ):
        with pytest.raises(error):
            call()
    assert near(led(IDS[:, 8:], cache=cache)[:, -1], whole(IDS)[:, -1])


def test_an_order_that_makes_no_sense_is_named(folder: Path) -> None:
    _, crew = split(folder, [2])
    with pytest.raises(HostError, match="no cache 7"):
        crew.followers[0].do(Rewind(7, 1))


def test_ctrl_c_at_any_time_leaves_all_in_step(loaded: Any) -> None:
    whole, led, _, tokenizer = loaded
    store, chance = PrefixStore(led, block_size=16), random.Random(0)
    prompt = "hello to the world " * 4
    for i in range(6):
        options: dict[str, Any] = {"max_tokens": 30, "temperature": 0.8, "seed": i}
        options |= {"prompt_lookup": True} if i % 2 else {}
        expected = [chunk.token for chunk in stream_generate(whole, tokenizer, prompt, **options)]
        timer = threading.Timer(chance.uniform(0, 0.04), os.kill, (os.getpid(), signal.SIGINT))
        cache = led.make_cache()
        try:
            timer.start()
            list(stream_generate(led, tokenizer, prompt, cache=cache, **options))
            timer.join()
            time.sleep(0.01)
        except KeyboardInterrupt:
            pass
        cache.rewind(min(cache.offset, cache.rewindable))
        found = [chunk.token for chunk in stream_generate(led, tokenizer, prompt, store=store, **options)]
        assert found == expected
