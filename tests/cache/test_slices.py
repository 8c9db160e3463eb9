"""The slices of keys that attention gets begin where MLX's CUDA backend takes them to begin.

A step of one token whose keys are a slice of a buffer of 256, 512, … columns is computed there as if the slice began at
the buffer's first column: such a buffer's slices must.
"""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afmoe_mlx.cache import RotatingKVCache
from afmoe_mlx.cache.buffers import LayerState
from afmoe_mlx.models import chunk
from helpers.tiny import tiny, tokens

UNSLICED = 256


def place(array: mx.array) -> tuple[int, int]:
    """Where an array (B, K, N, d) begins in memory, and how many columns its buffer has."""
    mx.eval(array)
    view = np.array(array, copy=False)
    return view.__array_interface__["data"][0], view.strides[1] // view.strides[2]


def is_mistaken(slice_: mx.array, buffers: list[mx.array]) -> bool:
    """Whether a slice of keys is none from its buffer's first column on, in a buffer of such a length."""
    begin, columns = place(slice_)
    is_whole = slice_.shape[2] == columns  # of a temporary
    return columns % UNSLICED == 0 and not is_whole and begin not in [place(buffer)[0] for buffer in buffers]


ACTIONS = st.one_of(
    st.tuples(st.just("append"), st.sampled_from([1, 1, 2, 7, 64, 200, 255, 256, 257, 300, 511, 600])),
    st.tuples(st.sampled_from(["rewind", "fill", "restore"]), st.integers(0, 100)),
)


@given(
    history=st.one_of(st.integers(0, 40), st.sampled_from([127, 200, 255, 256, 511])),
    slack=st.one_of(st.integers(0, 40), st.sampled_from([56, 129, 256, 257, 512])),
    walk=st.lists(ACTIONS, min_size=3, max_size=12),
)
@example(history=127, slack=129, walk=[("append", 300), ("append", 1), ("append", 1)])
@example(history=200, slack=56, walk=[("append", 1), ("append", 255), ("append", 1)])
@example(history=3, slack=1024, walk=[("append", 256), ("append", 1)])
@example(history=3, slack=1024, walk=[("append", 300), ("fill", 50), ("append", 1)])
@example(history=255, slack=2, walk=[("append", 300), ("restore", 0), ("rewind", 100), ("append", 1)])
@example(history=255, slack=0, walk=[("append", 1), ("append", 255), ("append", 1)])
@settings(max_examples=60, deadline=None)
def test_no_slice_is_taken_for_another(history: int, slack: int, walk: list[tuple[str, int]]) -> None:
    cache = RotatingKVCache(history, slack)
    for action, number in walk:
        if action == "append":
            new = mx.arange(cache.offset, cache.offset + number).reshape(1, 1, -1, 1).astype(mx.float32)
            (keys,) = cache.update(mx.broadcast_to(new, (1, 2, number, 4)))
            if keys.shape[2] > 1:
                assert keys[0, 0, 0, 0].item() == max(0, cache.offset - number - history)
                assert number > 1 or not is_mistaken(keys, list(cache.arrays))
        elif action == "rewind":
            cache.rewind(cache.rewindable * number // 100)
        elif cache.offset > cache.start:
            first = cache.start if action == "restore" else cache.start + (cache.offset - cache.start) * number // 101
            part = cache.copy(first, cache.offset)
            other = RotatingKVCache(history, slack)
            if action == "fill" and first > cache.start and cache.offset - first < history:
                continue  # it would hold too little for the next token
            if action == "fill":
                other.fill([part], cache.offset)
            else:
                other.restore(LayerState(cache.state))
            cache = other


@pytest.mark.parametrize(("window", "slack"), [(128, 129), (100, 156), (64, 193), (64, None)])
def test_no_step_of_a_model_has_such_keys(window: int, slack: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of lengths that leave one token over, a step after each, and steps after going back."""
    model = tiny(sliding_window=window)
    seen: list[tuple[mx.array, Any]] = []
    attend = chunk.attend

    def noted(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any) -> mx.array:
        if q.shape[2] == 1 and mask is None:
            seen.append((k, v))
        return attend(q, k, v, scale=scale, mask=mask)

    monkeypatch.setattr(chunk, "attend", noted)
    for length in (255, 256, 257, 321, 449, 600):
        cache = model.make_cache(slack)
        model(tokens(1, length), cache=cache, logits_to_keep=1)
        assert not seen, "a block of many queries is no step"
        for step in range(4):
            model(tokens(1, 1, seed=step), cache=cache)
        cache.rewind(3)
        model(tokens(1, 1), cache=cache)
        assert len(seen) == 5 * len(model.config.layer_types)
        buffers = [array for layer in cache.layers for array in layer.arrays]
        assert not any(is_mistaken(array, buffers) for both in seen[-len(model.config.layer_types) :] for array in both)
        seen.clear()
