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


messages = st.lists(
    st.builds(
        lambda role, content, mark: {"role": role, "content": content} | ({mark: True} if mark else {}),
        st.sampled_from(["user", "assistant"]),
        st.text(max_size=8),
        st.sampled_from(["", "stopped", "cut_off"]),
    ),
    max_size=5,
)
