"""Several sequences at once: each gets what it gets alone, whoever comes and goes beside it."""

from collections.abc import Sequence
from functools import cache
from threading import Thread
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import device
from afmoe_mlx.cache import KVQuantization, PrefixStore, buffers
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import (
    BatchEngine,
    Chosen,
    Event,
    Request,
    decode,
    greedy_rows,
    grouping,
    prefill,
    prompt_reader,
)
from afmoe_mlx.models import CausalLM, fuse, moe
from helpers.tiny import tiny, tokens, two_layers

# A key between two codes of 8 bits may take the other one, by a rounding that the product of several rows has.
TOLERANCE, ANOTHER_CODE = 2e-5, 2e-3
STEP = 8  # prompt tokens at a time: the window's
LENGTHS = (1, 3, 7, 8, 16, 29)
LIMIT = 14


@cache
def model_of(kind: str) -> CausalLM:
    widths = {"head_dim": 32, "intermediate_size": 64, "moe_intermediate_size": 32}
    model = fuse(tiny("lfm2_moe" if "lfm2" in kind else "afmoe", **widths))
    if "4 bits" in kind:
        nn.quantize(model, 32, 4)
    if "kv" in kind:
        model.kv_quantization = KVQuantization(8, 32, start=12 if "later" in kind else 0)
    mx.eval(model.parameters())  # here: another thread could not
    return model


@cache
def prompt(n: int) -> tuple[int, ...]:
    return tuple(tokens(1, LENGTHS[n], seed=n)[0].tolist())  # type: ignore[arg-type]


@cache
def alone(kind: str, n: int) -> list[tuple[int, mx.array]]:
    """The tokens after a prompt, with their log-probabilities, as one sequence gets them."""
    model = model_of(kind)
    own = model.make_cache()
    logits = prefill(model, prompt(n), own, step_size=STEP)
    return list(decode(model, logits, own, lambda logprobs: mx.argmax(logprobs, axis=-1), limit=LIMIT))


def check(kind: str, request: Request, events: Sequence[Event]) -> None:
    expected = alone(kind, LENGTHS.index(len(request.prompt)))
    assert request.answer == [event.token for event in events] == [token for token, _ in expected[: len(events)]]
    for event, (_, logprobs) in zip(events, expected, strict=False):
        assert event.logprobs is not None
        assert mx.abs(event.logprobs - logprobs).max() < (ANOTHER_CODE if "kv" in kind else TOLERANCE)
    if request.finish_reason == "length":
        assert len(events) == request.limit


KINDS = ["afmoe", "afmoe 4 bits", "afmoe kv", "lfm2", "lfm2 kv later"]
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, len(LENGTHS) - 1), st.integers(1, LIMIT)),
        st.tuples(st.just("step"), st.integers(1, 4), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 9), st.none()),
    ),
    max_size=12,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(moves=MOVES, stored=st.booleans())
