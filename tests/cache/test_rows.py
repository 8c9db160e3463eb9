"""Rows of caches come together and part without a change to any of them."""

import mlx.core as mx
import pytest

from afmoe_mlx.cache import Cache, KVQuantization, regroup, row_kind, row_lengths, row_of
from afmoe_mlx.errors import CacheError
from helpers.tiny import ARCHITECTURES, tiny, tokens


def filled(model_type: str, *lengths: int) -> list[Cache]:
    model = tiny(model_type)
    caches = [model.make_cache() for _ in lengths]
    for i, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
        mx.eval(model(tokens(1, length, seed=i), cache=cache))
    return caches


def contents(cache: Cache) -> list[list[list[float]]]:
    """All numbers of a cache of one row, the oldest of sliding layers aside."""
    return [[a[..., -7:, :].tolist() for a in layer.copy(layer.start, layer.offset)] for layer in cache.layers]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_row_of_a_group_holds_what_it_held_alone(model_type: str) -> None:
    lengths = [3, 1, 20, 9]
    alone = [contents(cache) for cache in filled(model_type, *lengths)]
    first, second = regroup([[(cache, 0) for cache in filled(model_type, *lengths)[n:][:2]] for n in (0, 2)])
    assert row_lengths(first) == lengths[:2]
    assert first.left_padding == (0, 2)
    places = [(second, 1), (first, 0), (second, 0)]  # row 1 leaves
    (group,) = regroup([places])
    for i, row in enumerate((3, 0, 2)):
        assert contents(row_of(group, i)) == alone[row]
    assert not first.arrays
    assert not second.arrays


def test_a_group_that_stays_keeps_its_buffers() -> None:
    caches = filled("afmoe", 4, 4, 6)
    (pair,) = regroup([[(caches[0], 0), (caches[1], 0)]])
    same, other = regroup([[(pair, 0), (pair, 1)], [(caches[2], 0)]])
    assert same is pair
    assert other is caches[2]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_one_layer_at_a_time_is_there_twice(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = filled(model_type, 40, 3)
    most, held = 0, sum(cache.nbytes for cache in caches)
    evaluate = mx.eval

    def counted(*arrays: object) -> None:
        nonlocal most
        evaluate(*arrays)
        most = max(most, sum(cache.nbytes for cache in caches))
        assert mx.get_active_memory() - before < 1.5 * held  # with padding

    evaluate(*(cache.arrays for cache in caches))
    before = mx.get_active_memory()
    monkeypatch.setattr(mx, "eval", counted)
    regroup([[(cache, 0) for cache in caches]])
    assert most == held  # the first layer was made while all were there, the others after it was gone


def test_rows_with_quantized_keys_are_of_another_kind_than_those_before_it_began() -> None:
    cache = tiny("afmoe", head_dim=32).make_cache(kv_quantization=KVQuantization(8, start=10))
    assert len({row_kind(cache, length) for length in (1, 9)}) == 1
    assert row_kind(cache, 9) != row_kind(cache, 10)


@pytest.mark.parametrize("index", [-1, 1])
def test_a_row_that_is_not_there_is_refused(index: int) -> None:
    (cache,) = filled("afmoe", 4)
    with pytest.raises(CacheError, match="1 rows with tokens"):
        regroup([[(cache, index)]])
    assert cache.offset == 4
    with pytest.raises(CacheError, match="two groups"):
        regroup([[(cache, 0)], [(cache, 0), *((other, 0) for other in filled("afmoe", 3))]])
