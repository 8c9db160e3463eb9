"""The prefix store: every continuation is that of a cold run, shared beginnings are stored once, memory is bounded."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from afmoe_mlx import device
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.cache.blocks import SHORT, block_ends
from afmoe_mlx.errors import CacheError, InputError
from afmoe_mlx.models import CausalLM
from helpers.stores import TOLERANCE, check, ids, run, seen
from helpers.tiny import ARCHITECTURES, tiny, tokens, two_layers

LONGEST = 300
MODEL = two_layers("afmoe", 8)


class Conversations(RuleBasedStateMachine):
    """Conversations that grow, branch, are edited and come back, over stores that forget and processes that end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.conversations: list[list[int]] = [[]]

    @initialize(
        model_type=st.sampled_from(ARCHITECTURES),
        window=st.one_of(st.integers(1, 8), st.integers(1, 64)),
        block_size=st.one_of(st.integers(4, 8), st.integers(4, 64)),
        slack=st.sampled_from([0, 1, 2, 7, 40, None]),
        blocks=st.sampled_from([0, 2, 5, 12, 1000]),
        blocks_on_disk=st.sampled_from([None, 3, 12, 1000]),
    )
    def begin(self, model_type: str, window: int, block_size: int, slack: int | None, blocks: int, **disk: Any) -> None:
        self.model = two_layers(model_type, window)
        self.slack = slack
        nbytes = block_size * 256 * 2  # of a block at most, roughly
        on_disk = disk["blocks_on_disk"]
        self.options: dict[str, Any] = {"block_size": block_size, "max_bytes": blocks * nbytes}
        if on_disk is not None:
            self.options |= {"directory": self.folder.name, "max_disk_bytes": on_disk * nbytes}
        self.restart()

    @rule()
    def restart(self) -> None:
        if hasattr(self, "store"):
            self.store.flush()
        self.store = PrefixStore(self.model, **self.options)

    @rule(
        which=st.integers(0, 1000),
        cut=st.integers(0, 130),
        length=st.sampled_from([1, 2, 9, 30, 100]),
        chunk=st.sampled_from([1, 5, 16, 1000]),
        back=st.integers(0, 3),
        seed=st.integers(0, 3),
    )
    def answer(self, which: int, cut: int, length: int, chunk: int, back: int, seed: int) -> None:
        """Continue a conversation from a share of it, in hundredths; a new branch where that is not all."""
        conversation = self.conversations[which % len(self.conversations)]
        kept = conversation[: len(conversation) * cut // 100]
        whole = (kept + ids(length, seed))[:LONGEST]
        cache, n = self.store.lookup(whole, slack=self.slack)
        assert 0 <= n < len(whole)
        logits = []
        step = 1 if len(whole) - n < 12 else chunk if chunk > 1 else 7
        for start in range(n, len(whole), step):
            logits.append(run(self.model, whole[start : start + step], cache))
            if chunk != 5:
                self.store.insert(whole[: cache.offset], cache)
        expected = run(self.model, whole)
        assert np.abs(np.concatenate(logits) - expected[n:]).max() < TOLERANCE
        again = min(back, cache.rewindable, len(whole) - 1)
        if again:
            cache.rewind(again)
            assert np.abs(run(self.model, whole[-again:], cache) - expected[-again:]).max() < TOLERANCE
        self.store.insert(whole, cache, marks=[len(kept), len(whole)] if seed else [])
        self.conversations.append(whole)

    @precondition(lambda self: "directory" in self.options)
    @rule()
    def flush(self) -> None:
        self.store.flush()
        assert self.store.counters["failed"] == 0

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "store"):
            assert self.store.nbytes <= self.options["max_bytes"]
            held = self.store._memory._blocks.values()
            assert self.store.nbytes == sum(block.nbytes for block in held)
            assert all(block.parent is None or block.parent.is_held for block in held)
            assert all(block.children == sum(other.parent is block for other in held) for block in held)
            assert self.store.counters["damaged"] == 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.flush()
        self.folder.cleanup()


Conversations.TestCase.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)

TestEveryContinuationIsThatOfAColdRun = Conversations.TestCase


