"""What StopStrings shows depends on the text alone: everything before the stop string that is complete first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import InputError
from afmoe_mlx.generation.stopping import StopStrings

# Few letters make overlaps and near misses frequent.
texts = st.text("ab\u00e9🙂", max_size=24)
stop_lists = st.lists(st.text("ab\u00e9🙂", min_size=1, max_size=5), max_size=4)


def chunked(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def expected(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition: at the first character that completes a stop string, the longest one completed there."""
    for end in range(len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None, max_examples=300)
@given(texts, stop_lists, st.lists(st.integers(0, 24), max_size=8))
def test_any_chunking_shows_the_text_up_to_the_first_completed_stop_string(text, stop, cuts):
    stopper = StopStrings(stop)
    shown = "".join(map(stopper.push, chunked(text, cuts))) + stopper.finish()
    assert (shown, stopper.matched) == expected(text, stop)
    assert not any(s in shown for s in stop)


@settings(deadline=None)
@given(texts, stop_lists)
def test_no_prefix_of_a_stop_string_is_shown_before_it_is_refuted(text, stop):
    stopper, shown, seen = StopStrings(stop), "", ""
    for character in text:
        shown, seen = shown + stopper.push(character), seen + character
        if stopper.matched:
            break
        held = seen[len(shown) :]
        begun = [seen[-n:] for n in range(1, len(seen) + 1) if any(s.startswith(seen[-n:]) for s in stop)]
        assert held == max(begun, key=len, default="")


def test_nothing_follows_a_match():
    stopper = StopStrings(["END"])
    assert [stopper.push(piece) for piece in ("one E", "N", "D two", "three")] == ["one ", "", "", ""]
    assert (stopper.finish(), stopper.matched) == ("", "END")


def test_harmless_beginnings_come_out_at_the_end_once():
    stopper = StopStrings(["END"])
    assert (stopper.push("EN"), stopper.finish(), stopper.finish(), stopper.matched) == ("", "EN", "", None)


def test_of_nested_stop_strings_the_first_complete_one_ends_the_text():
    stopper = StopStrings(["abcd", "bc"])
    assert (stopper.push("abcd"), stopper.matched) == ("a", "bc")
    stopper = StopStrings(["bc", "abc"])
    assert (stopper.push("abc"), stopper.matched) == ("", "abc")


def test_without_stop_strings_nothing_is_held_back():
    assert StopStrings([]).push("text") == "text"


@pytest.mark.parametrize("stop", ["END", [""], ["a", ""], [None], [3]])
def test_senseless_stop_strings_are_refused_in_one_line(stop):
    with pytest.raises(InputError) as error:
        StopStrings(stop)
    assert "expected" in str(error.value)
    assert "\n" not in str(error.value)
