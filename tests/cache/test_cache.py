"""Caches: any way of feeding tokens and stepping back gives what a forward from scratch gives, in bounded memory."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.cache import KVCache, RotatingKVCache
from afmoe_mlx.errors import CacheError, InputError
from afmoe_mlx.models import CausalLM
from helpers.tiny import ARCHITECTURES, tiny, tokens, two_layers

TOLERANCE = 2e-5
WIDEST = 64


@st.composite
def walks(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Appends and rewinds; a rewind's number is a share of what is possible then, in hundredths."""
    append = st.tuples(st.just("append"), st.sampled_from([1, 1, 1, 2, 3, 7, 20, 90]))
    rewind = st.tuples(st.just("rewind"), st.integers(0, 100))
    return draw(st.lists(st.one_of(append, append, rewind), min_size=5, max_size=30))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=30, deadline=None)
@given(
    window=st.one_of(st.integers(1, 8), st.integers(1, WIDEST)),
    slack=st.integers(0, 12),
    batch=st.sampled_from([1, 3]),
    walk=walks(),
    seed=st.integers(0, 1000),
)
def test_any_walk_gives_the_logits_of_a_forward_from_scratch(
    model_type: str, window: int, slack: int, batch: int, walk: list[tuple[str, int]], seed: int
) -> None:
    model = two_layers(model_type, window)
    cache = model.make_cache(slack)
    seen = np.zeros((batch, 0), np.int64)
    logits = np.zeros((batch, 0, model.config.vocab_size), np.float32)
    for i, (action, number) in enumerate(walk):
        if action == "append":
            new = np.array(tokens(batch, number, seed=seed + i))
            out = model(mx.array(new), cache=cache)
            seen = np.concatenate([seen, new], axis=1)
            logits = np.concatenate([logits, np.array(out)], axis=1)
        else:
            n = cache.rewindable * number // 100
            cache.rewind(n)
            seen, logits = (a[:, : a.shape[1] - n] for a in (seen, logits))
        assert cache.offset == seen.shape[1]
    if seen.shape[1]:
        assert np.abs(np.array(model(mx.array(seen))) - logits).max() < TOLERANCE