def test_each_row_gets_what_it_gets_alone(kind: str, moves: list[tuple[str, int, Any]], stored: bool) -> None:
    """Over arrivals and cancellations at any time, in one group or several, past the window and what is kept of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "ROW_SLACK", 6)
        patch.setattr(grouping, "GROUP_COST", 20)
        patch.setattr(grouping, "WORTH_IT", 2)
        for name in ("DEQUANTIZE_FROM", "SLOWLY_DEQUANTIZE_FROM"):  # other products than a row alone takes
            patch.setattr(device, name, 2)
        patch.setattr(moe, "SORT_FROM", 5)
        patch.setattr(moe, "SORT_FROM_PER_EXPERT", 0)
        model = model_of(kind)
        store = PrefixStore(model, block_size=32) if stored and "later" not in kind else None
        engine = BatchEngine(model, max_rows=4, prefill_step_size=STEP, store=store)
        found: dict[Request, list[Event]] = {}
        moves = [*(("add", n, LIMIT) for n in (5, 0, 1)), *moves, ("step", 200, None)]
        for move, n, limit in moves:
            if move == "add":
                found[engine.add(prompt(n), limit=limit)] = []
            elif move == "remove":
                engine.remove(list(found)[n % len(found)])
            else:
                for _ in range(n if engine else 0):
                    for event in engine.step():
                        assert event.error is None
                        found[event.request].append(event)
        assert not len(engine)
        assert engine.nbytes == 0
        for request, events in found.items():
            assert request.finish_reason in ("length", "removed")
            check(kind, request, events)


def started(engine: BatchEngine, *requests: int, limit: int = LIMIT) -> list[Request]:
    """Requests that have all joined."""
    made = [engine.add(prompt(n), limit=limit) for n in requests]
    while len(engine.step()) < len(made):
        pass
    return made


def test_a_row_that_leaves_frees_its_memory_at_once() -> None:
    engine = BatchEngine(model_of("afmoe"))
    long, *_ = started(engine, 5, 1, 2)
    mx.synchronize()
    held, active = engine.nbytes, mx.get_active_memory()
    engine.remove(long)
    assert engine.nbytes == 2 * held // 3  # buffers grow in steps of more than any of the rows has
    assert mx.get_active_memory() <= active - held // 4
    engine.remove(*engine._rows)
    assert engine.nbytes == 0
    assert mx.get_active_memory() <= active - held * 3 // 4


def test_a_prompt_half_read_is_let_go_of_at_once() -> None:
    engine = BatchEngine(model_of("afmoe"), prefill_step_size=STEP)
    request = engine.add(prompt(5), limit=1)
    engine.step()
    assert 0 < request.read_tokens < len(request.prompt)
    assert engine.nbytes
    engine.remove(request)
    assert request.cache is None
    assert engine.nbytes == len(engine) == 0


def test_no_more_rows_run_than_may_whatever_caches_they_have() -> None:
    model = model_of("afmoe")
    engine = BatchEngine(model, max_rows=2)
    kept = [None, None, None, *(model.make_cache(kv_quantization=KVQuantization(8, 32)) for _ in range(2))]
    requests = [engine.add(prompt(1), limit=3, cache=own) for own in kept]
    while engine:
        engine.step()
        assert engine.running <= 2
    assert all(request.finish_reason == "length" for request in requests)


def test_a_row_that_cannot_choose_ends_alone() -> None:
    error = ValueError("no")

    def sampler(logits: mx.array, rows: Sequence[Request]) -> Chosen:
        chosen = greedy_rows(logits, rows)
        failed = {i: error for i, row in enumerate(rows) if row.choose == len(row.answer)}
        return Chosen(chosen.tokens, chosen.logprobs, failed)

    engine = BatchEngine(model_of("afmoe"), sampler)
    requests = [engine.add(prompt(n), limit=6, choose=failing) for n, failing in enumerate([None, 2, 0])]
    events = [event for _ in range(10) for event in engine.step()]
    assert [(event.error, event.token) for event in events if event.finish_reason == "error"] == 2 * [(error, None)]
    assert [request.finish_reason for request in requests] == ["length", "error", "error"]
    for request in requests:
        check("afmoe", request, [event for event in events if event.request is request and event.error is None])


def test_where_the_sampler_itself_fails_all_rows_end_and_what_waits_goes_on() -> None:
    def sampler(logits: mx.array, rows: Sequence[Request]) -> Chosen:
        if len(rows) > 1 and len(rows[0].answer) > 3:
            raise RuntimeError("broken")
        return greedy_rows(logits, rows)

    engine = BatchEngine(model_of("afmoe"), sampler, max_rows=2)
    rows = started(engine, 1, 2)
    waiting = engine.add(prompt(0), limit=2)
    errors = []
    while engine:
        errors += [event.request for event in engine.step() if event.error is not None]
    assert len(errors) == 2
    assert set(errors) == set(rows)
    assert [row.finish_reason for row in (*rows, waiting)] == ["error", "error", "length"]


def test_an_engine_may_have_a_thread_of_its_own() -> None:
    engine, events = BatchEngine(model_of("lfm2")), []

    def run() -> None:
        while engine:
            events.extend(engine.step())

    requests = [engine.add(prompt(n), limit=4) for n in (4, 2)]
    thread = Thread(target=run)
    thread.start()
    thread.join()
    for request in requests:
        check("lfm2", request, [event for event in events if event.request is request])


def test_a_prompt_that_cannot_be_run_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BatchEngine(model_of("afmoe"), prefill_step_size=STEP)
    (first,) = started(engine, 0)
    broken = engine.add(prompt(5), limit=3)
    run, calls = prompt_reader.PromptReader._run, []

    def failing(self: prompt_reader.PromptReader, request: Request, *rest: Any) -> mx.array:
        calls.append(request)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return run(self, request, *rest)

    monkeypatch.setattr(prompt_reader.PromptReader, "_run", failing)
    events = [event for _ in range(20) for event in engine.step()]
    assert [event.finish_reason for event in events if event.request is broken] == ["error"]
    assert first.finish_reason == "length"
    assert first.answer == [token for token, _ in alone("afmoe", 0)]


def test_the_next_step_is_under_way_before_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, order = BatchEngine(model_of("afmoe")), []
    started(engine, 1, 2)
    for name in ("_forward", "_hand_out", "_choose"):
        method = getattr(BatchEngine, name)
        monkeypatch.setattr(BatchEngine, name, lambda *a, n=name, m=method: order.append(n) or m(*a))
    engine.step()
    assert order == ["_forward", "_hand_out", "_choose"]


@pytest.mark.parametrize("kind", ["afmoe kv", "lfm2"])
@pytest.mark.parametrize(
    ("stored", "step", "shapes"), [(False, None, [(4, 16), (1, 1), (1, 29)]), (True, 23, [(2, 8), (1, 1), (1, 3)])]
)
def test_short_prompts_are_read_together(
    kind: str, stored: bool, step: int | None, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as make a chunk, padding included; of the last one the store knows the beginning."""
    model = model_of(kind)
    store = PrefixStore(model, block_size=4) if stored else None
    engine, calls = BatchEngine(model, store=store, prefill_step_size=step), []
    call = type(model).__call__
    monkeypatch.setattr(type(model), "__call__", lambda *a, **k: calls.append(a[1].shape) or call(*a, **k))
    requests = [engine.add(prompt(n), limit=5) for n in (3, 2, 4, 2, 5, 0)]
    events = engine.step()
    assert calls == shapes
    engine.remove(requests[3])
    assert len(engine) == 5
    while engine:
        events += engine.step()
    for request in requests:
        check(kind, request, [event for event in events if event.request is request])
    assert store is None or store.reach([*prompt(3), 1]) == 8


