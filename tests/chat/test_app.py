"""The chat's program around its loop."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from afmoe_mlx import device
from afmoe_mlx.chat import app
from afmoe_mlx.command_line.requests.answering import ChatRequest


@pytest.mark.parametrize("question", [None, "hello"])
def test_what_the_gpu_holds_stays_there_between_answers(
    model: str, question: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth, seen = [], []

    @contextmanager
    def resident() -> Iterator[None]:
        depth.append("raised")
        yield
        depth.pop()

    monkeypatch.setattr(device, "resident", resident)
    monkeypatch.setattr(app.one_shot, "question", lambda _: question)
    monkeypatch.setattr(app, "_chat", lambda *_, **__: seen.append(len(depth)))
    monkeypatch.setattr(app, "_answer_once", lambda *_: seen.append(len(depth)))
    app.run(ChatRequest(model=model))
    assert (seen, depth) == ([1], [])
