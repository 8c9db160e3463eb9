"""Sessions in files, and conversations to save there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from afmoe_mlx.chat.sessions.folder import SessionFolder
from helpers.fake_engine import FakeConversation


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def talk(messages: Sequence[dict[str, Any]] = (), **options: Any) -> FakeConversation:
    conversation = FakeConversation(options={"max_tokens": 9, **options})
    conversation.restore(messages)
    return conversation


def written(folder: SessionFolder, *texts: str, name: str = "one") -> Path:
    """The file of a session that has ended."""
    with folder.create(name) as session:
        session.save(talk(said(*texts)))
        return session.path


CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{"}, "error": "it ends"},
]

messages = st.lists(
    st.builds(
        lambda role, content, mark: {"role": role, "content": content} | ({mark: True} if mark else {}),
        st.sampled_from(["user", "assistant"]),
        st.text(max_size=8),
        st.sampled_from(["", "stopped", "cut_off"]),
    )
    | st.builds(
        lambda text, number: {"role": "assistant", "content": text, "tool_calls": CALLS[:number], "written": text},
        st.text(max_size=8),
        st.integers(1, 2),
    )
    | st.builds(
        lambda text, name: {"role": "tool", "content": text, "tool_call_id": "call_1", "name": name},
        st.text(max_size=8),
        st.text(max_size=3),
    ),
    max_size=5,
)
