"""Every layer is on one host, in order, by the memory that each has."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.checkpoint.files import StoredTensor
from afmoe_mlx.errors import FitError, InputError
from afmoe_mlx.footprint.weights import converted_arrays
from afmoe_mlx.hosts.examine import tokens_per_second
from afmoe_mlx.hosts.plan import Needs, check_shares, plan
from afmoe_mlx.models import read_config
from afmoe_mlx.models.shapes import shape

NAMES = {mx.uint32: "U32", mx.bfloat16: "BF16", mx.float32: "F32"}


@cache
def needs(name: str = "trinity-mini") -> Needs:
    config = read_config(shape(name))
    arrays = converted_arrays(config, mx.bfloat16, bits=4)
    headers = {n: StoredTensor(Path("model.safetensors"), a.shape, NAMES[a.dtype]) for n, a in arrays.items()}
    return Needs(config, headers, mx.bfloat16, 4096)


@given(rooms=st.lists(st.none() | st.integers(1 << 30, 200 << 30), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_every_layer_is_on_one_host_and_every_host_has_one(rooms: list[int | None]) -> None:
    shares = plan(needs(), [(f"mac{i}", room) for i, room in enumerate(rooms)])
    layers = [layer for share in shares for layer in share.part]
    assert layers == list(range(needs().config.num_hidden_layers))
    assert all(share.part for share in shares)
    kinds = needs().config.layer_types
    assert {kinds[i] for i in shares[0].part} == set(kinds)  # its caches answer for all


def test_shares_are_as_the_memories() -> None:
    even = plan(needs(), [("a", 64 << 30), ("b", 64 << 30)])
    held = [share.footprint.weights.held for share in even]
    assert abs(held[0] - held[1]) < 1e9
    uneven = plan(needs(), [("a", 32 << 30), ("b", 96 << 30)])
    assert 2 * len(uneven[0].part) < len(uneven[1].part)


def test_the_parts_weigh_what_the_whole_does() -> None:
    shares = plan(needs(), [("a", 64 << 30), ("b", 64 << 30), ("c", 8 << 30)])
    whole = needs().of(range(needs().config.num_hidden_layers))
    assert sum(share.footprint.weights.held for share in shares) == whole.weights.held
    assert sum(share.footprint.cache_bytes for share in shares) == whole.cache_bytes


def test_what_does_not_fit_is_named_with_what_it_lacks() -> None:
    shares = plan(needs(), [("mac1", 64 << 30), ("mac2", 1 << 29)])
    with pytest.raises(FitError, match=r"mac2 needs .* has 0\.5 GB"):
        check_shares("trinity-mini", needs(), shares)
    with pytest.raises(FitError, match=r"mac2 needs .* has 1\.0 MB.* fewer bits; --force"):
        check_shares("trinity-mini", needs(), plan(needs(), [("mac1", 64 << 30), ("mac2", 10**6)]))


def test_experts_that_no_host_has_room_for_are_read() -> None:
    hosts = [("mac1", 6 << 30), ("mac2", 4 << 30)]
    with pytest.raises(FitError, match=r"mac1 needs .*--experts-in-memory auto"):
        check_shares("trinity-mini", needs(), plan(needs(), hosts))
    wanting = replace(needs(), experts_in_memory="auto")
    shares = plan(wanting, hosts)
    check_shares("trinity-mini", wanting, shares)
    for share in shares:
        # what a follower is told is bytes, of which it makes the same placement
        told = replace(needs(), experts_in_memory=share.experts_in_memory).of(share.part)
        assert share.experts_in_memory
        assert share.footprint.experts is not None
        assert told.experts == share.footprint.experts
    roomy = plan(wanting, [("mac1", 60 << 30), ("mac2", 40 << 30)])
    assert [share.experts_in_memory for share in roomy] == [None, None]
    assert tokens_per_second(shares, [1e11, 1e11]) < tokens_per_second(roomy, [1e11, 1e11])


def test_a_host_that_is_full_with_little_leaves_the_others_even() -> None:
    shares = plan(needs(), [("a", 64 << 30), ("b", 64 << 30), ("c", 2 << 30)])
    a, b, c = (len(share.part) for share in shares)
    assert (c, abs(a - b) <= 2) == (1, True)


def test_more_hosts_than_layers_are_refused() -> None:
    with pytest.raises(InputError, match="at most"):
        plan(needs(), [(str(i), 1 << 30) for i in range(60)])