def block_bytes(model: CausalLM, size: int) -> int:
    """Bytes of a block that has all its columns."""
    return size * sum(array.nbytes // array.shape[-2] for array in seen(model, ids(size)).arrays)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_twenty_turns_of_a_conversation_cost_no_more_than_their_tokens(model_type: str) -> None:
    """Not a window a turn: what is stored grows with the tokens alone, however often it is inserted."""
    window, block_size, turn = 64, 16, 24
    model = two_layers(model_type, window)
    store = PrefixStore(model, block_size=block_size)
    cache, sequence = model.make_cache(), ids(100)
    run(model, sequence, cache)
    for i in range(20):
        new = ids(turn, seed=i)
        run(model, new, cache)
        sequence += new
        store.insert(sequence, cache, marks=[len(sequence)])
        store.insert(sequence, cache)
    once = PrefixStore(model, block_size=block_size)
    once.insert(sequence, cache)
    assert store.nbytes == once.nbytes
    assert store.nbytes <= len(sequence) * block_bytes(model, block_size) / block_size
    assert check(store, [*sequence, 1]) == len(sequence) // block_size * block_size


def test_a_convolutions_inputs_are_kept_only_where_a_block_ends() -> None:
    model = two_layers("lfm2_moe", 3)
    store = PrefixStore(model, block_size=64)
    store.insert(ids(64), seen(model, ids(64)))
    conv, full = (sum(a.nbytes // a.shape[-2] for a in layer.arrays) for layer in seen(model, ids(64)).layers)
    assert store.nbytes == 64 * full + 2 * 2 * conv  # at 32 and at 64


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_short_prompts_share_their_beginnings_too(model_type: str) -> None:
    model = two_layers(model_type, 8)
    store, first = PrefixStore(model), ids(100)
    store.insert(first, seen(model, first))
    found = [check(store, first[:length] + ids(20, seed=1)) for length in (31, 32, 63, 64, 100)]
    assert found == [0, 32, 32, 64, 96]
    assert [store.reach([*first[:length], 0]) for length in (31, 32, 100)] == [0, 32, 96]


@given(size=st.integers(1, 300), length=st.integers(0, 1000))
def test_blocks_end_at_every_multiple_of_their_size_and_before_the_first_at_short_ones(size: int, length: int) -> None:
    ends = list(block_ends(length, size))
    assert ends == sorted(set(ends))
    assert set(range(size, length + 1, size)) <= set(ends)
    assert {end for end in ends if end < size} == set(range(SHORT, min(size, length + 1), SHORT))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 2), st.integers(1, 40)), max_size=8))
def test_to_each_owner_a_store_is_as_if_there_were_no_other(asked: list[tuple[str, int, int]]) -> None:
    """With sequences that begin alike, of which the others have asked some too."""
    model = MODEL
    shared, own = (
        PrefixStore(model, block_size=8),
        {owner: PrefixStore(model, block_size=8) for owner in ("", "a", "b")},
    )
    for owner, seed, length in asked:
        sequence = ids(8) + ids(length, seed=seed)
        views = shared.for_owner(owner), own[owner]
        assert views[0].reach([*sequence, 1]) == views[1].reach([*sequence, 1])
        cache = seen(model, sequence)
        for store in views:
            store.insert(sequence, cache)
    assert shared.nbytes == sum(store.nbytes for store in own.values())


def test_owners_share_memory_and_disk_and_who_was_used_last_stays(tmp_path: Path) -> None:
    model, size = two_layers("afmoe", 8), 8
    room = 6 * block_bytes(model, size)
    store = PrefixStore(model, block_size=size, max_bytes=room, directory=tmp_path)
    first, second = store.for_owner("first"), store.for_owner("second")
    for owner in (first, second):
        owner.insert(ids(48), seen(model, ids(48)))
    assert store.nbytes <= room
    store.flush()
    kept = PrefixStore(model, block_size=size, max_bytes=room, directory=tmp_path)
    assert [check(kept.for_owner(owner), ids(49)) for owner in ("second", "first", "third", "")] == [48, 48, 0, 0]
    assert not kept.counters["damaged"]


def test_a_shared_beginning_is_stored_once() -> None:
    model = two_layers("afmoe", 8)
    store = PrefixStore(model, block_size=8)
    for seed in range(5):
        sequence = ids(40) + ids(16, seed=seed + 1)
        store.insert(sequence, seen(model, sequence))
    assert store.counters["blocks"] == 5 + 5 * 2
    for seed in range(5):
        assert check(store, ids(40) + ids(17, seed=seed + 1)) >= 48


def test_nothing_new_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_layers("afmoe", 8)
    store, cache = PrefixStore(model, block_size=8), seen(model, ids(60))
    store.insert(ids(60), cache)
    monkeypatch.setattr(type(cache.layers[0]), "copy", None)
    store.insert(ids(60), cache, marks=[16])


def test_at_least_one_token_is_left_to_run() -> None:
    model = two_layers("afmoe", 8)
    store = PrefixStore(model, block_size=8)
    store.insert(ids(32), seen(model, ids(32)))
    assert [check(store, ids(32)[:length]) for length in (32, 33, 25, 24, 8, 1)] == [24, 24, 24, 16, 0, 0]
    assert store.reach(ids(32)) == 24


def test_no_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="no tokens"):
        PrefixStore(tiny()).lookup([])


def test_neither_side_can_change_what_the_other_holds() -> None:
    model = two_layers("afmoe", 8)
    store, cache = PrefixStore(model, block_size=8), seen(model, ids(40))
    store.insert(ids(40), cache)
    cache.rewind(40)
    run(model, ids(40, seed=9), cache)
    first, n = store.lookup(ids(41))
    run(model, ids(30, seed=8), first)
    assert check(store, ids(40) + ids(5, seed=7)) == n == 40


