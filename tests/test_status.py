"""The figures beneath an answer."""

from types import SimpleNamespace
from typing import Any

import pytest

from afmoe_mlx.chat.status import AnswerStatus, context_meter, is_nearly_full, rate, reading, seconds, thought


def status(**figures: Any) -> AnswerStatus:
    return AnswerStatus(**({"tokens": 214, "tokens_per_second": 43.21} | figures))


def test_all_figures_stand_in_one_line_of_a_terminal() -> None:
    full = status(first_token_seconds=0.42, reused_tokens=1024, context_used=1274, context_limit=4096)
    line = "214 tokens · 43 tokens/s · first in 0.42 s · 1,024 reused · context 1,274 of 4,096"
    assert full.lines(100) == [line]
    assert full.lines(30) == [
        "214 tokens · 43 tokens/s",
        "first in 0.42 s · 1,024 reused",
        "context 1,274 of 4,096",
    ]


def test_what_was_not_measured_is_left_out() -> None:
    assert status().lines(80) == ["214 tokens · 43 tokens/s"]
    assert status(tokens=1).lines(80) == ["1 token"]
    assert status(context_used=5).lines(80) == ["214 tokens · 43 tokens/s"]


def test_the_figures_are_those_of_the_last_chunk() -> None:
    chunk: Any = SimpleNamespace(
        generation_tokens=5, generation_tps=2.34, cached_tokens=7, prompt_tokens=9, finish_reason="length"
    )
    shown = AnswerStatus.of(chunk, first_token_seconds=12.3, context_used=14, context_limit=100).lines(200)
    assert shown == ["5 tokens · 2.3 tokens/s · first in 12 s · 7 reused · context 14 of 100 · cut at the token limit"]


@pytest.mark.parametrize(("used", "word"), [(799, False), (800, True), (1000, True)])
def test_from_80_percent_on_the_context_is_called_nearly_full(used: int, word: bool) -> None:
    assert ("nearly full" in context_meter(used, 1000)) is word
    assert is_nearly_full(used, 1000) is word


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
