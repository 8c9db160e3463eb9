"""Text files go along with a message; conversations leave as files and come back the same."""

import json
from pathlib import Path

from afmoe_mlx.chat.sessions.export import as_json
from helpers.live_service import LiveService
from helpers.tab import Tab, expect


def test_a_dropped_text_file_goes_along_and_what_is_no_text_is_refused(tab: Tab, model: LiveService) -> None:
    model.texts = ["Nothing."]
    tab.drop("notes.py", b"# ```\nx = 1\n")
    expect(tab.page.get_by_role("button", name="Remove notes.py")).to_be_visible()
    tab.drop("picture.png", b"\x89PNG\r\n\x1a\n\xff\x00")
    expect(tab.page.locator("#toasts")).to_contain_text("picture.png is no UTF-8 text")
    tab.ask("What does it do?")
    expect(tab.answer).to_have_text("Nothing.")
    expect(tab.page.locator("details.file summary")).to_have_text("notes.py")
    (message,) = model.answer().question.messages
    assert message["content"] == "File notes.py:\n````py\n# ```\nx = 1\n````\n\nWhat does it do?"


def test_an_exported_conversation_is_imported_as_the_same(tab: Tab, model: LiveService, tmp_path: Path) -> None:
    tab.button("Settings").click()
    tab.page.get_by_label("System prompt").fill("Be brief.")
    tab.page.get_by_label("Temperature").fill("0.25")
    tab.button("Save").click()
    tab.ask("What time is it?")
    answer = model.answer()
    answer.think("I look.")
    answer.say("Let me <see>:")
    answer.call("clock", '{"zone": "UTC"}')
    answer.end()
    expect(tab.figures).to_contain_text("token")
    exported = tab.exported("JSON")
    tab.import_conversation(tmp_path, **json.loads(exported))
    expect(tab.conversations).to_have_count(2)
    expect(tab.page.locator("details.call")).to_contain_text("Call of clock")
    assert tab.exported("JSON") == exported
    markdown = tab.exported("Markdown")
    assert "## User\n\nWhat time is it?\n\n## Assistant\n\n<details><summary>Reasoning</summary>" in markdown
    assert "Let me <see>:" in markdown


def test_the_terminal_chats_export_is_imported_and_gone_on_with(tab: Tab, model: LiveService, tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The sky?"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nBlue."},
    ]
    model.texts = ["Dark."]
    tab.import_conversation(tmp_path, **json.loads(as_json(messages, model="tiny", settings={"temperature": 0.25})))
    expect(tab.answers).to_have_text(["Blue."])
    expect(tab.page.locator("details.reasoning summary")).to_have_text("Reasoning, 1 word")
    tab.ask("At night?")
    expect(tab.answers).to_have_text(["Blue.", "Dark."])
    question = model.answer().question
    assert question.options["temperature"] == 0.25
    assert [message["content"] for message in question.messages] == ["Be brief.", "The sky?", "Blue.", "At night?"]
