"""The page on OpenAI's interface has every field that is taken, and every hint with what becomes of it."""

import re
from pathlib import Path

from afmoe_mlx.server.openai.chat_body import ChatBody
from afmoe_mlx.server.openai.completions import CompletionBody
from afmoe_mlx.server.openai.hints import HINTS

PAGE = (Path(__file__).parents[3] / "docs" / "server-openai.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """The tables below a heading: what is said of each name in a first column."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^\| (`.*?`) \| (.*) \|$", section, re.MULTILINE)
    return {name: meaning for names, meaning in found for name in re.findall(r"`(\w+)`", names)}


def test_every_field_is_on_the_page() -> None:
    assert rows("Chat completions").keys() == ChatBody.model_fields.keys()
    shared = ChatBody.model_fields.keys() & CompletionBody.model_fields.keys() - {"logprobs"}
    assert rows("Completions").keys() == CompletionBody.model_fields.keys() - shared


def test_the_hints_are_on_the_page_as_they_are_in_the_program() -> None:
    assert rows("Taken and left") == HINTS
