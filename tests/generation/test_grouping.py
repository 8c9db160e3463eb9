"""Rows of similar length share a cache, in few groups that seldom change."""

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.generation.grouping import GROUP_COST, MOST_GROUPS, arrange


def lengths_of(groups: list[list[int]], arriving: list[int], **options: object) -> list[list[int]]:
    return [sorted(group) for group in arrange(groups, arriving, length=lambda row: row, **options)]  # type: ignore


def test_a_long_row_stays_apart_from_many_short_ones() -> None:
    short = [50] * 15
    assert lengths_of([short], [4000]) == [short, [4000]]
    assert sorted(lengths_of([], [*short, 4000])) == [short, [4000]]


def test_short_rows_share_a_group_whatever_their_lengths() -> None:
    assert lengths_of([[100, 900]], [30, 1500]) == [[30, 100, 900, 1500]]


def test_groups_stay_as_they_are_unless_it_pays() -> None:
    pair = [1, GROUP_COST + 2000]
    assert lengths_of([pair], []) == [pair]
    assert sorted(lengths_of([], pair)) == [[row] for row in pair]
    assert sorted(lengths_of([[100] * 8, [101] * 8], [])) == [[100] * 8 + [101] * 8]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 100_000), max_size=6), max_size=4), st.lists(st.integers(1, 100_000)))
def test_no_row_is_lost_and_no_kinds_are_mixed(groups: list[list[int]], arriving: list[int]) -> None:
    rows = sorted([*chain(*groups), *arriving])
    found = arrange(groups, arriving, length=lambda row: row, kind=lambda row: row % 2)
    assert sorted(chain(*found)) == rows
    assert all(group and len({row % 2 for row in group}) == 1 for group in found)
    fresh = arrange([], rows, length=lambda row: row)
    assert len(fresh) <= MOST_GROUPS
