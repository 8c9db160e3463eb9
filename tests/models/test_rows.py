"""A step of many rows costs hardly more operations than one of a single row, and asks the device for nothing."""

from collections.abc import Sequence

import mlx.core as mx
import pytest

from afmoe_mlx.cache import Cache, regroup
from afmoe_mlx.errors import InputError
from afmoe_mlx.models import CausalLM, fuse
from benchmarks.operations import operations
from helpers.tiny import ARCHITECTURES, tiny, tokens


def groups_of(model: CausalLM, *lengths: Sequence[int]) -> list[Cache]:
    """A cache for each group of rows of these lengths."""
    groups = []
    for group in lengths:
        caches = [model.make_cache() for _ in group]
        for length, cache in zip(group, caches, strict=True):
            model(tokens(1, length), cache=cache)
            mx.eval(cache.arrays)
        groups.append([(cache, 0) for cache in caches])
    return regroup(groups)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_sixteen_rows_take_hardly_more_operations_than_one(model_type: str) -> None:
    model = fuse(tiny(model_type))

    def count(*lengths: Sequence[int]) -> int:
        groups = groups_of(model, *lengths)
        step = model.step(mx.zeros(sum(map(len, lengths)), mx.int32), groups)
        return operations(step).total()

    one = count([5])
    assert count([5] * 16) == one
    layers, masks = len(model.layers), 2  # padded rows: a mask each way of keeping keys, and its use in every layer
    assert count([*[5] * 15, 3]) <= one + layers + 5 * masks
    assert count([5] * 8, [6] * 8) <= 1.3 * one


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_step_of_groups_asks_the_device_for_nothing(model_type: str) -> None:
    """Within a trace every host read of an array is an error."""
    model = fuse(tiny(model_type))
    groups = groups_of(model, [5, 3], [9])

    def two_steps(token: mx.array) -> mx.array:
        for _ in range(2):
            token = mx.argmax(model.step(token, groups), axis=-1)
        return token

    assert mx.compile(two_steps)(mx.array([1, 2, 3])).shape == (3,)


def test_another_number_of_tokens_than_of_rows_is_refused() -> None:
    model = tiny("afmoe")
    with pytest.raises(InputError, match=r"expected \(2,\)"):
        model.step(mx.array([1]), groups_of(model, [3, 4]))
