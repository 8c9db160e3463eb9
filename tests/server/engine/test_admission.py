"""Admission: nothing is begun that might not fit, and nobody waits for others for ever."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.models import read_config
from afmoe_mlx.server.engine.admission import Held, Memory, Queue
from afmoe_mlx.server.errors import RequestError
from helpers.grid import AFMOE
from helpers.tiny import tiny

CONFIG = read_config({"model_type": "afmoe", **AFMOE, "max_position_embeddings": 1 << 17})


def memory(usable: int | None, held: Held | None = None) -> Memory:
    made = Memory(CONFIG, mx.float32, None, workspace=1000, usable=lambda: usable)
    made.held = held or Held()
    return made


@dataclass(eq=False)
class Asked:
    """A job, as far as a queue knows it."""

    owner: str
    rows: int = 1
    needed: int = 0
    longest: int = 1


def asked(*owners: str, needed: int = 0) -> list[Any]:
    return [Asked(owner, needed=needed) for owner in owners]


@pytest.mark.parametrize("tokens", [1, 40, 300, 2000])
def test_what_is_reckoned_is_no_less_than_what_a_row_holds(tokens: int) -> None:
    model = tiny()
    cache = model.make_cache()
    model(mx.zeros((1, tokens), mx.int32), cache=cache)
    assert cache.nbytes <= Memory(model.config, model.dtype, None, workspace=0).needed(tokens)


@settings(max_examples=30, deadline=None)
@given(prompt=st.integers(1, 50_000), wanted=st.integers(1, 80_000), usable=st.integers(0, 1 << 27))
def test_an_answer_may_have_all_tokens_that_fit(prompt: int, wanted: int, usable: int) -> None:
    found = memory(usable)
    most = found.most
    assert most is not None
    if found.needed(prompt + 1) > most:
        with pytest.raises(RequestError, match=f"{prompt} tokens needs .* this machine has") as error:
            found.limit(prompt, wanted)
        assert error.value.status == 400
        return
    limit = found.limit(prompt, wanted)
    assert 1 <= limit <= wanted
    assert found.needed(prompt + limit) <= most
    assert limit == wanted or found.needed(prompt + limit + 1) > most


def test_where_the_device_does_not_tell_everything_fits() -> None:
    assert memory(None).limit(10**5, 10**6) == 10**6
    assert memory(None).has_room([Asked("a", needed=1 << 60)])  # type: ignore[list-item]


def test_what_the_store_may_still_take_and_what_rows_hold_count() -> None:
    """All rows together have what is free and what they hold already, but for what the store is promised."""
    assert memory(50_000, Held(rows=7000, store=300, most_in_store=1300)).most == 50_000 + 7000 - 1000 - 1000
    found = memory(50_000)
    assert found.has_room(asked("a", needed=49_000))
    assert not found.has_room(asked("a", "b", needed=24_501))


def test_rows_are_reckoned_as_long_as_the_longest_beside_them() -> None:
    """As far as they may share a cache."""
    found, short, long = memory(None), Asked("a", rows=3, needed=10), Asked("b", needed=10, longest=500)
    alone: Any = [[short], [long]]
    assert [found.needed_by(jobs) for jobs in alone] == [10 + 2 * found.needed(256) // 256, 10]
    assert found.needed_by([short, long]) == 20 + 3 * 500 * found.needed(256) // 256  # type: ignore[list-item]
    long.longest = 10**9
    assert found.needed_by([short, long]) == 20 + 32_000 * found.needed(256) // 256  # type: ignore[list-item]


def test_several_answers_that_can_never_fit_together_are_refused_in_numbers() -> None:
    many: Any = Asked("a", rows=4, needed=49_100)
    with pytest.raises(RequestError, match=r"4 answers at once need .* this machine has .*: ask for fewer") as error:
        memory(50_000).check(many)
    assert error.value.status == 400
    memory(60_000_000).check(many)


def test_of_one_owner_the_first_is_next() -> None:
    queue, jobs = Queue(max_waiting=3), asked("a", "a", "a")
    for job in jobs:
        queue.put(job)
    for job in jobs:
        assert queue.next([]) is job
        assert queue.take(job)
    assert queue.next([]) is None
    assert not queue.take(jobs[0])


def test_who_has_fewer_rows_is_next() -> None:
    queue, (a, other, b) = Queue(max_waiting=3), asked("a", "a", "b")
    for job in (a, other, b):
        queue.put(job)
    assert queue.next(asked("a")) is b
    assert queue.next(asked("a", "b")) is a
    assert queue.next([Asked("b", rows=2), *asked("a")]) is a  # type: ignore[list-item]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(1, 3))
def test_every_request_has_its_turn(owners: list[str], rows: int) -> None:
    """However many others one owner asks, another's first waits for no more than the rows that there are."""
    queue, running = Queue(max_waiting=100), list[Any]()
    for job in asked(*owners):
        queue.put(job)
    order = []
    while len(queue):
        running = running[-rows + 1 :] if rows > 1 else []
        job = queue.next(running)
        assert job is not None
        queue.take(job)
        running.append(job)
        order.append(job.owner)
    assert sorted(order) == sorted(owners)
    for owner in set(owners):
        assert order.index(owner) < len(set(owners)) * rows


def test_each_owner_may_have_so_many_waiting() -> None:
    queue = Queue(max_waiting=2)
    for job in asked("a", "a", "b"):
        queue.put(job)
    with pytest.raises(RequestError, match="2 requests wait") as error:
        queue.put(asked("a")[0])
    assert (error.value.status, error.value.code) == (429, "queue_full")
    assert error.value.retry_after
    assert len(queue) == 3
    assert len(queue.clear()) == 3
    assert not len(queue)
