"""Server-sent events: whatever is in them, a client reads it back from whole lines."""

import json

from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.server import sse

TEXTS = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(["a\u2028b", "\x85\r\n", "\ud800", "é\x00"])


@given(TEXTS, st.none() | st.just("message_start"))
def test_an_event_is_whole_lines_and_holds_what_was_told(text, name) -> None:
    found = sse.event({"text": text}, name)
    lines = found.encode().decode().splitlines()
    assert lines.pop() == ""
    assert found.endswith("\n\n")
    assert lines[:-1] == ([] if name is None else [f"event: {name}"])
    assert json.loads(lines[-1].removeprefix("data: ")) == {"text": text}


def test_a_text_stands_as_it_is_and_a_comment_is_no_data() -> None:
    assert sse.event("[DONE]") == "data: [DONE]\n\n"
    assert sse.ALIVE.startswith(":")
    assert sse.ALIVE.endswith("\n\n")
