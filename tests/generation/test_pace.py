"""Drafting goes on while it pays, is given up when it does not, and cannot cost more than its allowance."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.generation.pace import ACCOUNT, ALLOWANCE, REMEASURE_AFTER, Average, Pace


class Device:
    """Simulated costs: a plain step takes 1, one with n drafted tokens 1 + n · row; and how many are accepted."""

    def __init__(self, pace: Pace, row: float, accept: Callable[[int], int], seed: int = 0) -> None:
        self.pace, self.row, self.accept = pace, row, accept
        self.random = random.Random(seed)
        self.time, self.tokens, self.drafts = 0.0, 0, 0

    def run(self, tokens: int, *, guessing: bool = True) -> "Device":
        end = self.tokens + tokens
        while self.tokens < end:
            length = self.pace.length(end - self.tokens - 1) if guessing else 0
            if length:
                accepted = min(self.accept(self.drafts), length)
                seconds = 1 + self.row * length
                self.pace.drafted(length, accepted, seconds)
                self.tokens += accepted + 1
                self.drafts += 1
            else:
                seconds = 1.0
                self.pace.plain(seconds)
                self.tokens += 1
            self.time += seconds
        return self


@settings(max_examples=80, deadline=None)
@given(
    most=st.integers(1, 16),
    row=st.floats(0, 1),
    chances=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    tokens=st.integers(100, 1500),
    seed=st.integers(0, 1000),
)
def test_drafting_never_costs_more_than_its_allowance_and_a_few_steps(
    most: int, row: float, chances: list[float], tokens: int, seed: int
) -> None:
    """However the share of right guesses changes: the account is the proof."""
    rng = random.Random(seed)

    def accept(i: int) -> int:
        chance, count = chances[(i // 40) % len(chances)], 0
        while count < most and rng.random() < chance:
            count += 1
        return count

    pace = Pace(most)
    device = Device(pace, row, accept).run(tokens)
    found_out = 2 * sum(row * length for length in pace.lengths)  # what a length costs is not known at first
    last_overdraft = row * most
    assert device.time <= tokens * (1 + ALLOWANCE) + ACCOUNT + found_out + last_overdraft


@pytest.mark.parametrize("row", [0.05, 0.3, 0.6])
def test_what_pays_is_drafted_at_nearly_every_step(row: float) -> None:
    device = Device(Pace(8), row, lambda _: 8).run(1000)
    assert device.tokens / device.time > 0.9 * 9 / (1 + 8 * row)


def test_what_never_pays_is_given_up_and_tried_again_now_and_then() -> None:
    device = Device(Pace(8), 0.5, lambda _: 0).run(300)
    early = device.drafts
    assert early < 20
    device.run(2000)
    assert 10 < device.drafts - early < 100


@pytest.mark.parametrize(("token", "tries"), [(0.001, True), (0.2, False)])
def test_a_drafter_that_stopped_is_tried_again_only_if_the_account_pays_for_what_it_has_to_read(
    token: float, tries: bool
) -> None:
    """token: what reading one costs; the prompt's are read before, and on no account."""
    pace = Pace(4)
    pace.caught_up(1000, 1000 * token)
    device = Device(pace, 2.0, lambda _: 0).run(60)
    early, behind = device.drafts, 0
    assert early
    for _ in range(1000):
        if length := pace.length(4, behind=behind):
            pace.idle(behind * token)
            pace.drafted(length, 0, 1 + 2.0 * length)
            device.drafts, behind = device.drafts + 1, 0
        pace.plain(1.0)
        behind += 1
    assert (device.drafts > early) == tries


def test_a_slow_first_reading_does_not_silence_drafts_that_pay() -> None:
    pace = Pace(4)
    pace.caught_up(12, 500.0)
    device = Device(pace, 0.1, lambda _: 4)
    for behind in range(10):
        if pace.length(4, behind=behind):
            break
        pace.plain(1.0)
    assert pace.length(4, behind=behind)
    assert device.run(100).drafts > 15


def test_a_text_that_begins_to_repeat_itself_is_noticed() -> None:
    device = Device(Pace(8), 0.2, lambda _: 0).run(1000)
    device.accept = lambda _: 8
    drafts, time = device.drafts, device.time
    device.run(500)
    assert device.drafts - drafts > 40
    assert device.time - time < 0.6 * 500


def test_short_drafts_are_made_where_long_ones_do_not_pay() -> None:
    pace = Pace(8)
    Device(pace, 0.3, lambda i: 1 if i % 10 else 0).run(1000)
    assert pace.length(8) in (1, 2)
    assert pace.length(1) == 1
    assert pace.length(0) == 0


def test_short_drafts_that_are_always_right_grow_long_again() -> None:
    pace = Pace(8)
    device = Device(pace, 0.3, lambda i: 1 if i % 10 else 0).run(500)
    device.row, device.accept = 0.15, lambda _: 8
    drafts, time = device.drafts, device.time
    device.run(300)
    assert device.drafts - drafts < 80
    assert device.time - time < 150


def test_nothing_is_drafted_before_plain_steps_are_measured_and_they_are_measured_again() -> None:
    pace = Pace(4)
    assert pace.length(4) == 0
    Device(pace, 0.1, lambda _: 4).run(5)
    for _ in range(REMEASURE_AFTER):
        assert pace.length(4) > 0
        pace.drafted(4, 4, 1.4)
    assert pace.length(4) == 0
    pace.plain(1.0)
    assert pace.length(4) > 0


def test_the_first_step_of_a_length_may_be_slow_and_a_hiccup_is_forgiven() -> None:
    pace = Pace(1)
    Device(pace, 0.0, lambda _: 1).run(10, guessing=False)
    pace.drafted(1, 1, 500.0)
    assert pace.length(1) == 1
    Device(pace, 0.1, lambda _: 1).run(50)
    pace.drafted(1, 1, 500.0)
    assert Device(pace, 0.1, lambda _: 1).run(400).drafts > 100


def test_an_average_is_the_mean_at_first_and_stays_within_what_it_was_given() -> None:
    average = Average()
    for given_value, mean in ((3.0, 3.0), (5.0, 4.0), (1.0, 3.0)):
        average.add(given_value)
        assert average.value == pytest.approx(mean)
    for _ in range(200):
        average.add(1.0)
        assert 1 <= average.value <= 3
    assert average.value == pytest.approx(1, abs=1e-3)