def test_recent_columns_lost_by_one_cache_are_filled_in_from_another() -> None:
    model = two_layers("afmoe", 8)
    store = PrefixStore(model, block_size=8)
    store.insert(ids(64), seen(model, ids(64), slack=0))
    edited = ids(40) + ids(5, seed=3)
    assert check(store, edited) == 0  # the window before the edit is gone
    store.insert(ids(64)[:48], seen(model, ids(64)[:48]))
    assert check(store, edited) == 40


def test_a_cache_from_the_store_can_step_back_over_what_it_was_given() -> None:
    model = two_layers("afmoe", 33)
    store = PrefixStore(model, block_size=16)
    store.insert(ids(256), seen(model, ids(256)))
    cache, n = store.lookup(ids(257), slack=64)
    assert n == 256
    assert cache.rewindable == 32
    cache.rewind(20)
    assert np.abs(run(model, ids(257)[236:], cache) - run(model, ids(257))[236:]).max() < TOLERANCE


def test_a_hash_alone_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.cache.store.block_key", lambda parent, tokens: b"the same for all")
    model = two_layers("afmoe", 8)
    store = PrefixStore(model, block_size=8)
    sequences = [ids(20), ids(20, seed=1), ids(8) * 3]
    for sequence in sequences:
        store.insert(sequence, seen(model, sequence))
    assert [check(store, sequence) for sequence in sequences] == [8, 0, 8]


def test_under_pressure_recent_columns_go_before_blocks_but_not_at_marks() -> None:
    model = two_layers("afmoe", 9)
    sequence, size = ids(256), 8
    whole = PrefixStore(model, block_size=size)
    whole.insert(sequence, seen(model, sequence))
    store = PrefixStore(model, block_size=size, max_bytes=int(whole.nbytes * 0.6))
    store.insert(sequence, seen(model, sequence), marks=[100])
    assert store.counters["blocks"] == 32
    assert store.nbytes <= store.max_bytes
    assert check(store, [*sequence, 0]) == 256
    assert check(store, [*sequence[:110], 0]) == 96  # the mark's block: those around it have only full layers' columns


def test_the_least_recently_used_goes_first_and_no_parent_before_its_children() -> None:
    model, size = two_layers("afmoe", 8), 8
    room = 12 * block_bytes(model, size)
    store = PrefixStore(model, block_size=size, max_bytes=room)
    sequences = [ids(48, seed=seed) for seed in range(4)]
    for sequence in sequences[:2]:
        store.insert(sequence, seen(model, sequence), marks=range(0, 48, size))
    store.lookup([*sequences[0], 0])
    store.insert(sequences[2], seen(model, sequences[2]), marks=range(0, 48, size))
    assert [check(store, [*sequence, 0]) for sequence in sequences[:3]] == [48, 0, 48]
    assert store.nbytes <= room


def test_of_a_sequence_too_long_for_memory_the_beginning_is_kept() -> None:
    model, size = two_layers("afmoe", 8), 8
    store = PrefixStore(model, block_size=size, max_bytes=6 * block_bytes(model, size))
    cache, sequence = model.make_cache(), ids(200)
    for start in range(0, 200, 20):
        run(model, sequence[start : start + 20], cache)
        store.insert(sequence[: cache.offset], cache)
    assert check(store, sequence) >= 5 * size
    assert store.nbytes <= store.max_bytes


def test_no_memory_is_no_error() -> None:
    model = two_layers("afmoe", 8)
    store = PrefixStore(model, block_size=8, max_bytes=0)
    store.insert(ids(40), seen(model, ids(40)))
    assert (store.nbytes, check(store, ids(40))) == (0, 0)


def test_the_budget_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory", lambda: device.Memory(None, 1000))
    assert PrefixStore(tiny()).max_bytes == 250


def refused(what: str) -> None:
    model = tiny()
    store, cache = PrefixStore(model, block_size=4), model.make_cache()
    if what == "rows":
        model(tokens(2, 8), cache=cache)
    elif what == "padding":
        model(tokens(1, 8), attention_mask=mx.array([[0, 0, 1, 1, 1, 1, 1, 1]]), cache=cache)
    elif what == "6 tokens":
        run(model, ids(6), cache)
    else:
        cache = seen(tiny(num_hidden_layers=2), ids(8))
    store.insert(ids(8), cache)


@pytest.mark.parametrize("what", ["rows", "padding", "6 tokens", "another model"])
def test_a_cache_that_does_not_fit_is_refused(what: str) -> None:
    with pytest.raises(CacheError, match=what):
        refused(what)


@pytest.mark.parametrize("options", [{"max_bytes": -1}, {"block_size": 0}, {"block_size": 1.5}, {"max_disk_bytes": -2}])
def test_a_budget_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        PrefixStore(tiny(), **options)


@pytest.mark.parametrize("wrong", [["a"], [[1, 2]], [1 << 40], [0.5]])
def test_what_are_no_tokens_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="token ids"):
        PrefixStore(tiny()).lookup(wrong)