def test_prompts_are_read_alone_where_padding_would_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantization that begins at some token would begin early in a padded row."""
    model, calls = model_of("lfm2 kv later"), []
    call = type(model).__call__
    monkeypatch.setattr(type(model), "__call__", lambda *a, **k: calls.append(a[1].shape) or call(*a, **k))
    engine = BatchEngine(model)
    for n in (3, 2):
        engine.add(prompt(n), limit=1)
    engine.step()
    assert calls == [(1, 8), (1, 7)]


def test_tokens_that_end_an_answer_end_it() -> None:
    engine = BatchEngine(model_of("afmoe"))
    expected = [token for token, _ in alone("afmoe", 3)]
    request = engine.add(prompt(3), limit=LIMIT, ends={expected[4]})
    while engine:
        engine.step()
    assert request.finish_reason == "stop"
    assert request.answer == expected[: expected.index(expected[4]) + 1]


@pytest.mark.parametrize("count", [1, 3])
def test_prompts_are_read_between_steps_in_chunks_that_delay_them_little(count: int) -> None:
    engine = BatchEngine(model_of("afmoe"), chunk_seconds=0)
    started(engine, 0)
    long = [engine.add([1] * 200, limit=1) for _ in range(count)]
    engine.step()
    first = sum(request.read_tokens for request in long)
    assert 0 < first < 200  # nothing is known yet of how long a token takes beside rows
    engine.step()
    assert 0 < sum(request.read_tokens for request in long) - first <= first
    assert 2 <= engine.running <= 1 + count


def test_a_short_prompt_overtakes_long_ones() -> None:
    engine = BatchEngine(model_of("afmoe"), prefill_step_size=STEP)
    long = [engine.add([n] * 20 * STEP, limit=1) for n in (1, 2)]
    engine.step()
    short, steps = engine.add([3] * STEP, limit=1), 0
    while not short.is_over:
        engine.step()
        steps += 1
    assert steps <= 3  # a chunk of a long one, its own, and its token's
    assert not any(request.is_over for request in long)


def test_no_prompt_waits_for_ever_however_many_short_ones_come() -> None:
    engine = BatchEngine(model_of("afmoe"), max_rows=50, prefill_step_size=STEP)
    long, steps = engine.add([1] * 10 * STEP, limit=1), 0
    while not long.is_over and steps < 40:
        engine.add([3] * STEP, limit=1)
        engine.step()
        steps += 1
    assert steps <= 2 * 10 + 2


def test_prompts_that_begin_alike_are_read_once() -> None:
    """Whichever is read, the others go on from there."""
    model = model_of("afmoe")
    engine = BatchEngine(model, store=PrefixStore(model, block_size=32), prefill_step_size=STEP)
    shared = [1] * 96
    requests = [engine.add([*shared, *[n] * (n * STEP)], limit=1) for n in (5, 4, 3)]
    while engine:
        engine.step()
    run = [len(request.prompt) - request.cached_tokens for request in requests]
    assert sum(run) == len(shared) + (5 + 4 + 3) * STEP


def test_under_pressure_what_other_prompts_begin_with_stays_known() -> None:
    """A system prompt's end keeps what a window before it needs, as an answer's end does."""
    model = two_layers("afmoe", 9)
    asked: list[int] = tokens(1, 256)[0].tolist()  # type: ignore[assignment]

    def kept(mark: int, max_bytes: int | None = None) -> PrefixStore:
        store = PrefixStore(model, block_size=8, max_bytes=max_bytes)
        engine = BatchEngine(model, store=store)
        engine.add(asked, limit=1, mark=mark)
        while engine:
            engine.step()
        return store

    room = kept(0).nbytes * 6 // 10
    assert [kept(mark, room).reach([*asked[:110], 0]) for mark in (0, 100)] == [0, 96]


def test_the_stores_of_owners_are_each_their_own() -> None:
    model = model_of("afmoe")
    store = PrefixStore(model, block_size=32)
    engine = BatchEngine(model, store=store)
    known = []
    for owner in ("one", "two", "one"):
        request = engine.add([1] * 70, limit=1, store=store.for_owner(owner))
        while engine:
            engine.step()
        known.append(request.cached_tokens)
    assert known == [0, 0, 64]
    assert not store.reach([1] * 70)


def test_an_answer_is_found_again_in_the_store() -> None:
    model = model_of("afmoe")
    store = PrefixStore(model, block_size=32)
    engine = BatchEngine(model, store=store)
    long, _ = started(engine, 5, 2)
    while engine:
        engine.step()
    assert store.reach([*long.tokens, 1]) == 32
    again = engine.add([*long.tokens, 1], limit=2)
    engine.step()
    assert again.cached_tokens == 32


def test_what_makes_no_sense_is_refused() -> None:
    model = model_of("afmoe")
    engine = BatchEngine(model)
    for options in ({"tokens": [], "limit": 1}, {"tokens": [1], "limit": 0}, {"tokens": [99], "limit": 1}):
        with pytest.raises(InputError):
            engine.add(**options)
    with pytest.raises(InputError, match="max_rows"):
        BatchEngine(model, max_rows=0)
    with pytest.raises(InputError, match="another model"):
        BatchEngine(model, store=PrefixStore(model_of("lfm2")))
