"""What a footprint says of caches is what they hold."""

import mlx.core as mx
import pytest

from afmoe_mlx.cache import KVQuantization
from afmoe_mlx.cache.quantized import BITS
from afmoe_mlx.footprint.cache import layer_caches
from afmoe_mlx.models import read_config
from afmoe_mlx.models.shapes import shape
from helpers.tiny import ARCHITECTURES, tiny, tokens, two_layers


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [1, 37, 1500])
def test_a_cache_never_holds_more_and_just_that_until_a_window_wraps(model_type: str, chunk: int) -> None:
    model = two_layers(model_type, 8, max_position_embeddings=4096)
    ids = tokens(1, 1500)
    cache = model.make_cache()
    for start in range(0, 300 if chunk == 1 else 1500, chunk):
        model(ids[:, start : start + chunk], cache=cache)
        mx.eval(cache.arrays)
        caches = layer_caches(model.config, cache.offset, mx.float32)
        held = sum(kind.held for kind in caches.values())
        assert cache.nbytes == held if cache.offset <= 1024 else cache.nbytes <= held


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("quantization", [*map(KVQuantization, BITS), KVQuantization(4, start=300)], ids=str)
def test_a_quantized_cache_never_holds_more_and_just_that_once_it_is_quantized(
    model_type: str, quantization: KVQuantization
) -> None:
    model = tiny(model_type, head_dim=32, hidden_size=64, num_attention_heads=2, max_position_embeddings=4096)
    model.kv_quantization = quantization
    ids, cache, most = tokens(1, 900), model.make_cache(), 0
    for start in range(0, 900, 150):
        model(ids[:, start : start + 150], cache=cache)
        mx.eval(cache.arrays)
        caches = layer_caches(model.config, cache.offset, mx.float32, quantization)
        held, most = sum(kind.held for kind in caches.values()), max(most, cache.nbytes)
        assert most <= held
        if cache.offset <= quantization.start or quantization.start == 0:
            assert cache.nbytes == held
    plain = layer_caches(model.config, cache.offset, mx.float32)
    assert caches["full_attention"].held <= plain["full_attention"].held / 2  # at its start still as it was
    bits = quantization.bits + 2  # a scale and a bias in float32 for 32 numbers
    assert caches["full_attention"].read == plain["full_attention"].read * bits / 32
    bounded = plain.keys() - {"full_attention"}
    assert {kind: caches[kind] for kind in bounded} == {kind: plain[kind] for kind in bounded}


def test_a_sliding_layers_cache_is_bounded_and_a_full_layers_grows_with_the_conversation() -> None:
    short, long = (layer_caches(read_config(shape("trinity-nano")), tokens, mx.bfloat16) for tokens in (8192, 131072))
    assert short["sliding_attention"] == long["sliding_attention"]
    assert long["full_attention"].held == 16 * short["full_attention"].held
    # 2047 columns and 1024 of slack, of which a token attends to 2048; keys and values of 2 heads of 128
    assert long["sliding_attention"].held == 42 * 3071 * 2 * 2 * 128 * 2
    assert long["sliding_attention"].read == 42 * 2048 * 2 * 2 * 128 * 2
    assert (long["sliding_attention"].layers, long["full_attention"].layers) == (42, 14)
