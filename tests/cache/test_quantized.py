"""Keys and values in few bits: what such a cache holds, and that it steps back, batches and continues as others do."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import mlx.core as mx
import pytest
from hypothesis import given, settings

from afmoe_mlx.cache import Cache, KVQuantization, PrefixStore, QuantizedKVCache
from afmoe_mlx.errors import CacheError, InputError
from afmoe_mlx.models import CausalLM, fuse
from afmoe_mlx.models.attention import attend, attend_quantized
from helpers.tiny import ARCHITECTURES, tiny, tokens

TOLERANCE = 2e-5
# How far logits may move, as a share of their spread: two layers of random keys, in groups of 32.
DRIFT = {8: 0.02, 6: 0.06, 5: 0.13, 4: 0.3, 3: 0.6, 2: 1.0}
LAYERS = {"afmoe": ["full_attention", "sliding_attention"], "lfm2_moe": ["full_attention", "conv"]}


def model(model_type: str) -> CausalLM:
    """Without experts, whose choice would jump where keys drift."""
    sizes: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "num_hidden_layers": 2, "num_dense_layers": 2}
    return fuse(tiny(model_type, **sizes, layer_types=LAYERS[model_type]))


def quantization(bits: int = 8, start: int = 0) -> KVQuantization:
    return KVQuantization(bits, group_size=32, start=start)


def quantized_cache(net: CausalLM, how: KVQuantization) -> Cache:
    net.kv_quantization = how
    try:
        return net.make_cache()
    finally:
        net.kv_quantization = None


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("bits", DRIFT)
def test_logits_drift_little(model_type: str, bits: int) -> None:
    net, ids = model(model_type), tokens(2, 60)
    cache = quantized_cache(net, quantization(bits))
    found = mx.concatenate([net(ids[:, i : i + 7], cache=cache) for i in range(0, 60, 7)], axis=1)
    expected = net(ids)
    assert 0 < (mx.square(found - expected).mean().sqrt() / expected.std()).item() < DRIFT[bits]


@pytest.mark.parametrize("bits", DRIFT)
@pytest.mark.parametrize("length", [1, 5])
def test_attention_over_quantized_keys_is_attention_over_what_they_stand_for(bits: int, length: int) -> None:
    q = mx.random.normal((2, 4, length, 32), key=mx.random.key(0))
    net = QuantizedKVCache(quantization(bits))
    k, v = net.update(*(mx.random.normal((2, 2, 12, 32), key=mx.random.key(i)) for i in (1, 2)))
    found = attend_quantized(q, k, v, scale=0.2)
    assert mx.allclose(found, attend(q, k.dequantized(), v.dequantized(), scale=0.2, mask=None), atol=1e-5)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 30), lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6), back=st.integers(0, 9))
def test_stepping_back_then_going_on_is_never_having_gone_there(
    model_type: str, start: int, lengths: list[int], back: int
) -> None:
    net, ids = model(model_type), tokens(1, 80)
    cache = quantized_cache(net, quantization(start=start))
    straight = quantized_cache(net, quantization(start=start))
    end = 0
    for length in lengths:
        net(ids[:, end : end + length], cache=cache)
        net(ids[:, end : end + length], cache=straight)
        end += length
    if back:
        net(ids[:, 40 : 40 + back], cache=cache)
    if cache.rewindable < back:
        assert end <= start < end + back  # where it was not quantized yet: there is no way back
        with pytest.raises(CacheError):
            cache.rewind(back)
        return
    cache.rewind(back)
    found, expected = (net(ids[:, end : end + 3], cache=c) for c in (cache, straight))
    assert mx.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_padded_row_is_the_row_alone(model_type: str) -> None:
    net, ids = model(model_type), tokens(2, 20)
    cache = quantized_cache(net, quantization())
    net(ids[:, :8], attention_mask=mx.array([[0] * 3 + [1] * 5, [1] * 8]), cache=cache)
    found = net(ids[:, 8:], cache=cache)[:1]
    alone = quantized_cache(net, quantization())
    net(ids[:1, 3:8], cache=alone)
    assert mx.abs(found - net(ids[:1, 8:], cache=alone)).max() < TOLERANCE


def test_until_the_start_nothing_is_lost_and_from_there_on_all_is_quantized() -> None:
    net, ids = model("afmoe"), tokens(1, 40)
    cache, plain = quantized_cache(net, quantization(4, start=20)), net.make_cache()
    assert mx.array_equal(net(ids[:, :20], cache=cache), net(ids[:, :20], cache=plain))
    assert len(cache.layers[0].arrays) == 2
    net(ids[:, 20:21], cache=cache)
    assert len(cache.layers[0].arrays) == 6
    assert cache.layers[0].nbytes < plain.layers[0].nbytes / 4  # of float32: 4 bits and two scales for 32
    assert len(cache.layers[1].arrays) == 2  # a sliding layer is bounded as it is


@pytest.mark.parametrize("start", [0, 100])
def test_a_state_goes_on_elsewhere(start: int) -> None:
    net, ids = model("afmoe"), tokens(1, 30)
    caches = [quantized_cache(net, quantization(start=start)) for _ in range(2)]
    net(ids[:, :20], cache=caches[0])
    caches[1].state = caches[0].state
    found, expected = (net(ids[:, 20:], cache=cache) for cache in caches)
    assert mx.array_equal(found, expected)


def test_a_quantized_state_is_refused_by_a_plain_cache() -> None:
    net = model("afmoe")
    cache = quantized_cache(net, quantization())
    net(tokens(1, 5), cache=cache)
    with pytest.raises(CacheError, match="quantized otherwise"):
        net.make_cache().state = cache.state


@pytest.mark.parametrize("arguments", [(1,), (7,), (True,), (4.0,), (4, 48), (8, 64, -1), (8, 64, True)])
def test_what_there_is_no_kernel_for_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match="expected"):
        KVQuantization(*arguments)


def test_groups_that_do_not_fit_the_heads_are_refused() -> None:
    with pytest.raises(InputError, match="heads have 32 dimensions: expected 32"):
        quantized_cache(model("afmoe"), KVQuantization(8, 64))


@pytest.mark.parametrize("start", [0, 30])
def test_a_store_gives_back_what_was_quantized_from_memory_and_disk(start: int, tmp_path: Path) -> None:
    net, ids = model("afmoe"), tokens(1, 60)
    net.kv_quantization = quantization(start=start)
    cache = net.make_cache()
    for first in range(0, 50, 10):  # kept before and after the quantization begins
        net(ids[:, first : first + 10], cache=cache)
        store = PrefixStore(net, block_size=8, directory=tmp_path)
        store.insert(ids[0, : first + 10].tolist(), cache)
        store.flush()
    for one in (store, PrefixStore(net, block_size=8, directory=tmp_path)):
        found, count = one.lookup(ids[0].tolist())
        assert count == 48
        straight = net.make_cache()
        net(ids[:, :count], cache=straight)
        difference = mx.abs(net(ids[:, count:], cache=found) - net(ids[:, count:], cache=straight)).max()
        assert difference < (TOLERANCE if start == 0 else 0.5)
        assert one.counters["damaged"] == 0


def test_stores_of_other_quantizations_share_nothing(tmp_path: Path) -> None:
    net, ids = model("afmoe"), tokens(1, 30)
    for how in (None, quantization(8), quantization(4)):
        net.kv_quantization = how
        store, cache = PrefixStore(net, block_size=8, directory=tmp_path), net.make_cache()
        assert store.lookup(ids[0].tolist())[1] == 0
        net(ids, cache=cache)
        store.insert(ids[0].tolist(), cache)
        store.flush()
        assert PrefixStore(net, block_size=8, directory=tmp_path).lookup(ids[0].tolist())[1] == 24