@given(
    history=st.integers(0, 20),
    slack=st.integers(0, 12),
    walk=walks(),
)
@settings(max_examples=200, deadline=None)
def test_rotating_cache_returns_the_last_columns_in_order(
    history: int, slack: int, walk: list[tuple[str, int]]
) -> None:
    cache, offset, furthest = RotatingKVCache(history, slack), 0, 0
    for action, number in walk:
        if action == "append":
            columns = mx.arange(offset, offset + number).reshape(1, 1, -1, 1).astype(mx.float32)
            (visible,) = cache.update(columns)
            first = max(0, offset - history)
            offset += number
            furthest = max(furthest, offset)
            assert visible.flatten().tolist() == list(range(first, offset))
        else:
            # the promise: anything not older than the furthest position less slack // 2, and all while it is held
            assert cache.rewindable >= min(offset, offset - (furthest - slack // 2))
            n = cache.rewindable * number // 100
            cache.rewind(n)
            offset -= n
        assert cache.offset == offset
        assert cache.arrays == () or cache.arrays[0].shape[-2] <= max(history + slack, 1)


def test_rewinding_further_than_possible_is_refused_and_changes_nothing() -> None:
    model = tiny(sliding_window=4)
    cache = model.make_cache(2)
    model(tokens(1, 30), cache=cache)
    possible = cache.rewindable
    with pytest.raises(CacheError, match=str(possible)):
        cache.rewind(possible + 1)
    with pytest.raises(CacheError):
        cache.rewind(-1)
    assert (cache.offset, cache.rewindable) == (30, possible)


def test_everything_can_be_rewound_while_nothing_has_been_dropped() -> None:
    cache = tiny(sliding_window=8).make_cache()
    model = tiny(sliding_window=8)
    model(tokens(1, 200), cache=cache)
    assert cache.rewindable == 200


def test_default_slack_takes_back_512_tokens_past_the_window() -> None:
    cache = RotatingKVCache(7)
    for start in range(0, 20_000, 400):
        cache.update(mx.zeros((1, 1, 400, 1)))
        assert cache.rewindable >= min(start + 400, 512)


def test_sliding_layers_hold_no_more_than_history_slack_and_a_chunk_over_10000_tokens() -> None:
    window, slack, chunk = 64, 32, 50
    model = tiny(sliding_window=window, layer_types=["sliding_attention"] * 4)
    cache = model.make_cache(slack)
    held = 0
    for start in range(0, 10_000, chunk):
        model(tokens(1, chunk, seed=start), cache=cache, logits_to_keep=1)
        mx.eval(cache.arrays)
        held = max(held, *(layer.arrays[0].shape[-2] for layer in cache.layers))
    assert cache.offset == 10_000
    assert held <= window - 1 + slack + chunk
    per_column = 2 * model.config.num_key_value_heads * model.config.head_dim * 4
    assert cache.nbytes <= 4 * held * per_column


def test_shifting_happens_at_most_once_in_half_the_slack() -> None:
    cache, shifts, start = RotatingKVCache(10, 20), 0, 0
    for _ in range(1000):
        cache.update(mx.zeros((1, 1, 1, 1)))
        shifts += cache.start != start
        start = cache.start
    assert 0 < shifts <= 1000 // 10


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("padded", [False, True])
def test_state_continues_in_another_cache(model_type: str, padded: bool, tmp_path: Path) -> None:
    model, ids, more = tiny(model_type), tokens(2, 20), tokens(2, 5, seed=1)
    mask = mx.array([[1] * 20, [0] * 6 + [1] * 14]) if padded else None
    cache = model.make_cache(4)
    model(ids, attention_mask=mask, cache=cache)
    mx.save_safetensors(str(tmp_path / "state.safetensors"), cache.state)
    other = model.make_cache(4)
    other.state = mx.load(str(tmp_path / "state.safetensors"))
    assert (other.offset, other.rewindable, other.left_padding) == (cache.offset, cache.rewindable, cache.left_padding)
    assert mx.allclose(model(more, cache=other), model(more, cache=cache), atol=TOLERANCE)
    assert other.offsets.tolist() == cache.offsets.tolist()


def test_two_caches_of_one_state_do_not_disturb_each_other() -> None:
    model, cache = tiny(), tiny().make_cache()
    model(tokens(1, 10), cache=cache)
    state = cache.state
    first, second = model.make_cache(), model.make_cache()
    first.state = second.state = state
    expected = model(tokens(1, 3, seed=5), cache=second)
    model(tokens(1, 3, seed=6), cache=first)
    second.rewind(3)
    assert mx.allclose(model(tokens(1, 3, seed=5), cache=second), expected, atol=TOLERANCE)


def test_state_of_another_model_is_refused() -> None:
    state = tiny(num_hidden_layers=2).make_cache().state
    with pytest.raises(CacheError, match="4 layers"):
        tiny().make_cache().state = state


def test_another_batch_size_is_refused() -> None:
    model = tiny()
    cache = model.make_cache()
    model(tokens(2, 3), cache=cache)
    with pytest.raises(InputError, match="2 rows"):
        model(tokens(1, 3), cache=cache)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_interrupted_step_is_undone_by_the_next(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = tiny(model_type), tiny(model_type).make_cache()
    model(tokens(1, 20), cache=cache)
    expected = model(tokens(1, 1, seed=3), cache=cache)
    cache.rewind(1)
    with monkeypatch.context() as patch:
        patch.setattr(cache.layers[2], "update", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(tokens(1, 1, seed=4), cache=cache)
    assert cache.offset == 20
    assert mx.allclose(model(tokens(1, 1, seed=3), cache=cache), expected, atol=TOLERANCE)


def test_an_interrupted_padded_chunk_leaves_no_padding_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(), tokens(2, 6)
    cache = model.make_cache()
    with monkeypatch.context() as patch:
        patch.setattr(cache.layers[2], "update", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids, attention_mask=mx.array([[0, 0, 1, 1, 1, 1], [1] * 6]), cache=cache)
    assert mx.allclose(model(ids, cache=cache), model(ids), atol=TOLERANCE)


def _interrupt(*_: mx.array) -> None:
    raise KeyboardInterrupt


def test_caches_keep_the_models_dtype() -> None:
    model: CausalLM = tiny(num_dense_layers=4)
    model.set_dtype(mx.bfloat16)
    model.dtype = mx.bfloat16
    cache = model.make_cache()
    logits = model(tokens(1, 12), cache=cache)
    assert {array.dtype for array in cache.arrays} == {mx.bfloat16}
    assert logits.dtype == mx.bfloat16


def test_growing_cache_reallocates_rarely() -> None:
    cache, sizes = KVCache(), set()
    for _ in range(600):
        cache.update(mx.zeros((1, 1, 1, 1)))
        sizes.add(cache.nbytes)
    assert len(sizes) == 3


def test_a_cache_of_another_model_is_refused() -> None:
    with pytest.raises(CacheError, match="4 layers, the model 2"):
        tiny(num_hidden_layers=2)(tokens(1, 3), cache=tiny().make_cache())


@pytest.mark.parametrize("damage", ["left_padding", "0.array0", "1.start", "extra"])
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str) -> None:
    model, ids = tiny(), tokens(1, 5)
    cache, other = model.make_cache(), model.make_cache()
    model(ids, cache=cache)
    state = cache.state
    if damage == "extra":
        state["2.array0"] = state["2.array0"][:, :, :2]
    else:
        del state[damage]
    with pytest.raises(CacheError):
        other.state = state
    assert (other.offset, other.batch_size) == (0, None)


def test_an_emptied_cache_takes_any_batch() -> None:
    model, cache = tiny(), tiny().make_cache()
    model(tokens(2, 5), cache=cache)
    cache.rewind(5)
    assert model(tokens(3, 5), cache=cache).shape[0] == 3


def test_a_state_of_another_architecture_is_refused() -> None:
    model, cache = tiny(), tiny().make_cache()
    model(tokens(1, 3), cache=cache)
    with pytest.raises(CacheError, match="another"):
        tiny("lfm2_moe").make_cache().state = cache.state


@pytest.mark.parametrize(("history", "slack"), [(-1, 4), (4, -1), (2.0, 4), (4, None)])
def test_sizes_that_make_no_sense_are_refused(history: Any, slack: Any) -> None:
    with pytest.raises(CacheError):
        RotatingKVCache(history, slack)
    RotatingKVCache(0, 0)
