"""The decode loop and prefill: the device is never kept waiting, and holds no more than it needs."""

import copy
import os
import signal
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx import load, stream_generate
from afmoe_mlx.cache import Cache
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import decode, loop, prefill, speculate
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer
from helpers.tiny import ARCHITECTURES, tiny_folder

Loaded = tuple[CausalLM, Tokenizer]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_folder(tmp_path_factory.mktemp("model"), request.param))


def test_the_next_step_is_launched_before_a_token_is_read(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two launches the host reads nothing of the device."""
    model, tokenizer = loaded
    events: list[str] = []
    launch = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: (events.append("launch"), launch(*arrays))[1])
    monkeypatch.setattr(
        "afmoe_mlx.generation.loop.token_id", lambda token: (events.append("read"), int(token.item()))[1]
    )
    cache = model.make_cache()
    logits = prefill(model, tokenizer.encode("hello"), cache, step_size=16)
    list(decode(model, logits, cache, lambda logprobs: logprobs.argmax(axis=-1), limit=4))
    assert events == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]


def test_prefill_computes_the_last_positions_logits_alone(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    shapes: list[int] = []
    head = type(model).logits
    monkeypatch.setattr(type(model), "logits", lambda self, h: (shapes.append(h.shape[1]), head(self, h))[1])
    prefill(model, tokenizer.encode("hello to the world " * 4), model.make_cache(), step_size=8)
    assert set(shapes) == {1}


def test_progress_reaches_the_total(loaded: Loaded) -> None:
    seen: list[tuple[int, int]] = []
    ids = loaded[1].encode("hello to the world " * 4)
    note = lambda done, total: seen.append((done, total))  # noqa: E731
    list(stream_generate(*loaded, ids, max_tokens=1, prefill_step_size=10, on_progress=note))
    assert seen[0] == (0, len(ids))
    assert seen[-1] == (len(ids), len(ids))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("drafted", [False, True], ids=["plain", "drafted"])
def test_freed_buffers_are_returned_every_so_many_steps(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, drafted: bool
) -> None:
    """Caches that grow leave buffers behind that fit nothing any more."""
    for module in (loop, speculate):
        monkeypatch.setattr(module, "CLEAR_EVERY", 4)
    chunks = stream_generate(*loaded, "hello", max_tokens=24, **({"prompt_lookup": 3} if drafted else {}))
    next(chunks)  # prefill returns its own
    returned: list[None] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: returned.append(None))
    last = [*chunks][-1]
    steps = last.generation_tokens - last.saved_steps
    assert last.generation_tokens == 24
    assert steps // 4 - 1 <= len(returned) <= steps // 4
    assert returned


def test_prefill_returns_what_chunks_have_freed(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, returned = loaded[0], []
    monkeypatch.setattr(loop, "CLEAR_PROMPT_EVERY", 6)
    monkeypatch.setattr(mx, "clear_cache", lambda: returned.append(cache.offset))
    cache = model.make_cache()
    prefill(model, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], cache, step_size=3)
    assert returned == [6, 11]


CALLS: dict[str, Callable[[Loaded, Cache, int], Any]] = {
    "the prompt": lambda loaded, cache, token: stream_generate(*loaded, [1, token]),
    "the prompt of a prefill": lambda loaded, cache, token: prefill(loaded[0], [1, token], cache, step_size=1),
    "seen": lambda loaded, cache, token: stream_generate(*loaded, [1], cache=cache, seen=[1, 2, token]),
}


@pytest.mark.parametrize("token", [-1, 10_000])
@pytest.mark.parametrize("call", CALLS)
def test_ids_that_a_model_has_not_never_reach_it(
    loaded: Loaded, token: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = loaded[0].make_cache()
    if call == "seen":
        prefill(loaded[0], [1, 2, 3], cache, step_size=3)
    monkeypatch.setattr(type(loaded[0]), "__call__", lambda *_, **__: pytest.fail("the model runs"))
    with pytest.raises(InputError, match=rf"{call.removesuffix(' of a prefill')} has token {token}: expected ids from"):
        list(CALLS[call](loaded, cache, token))


def test_ends_that_a_model_has_not_are_not_looked_up_in_its_logits(loaded: Loaded) -> None:
    model, tokenizer = loaded
    other = copy.copy(tokenizer)
    other.eos_token_ids = tokenizer.eos_token_ids | {-1, 10**6}
    options = {"max_tokens": 8, "temperature": 1.0, "seed": 3, "xtc_probability": 1.0, "xtc_threshold": 0.01}
    expected = [chunk.token for chunk in stream_generate(model, tokenizer, "hello", **options)]
    assert [chunk.token for chunk in stream_generate(model, other, "hello", **options)] == expected


def test_ctrl_c_in_the_middle_of_a_prompt_is_heard_with_the_chunk_under_way(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run = loaded[0], type(loaded[0]).__call__
    begun: list[int] = []

    def counted(self: CausalLM, ids: mx.array, **options: Any) -> Any:
        begun.append(ids.shape[1])
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return run(self, ids, **options)

    monkeypatch.setattr(type(model), "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        list(stream_generate(*loaded, [1] * 50, prefill_step_size=5))
    assert begun == [5, 5]
