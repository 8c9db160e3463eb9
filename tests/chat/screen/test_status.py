"""The figures beneath an answer."""

import pytest

from afmoe_mlx.chat.screen.status import context_meter, figures, in_lines, rate, reading, seconds, thought
from helpers.fake_engine import chunk


def test_all_figures_stand_in_one_line_of_a_terminal() -> None:
    meter = context_meter(1274, 4096)
    full = figures(chunk("x", 214, cached_tokens=1024), first_token_seconds=0.42, context=meter)
    line = "214 tokens · 50 tokens/s · first in 0.42 s · 1,024 reused · context 1,274 of 4,096"
    assert in_lines(full, 100) == [line]
    assert in_lines(full, 30) == [
        "214 tokens · 50 tokens/s",
        "first in 0.42 s · 1,024 reused",
        "context 1,274 of 4,096",
    ]


def test_what_was_not_measured_is_left_out() -> None:
    assert figures(chunk("x", 214)) == ["214 tokens", "50 tokens/s"]
    assert figures(chunk("x", 1)) == ["1 token"]
    assert context_meter(5, None) == context_meter(None, 5) == ""


@pytest.mark.parametrize(("used", "word"), [(799, False), (800, True), (1000, True)])
def test_from_80_percent_on_the_context_is_called_nearly_full(used: int, word: bool) -> None:
    assert ("nearly full" in context_meter(used, 1000)) is word


def test_only_a_full_context_is_at_100_percent() -> None:
    assert "(99 %" in context_meter(9999, 10000)
    assert "(100 %" in context_meter(10000, 10000)


@pytest.mark.parametrize(
    ("duration", "shown"),
    [
        (0.0, "0.00 s"),
        (0.994, "0.99 s"),
        (0.996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
    ],
)
def test_seconds_are_given_with_two_figures(duration: float, shown: str) -> None:
    assert seconds(duration) == shown


def test_other_words() -> None:
    assert [rate(9.94), rate(9.96), rate(1234.5)] == ["9.9", "10", "1,234"]
    assert reading(512, 3214) == "reading 512 of 3,214 tokens (15 %)"
    assert reading(0, 0) == "reading 0 of 0 tokens (100 %)"
    assert thought(3.14, 214) == "thought for 3.1 s, 214 tokens"
    assert thought(3.14, 1, stopped=True) == "stopped while thinking, after 3.1 s, 1 token"
