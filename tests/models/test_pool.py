"""A pool gives every expert's own weights, keeps the last used ones, and never writes under a graph that reads."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import CheckpointError
from afmoe_mlx.models import pool as pool_module
from afmoe_mlx.models.pool import ExpertPool, ExpertReads
from helpers.experts import MemorySource, slots_of

EXPERTS, WIDTH = 8, 4


def make_pool(slots: int, pinned: int = 0) -> tuple[ExpertPool, MemorySource, ExpertReads]:
    source, reads = MemorySource(WIDTH * WIDTH), ExpertReads()
    return ExpertPool(slots_of(EXPERTS + pinned, slots, WIDTH, pinned), slots, source, reads), source, reads


def numbers(pool: ExpertPool, needed: Sequence[int]) -> dict[int, float]:
    """What the weights of experts say that they are, by way of a graph that is computed later."""
    made: dict[int, mx.array] = {}

    def compute(experts: Sequence[int], slots: Sequence[int]) -> list[mx.array]:
        assert not made.keys() & set(experts)
        weight = pool.experts.down_proj.weight
        made.update({expert: weight[slot].mean() for expert, slot in zip(experts, slots, strict=True)})
        return [made[expert] for expert in experts]

    pool.run(needed, compute)
    return {expert: float(array.item()) for expert, array in made.items()}  # type: ignore[arg-type]


needs = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS, unique=True)


@settings(max_examples=30, deadline=None)
@given(slots=st.integers(2, EXPERTS), steps=st.lists(needs, min_size=1, max_size=8))
def test_a_pool_is_a_least_recently_used_cache_of_whole_experts(slots: int, steps: list[list[int]]) -> None:
    pool, source, reads = make_pool(slots)
    held: list[int] = []
    misses = hits = 0
    for needed in steps:
        found = sum(expert in held for expert in needed)
        hits, misses = hits + found, misses + len(needed) - found
        assert numbers(pool, needed) == {expert: expert for expert in needed}
        if len(needed) <= slots:
            held = [*(expert for expert in held if expert not in needed), *needed][-slots:]
            assert pool.held == held
        else:  # no order of reading could leave the last ones in every case
            held = pool.held
            assert len(held) == slots
            assert set(held) <= set(needed)
    assert (reads.hits, reads.misses, reads.bytes_read) == (hits, misses, misses * source.expert_bytes)
    assert sum(map(len, source.batches)) == misses


def test_experts_that_always_stay_are_neither_read_nor_counted() -> None:
    pool, source, reads = make_pool(2, pinned=2)
    for needed in ([0, EXPERTS, 1, EXPERTS + 1], [EXPERTS + 1, 2, 3, EXPERTS]):
        assert numbers(pool, needed) == {expert: expert for expert in needed}
    assert (reads.hits, reads.misses) == (0, 4)
    assert all(expert < EXPERTS for batch in source.batches for expert in batch)


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_slot_is_written_only_after_what_was_made_of_it(monkeypatch: pytest.MonkeyPatch, is_waited_for: bool) -> None:
    """Without the wait, the same graphs give another expert's numbers: MLX sees no writing."""
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: None)  # the device is as slow as may be
    if not is_waited_for:
        monkeypatch.setattr(ExpertPool, "_settle", lambda self, slots: None)
    pool, _, _ = make_pool(2)
    made: list[mx.array] = []

    def compute(experts: Sequence[int], slots: Sequence[int]) -> list[mx.array]:
        made.append(pool.experts.down_proj.weight[slots[0]].mean())
        return [made[-1]]

    for expert in range(4):
        pool.run([expert], compute)
    found = [array.item() for array in made]
    assert (found == [0, 1, 2, 3]) == is_waited_for


def test_what_a_step_needs_is_read_while_the_device_computes_with_what_is_there() -> None:
    pool, source, _ = make_pool(4)
    numbers(pool, [0, 1])
    order: list[str] = []
    source.during = lambda: order.append("read")

    def compute(experts: Sequence[int], slots: Sequence[int]) -> list[mx.array]:
        order.append(f"compute {list(experts)}")
        return [pool.experts.down_proj.weight[slots[0]]]

    pool.run([0, 2, 1], compute)
    assert order == ["compute [0, 1]", "read", "compute [2]"]
    assert source.batches[-1] == [2]


@pytest.mark.parametrize("error", [CheckpointError("gone"), KeyboardInterrupt()])
def test_a_fault_leaves_no_slot_with_half_an_expert(error: BaseException) -> None:
    pool, source, reads = make_pool(3)
    numbers(pool, [0, 1, 2])

    def fail() -> None:
        source.during = lambda: None
        raise error

    source.during = fail
    with pytest.raises(type(error)):
        numbers(pool, [3, 4])
    assert not {3, 4} & set(pool.held)
    assert numbers(pool, [2, 3, 4]) == {2: 2, 3: 3, 4: 4}
    assert numbers(pool, [0, 1, 2]) == {0: 0, 1: 1, 2: 2}
    assert reads.bytes_read == reads.misses * source.expert_bytes


def test_no_interruption_loses_a_slot() -> None:
    """Wherever it comes: at every line that a step of a pool runs."""
    pool, _, _ = make_pool(2)
    numbers(pool, [0, 1])
    for place in itertools.count():
        with interrupted_at(place) as heard, suppress(KeyboardInterrupt):
            numbers(pool, [2, 3])
        assert numbers(pool, [0, 1]) == {0: 0, 1: 1}
        assert len(pool.held) == pool.slots
        if not heard:
            break


@contextmanager
def interrupted_at(place: int) -> Iterator[list[int]]:
    """Have the line at this place of those that the pool runs interrupted; what is given is empty if there was none."""
    lines, heard = itertools.count(), []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != pool_module.__file__:
            return None
        if event == "line" and next(lines) == place:
            heard.append(frame.f_lineno)
            raise KeyboardInterrupt
        return trace

    traced = sys.gettrace()
    sys.settrace(trace)
    try:
        yield heard
    finally:
        sys.settrace(traced)
