"""Which rows of a batch share a cache: those of similar length, in few groups, and seldom otherwise than before.

A row is read as if it were as long as the longest of its group. Each group costs some operations a layer more.
"""

import sys
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from typing import TypeVar

Row = TypeVar("Row")

# What a group costs a step, in columns of a row: measured and counted at 24,000 to 39,000 for Trinity Nano.
GROUP_COST = 24_000
MOST_GROUPS = 3

# How much less another arrangement must cost: to take it copies every row's keys and values.
WORTH_IT = GROUP_COST // 3


def arrange(
    groups: Sequence[Sequence[Row]],
    arriving: Sequence[Row],
    *,
    length: Callable[[Row], int],
    kind: Callable[[Row], Hashable] = lambda row: None,
) -> list[list[Row]]:
    """Groups of the rows in `groups` and of those arriving; as they are and where they fit best, unless others pay.

    length: columns of a row. kind: rows of different kinds are never together.
    """
    stayed = [list(rows) for group in groups for _, rows in groupby(sorted(group, key=_by(kind)), key=kind) if group]
    for row in sorted(arriving, key=length, reverse=True):
        _add(stayed, row, length, kind)
    rows = sorted([row for group in stayed for row in group], key=_by(kind))
    best = [group for _, alike in groupby(rows, key=kind) for group in _split(list(alike), length)]
    return best if _cost(best, length) + WORTH_IT < _cost(stayed, length) else stayed


def _by(kind: Callable[[Row], Hashable]) -> Callable[[Row], str]:
    return lambda row: repr(kind(row))


def _cost(groups: Sequence[Sequence[Row]], length: Callable[[Row], int]) -> int:
    return sum(GROUP_COST + len(group) * max(map(length, group)) for group in groups)


def _add(groups: list[list[Row]], row: Row, length: Callable[[Row], int], kind: Callable[[Row], Hashable]) -> None:
    """Put a row where it costs least."""
    alike = [group for group in groups if kind(group[0]) == kind(row)]
    costs = [_cost([[*group, row]], length) - _cost([group], length) for group in alike]
    if not alike or (len(alike) < MOST_GROUPS and GROUP_COST + length(row) < min(costs)):
        groups.append([row])
    else:
        alike[costs.index(min(costs))].append(row)


def _split(rows: list[Row], length: Callable[[Row], int]) -> list[list[Row]]:
    """The groups, of rows that may all be together, that cost least."""
    rows = sorted(rows, key=length, reverse=True)
    lengths = [length(row) for row in rows]
    # of the first `end` rows in ever more groups: what they cost, and where the groups begin
    none: list[int] = []
    best = [(0, none)] + [(sys.maxsize, none)] * len(rows)
    for _ in range(MOST_GROUPS):
        fewer, best = best, list(best)
        for end in range(1, len(rows) + 1):
            for cut in range(end):
                cost = fewer[cut][0] + GROUP_COST + (end - cut) * lengths[cut]
                if cost < best[end][0]:
                    best[end] = cost, [*fewer[cut][1], cut]
    cuts = best[-1][1]
    return [rows[cut:end] for cut, end in zip(cuts, [*cuts[1:], len(rows)], strict=True)]
