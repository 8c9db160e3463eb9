"""/schema holds answers to a schema from now on, and sets them free."""

from collections.abc import Callable
from pathlib import Path

from helpers.talk import Talk

SCHEMA = '{"type": "object", "properties": {"größe": {"type": "integer"}}}'


def test_answers_are_held_to_a_schema_until_they_are_set_free(talk: Callable[..., Talk], tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA, encoding="utf-8")
    found = talk(f"/schema {SCHEMA}", "/schema")
    assert found.conversation.options["json_schema"]["properties"].keys() == {"größe"}
    assert found.shown.count("Answers are held to the schema ") == 2
    assert "größe" in found.shown
    assert talk(f"/schema {file}").conversation.options["json_schema"] == found.conversation.options["json_schema"]
    free = talk(f"/schema {SCHEMA}", "/schema none", "/schema")
    assert free.conversation.options["json_schema"] is None
    assert free.shown.count("Answers are held to no schema") == 2


def test_a_schema_that_cannot_be_is_a_line_and_changes_nothing(talk: Callable[..., Talk]) -> None:
    found = talk(f"/schema {SCHEMA}", '/schema {"uniqueItems": true}', "/schema nowhere.json", "/schema {")
    assert "error: json_schema: uniqueItems at $ cannot be enforced: leave it out" in found.shown
    assert "error: /schema nowhere.json: cannot be read" in found.shown
    assert "error: /schema: not valid JSON" in found.shown
    assert found.conversation.options["json_schema"]["type"] == "object"
