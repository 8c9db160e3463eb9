"""Each protocol's page has every field that is taken, and every hint with what becomes of it."""

import re

import pytest

from afmoe_mlx.server.anthropic.forms import CountTokensBody, MessagesBody
from afmoe_mlx.server.endpoint import Body
from afmoe_mlx.server.engine.client_lines import CLIENT_LINES
from afmoe_mlx.server.openai.chat_body import ChatBody
from afmoe_mlx.server.openai.completions import CompletionBody
from afmoe_mlx.server.responses.forms import ResponsesBody
from helpers import ROOT

DOCS = ROOT / "docs"


def rows(page: str, heading: str) -> dict[str, str]:
    """The tables below a heading: what is said of each name in a first column."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^\| (`.*?`) \| (.*) \|$", section, re.MULTILINE)
    return {name: meaning for names, meaning in found for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize(
    ("page", "heading", "body"),
    [
        ("server-anthropic.md", "Messages", MessagesBody),
        ("server-openai.md", "Chat completions", ChatBody),
        ("server-responses.md", "Responses", ResponsesBody),
    ],
)
def test_every_field_and_every_hint_is_on_its_page(page: str, heading: str, body: type[Body]) -> None:
    fields = body.model_fields.keys()
    assert rows(page, heading).keys() == fields
    assert rows(page, "Accepted and ignored") == {name: why for name, why in body.HINTS.items() if name not in fields}


def test_requests_of_one_page_have_the_same_hints() -> None:
    assert CompletionBody.HINTS == ChatBody.HINTS
    assert CountTokensBody.HINTS == MessagesBody.HINTS


def test_fields_of_completions_are_on_the_page_unless_those_of_chat_are() -> None:
    shared = ChatBody.model_fields.keys() & CompletionBody.model_fields.keys() - {"logprobs"}
    assert rows("server-openai.md", "Completions").keys() == CompletionBody.model_fields.keys() - shared


def test_every_client_whose_lines_are_left_out_is_on_the_page() -> None:
    text = (DOCS / "server-anthropic.md").read_text(encoding="utf-8")
    assert all(f"| {client} | " in text for client in CLIENT_LINES)
