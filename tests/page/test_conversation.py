"""A conversation in the browser: asked, stopped, edited, asked again, gone on with, set up, found again."""

import re
from pathlib import Path

from afmoe_mlx.server.errors import RequestError
from helpers.live_service import LiveService
from helpers.scripted import scripted_folder
from helpers.serving import serve
from helpers.tab import Tab, expect


def test_an_answer_shows_as_it_comes_and_ends_with_its_figures(tab: Tab, model: LiveService) -> None:
    tab.ask("Why is the sky blue?")
    answer = model.answer()
    answer.say("Because ")
    expect(tab.answer).to_have_text("Because")
    answer.say("it **scatters** light.")
    expect(tab.answer.locator("strong")).to_have_text("scatters")
    answer.end()
    expect(tab.figures).to_contain_text("2 tokens · ")
    expect(tab.figures).to_contain_text("8 of 20 reused")
    assert answer.question.messages == [{"role": "user", "content": "Why is the sky blue?"}]


def test_a_stopped_answer_is_kept_and_gone_on_with(tab: Tab, model: LiveService) -> None:
    tab.ask("Tell me a story.")
    answer = model.answer()
    answer.say("Once upon ")
    expect(tab.answer).to_have_text("Once upon")
    tab.button("Stop").click()
    answer.wait_until_left()
    expect(tab.button("Send")).to_be_visible()
    tab.button("Continue").click()
    rest = model.answer()
    assert rest.question.continues
    assert rest.question.messages[-1] == {"role": "assistant", "content": "Once upon "}
    rest.say("a time.")
    rest.end()
    expect(tab.figures).to_contain_text("token")
    expect(tab.answers).to_have_text(["Once upon a time."])


def test_an_edited_message_is_answered_anew_and_the_earlier_version_is_kept(tab: Tab, model: LiveService) -> None:
    model.texts = ["It is blue.", "At night, too.", "It is green."]
    tab.ask("The sky?")
    expect(tab.answer).to_have_text("It is blue.")
    tab.ask("Always?")
    expect(tab.answer).to_have_text("At night, too.")
    tab.hover(tab.page.locator("article.user").first)
    tab.page.get_by_role("button", name="Edit message").first.click()
    tab.page.get_by_label("Edited message").fill("The grass?")
    tab.page.get_by_label("Edited message").press("Control+Enter")
    expect(tab.answers).to_have_text(["It is green."])
    expect(tab.questions).to_have_text(["The grass?"])
    tab.page.get_by_role("button", name="Earlier version").click()
    expect(tab.answers).to_have_text(["It is blue.", "At night, too."])
    tab.page.reload()
    expect(tab.answers).to_have_text(["It is blue.", "At night, too."])
    asked = [model.answer().question.messages for _ in range(3)]
    assert asked[2] == [{"role": "user", "content": "The grass?"}]


def test_an_answer_asked_for_again_is_another_version(tab: Tab, model: LiveService) -> None:
    model.texts = ["Heads.", "Tails."]
    tab.ask("Toss a coin.")
    expect(tab.answer).to_have_text("Heads.")
    tab.button("Ask again").click()
    expect(tab.answers).to_have_text(["Tails."])
    expect(tab.page.get_by_label("Version 2 of 2")).to_be_visible()
    assert model.answer().question.messages == model.answer().question.messages


def test_reasoning_is_folded_and_calls_of_tools_are_blocks(tab: Tab, model: LiveService) -> None:
    tab.ask("What time is it?")
    answer = model.answer()
    answer.think("Let me ", "look.")
    expect(tab.page.locator("details.reasoning summary")).to_have_text("Reasoning … 3 words")
    answer.say("I look.")
    answer.call("clock", '{"zone": "UTC"}')
    answer.end()
    summary = tab.page.locator("details.reasoning summary")
    expect(summary).to_have_text("Reasoning, 2 tokens")
    expect(tab.page.get_by_text("Let me look.")).to_be_hidden()
    summary.click()
    expect(tab.page.get_by_text("Let me look.")).to_be_visible()
    expect(tab.page.locator("details.call")).to_contain_text("Call of clock")
    expect(tab.page.locator("details.call pre")).to_contain_text('"zone": "UTC"')


def test_settings_are_sent_and_belong_to_their_conversation(tab: Tab, model: LiveService) -> None:
    model.texts = ["{}", "Hello."]
    tab.button("Settings").click()
    temperature = tab.page.get_by_label("Temperature")
    expect(temperature).to_have_attribute("placeholder", "0.5")
    temperature.fill("0.25")
    tab.page.get_by_label("Seed").fill("7")
    tab.page.get_by_label("System prompt").fill("Be brief.")
    tab.page.get_by_label("Answers as JSON of this schema").fill('{"type": "object"}')
    tab.button("Save").click()
    tab.ask("Hello?")
    expect(tab.answer).to_have_text("{}")
    tab.page.reload()
    tab.begin()
    tab.ask("Hello!")
    expect(tab.answer).to_have_text("Hello.")
    first, second = model.answer().question, model.answer().question
    assert first.messages[0] == {"role": "system", "content": "Be brief."}
    assert {"temperature": 0.25, "seed": 7, "json_schema": {"type": "object"}}.items() <= first.options.items()
    assert second.messages == [{"role": "user", "content": "Hello!"}]
    assert not {"temperature", "seed", "json_schema"} & second.options.keys()


def test_what_the_server_refuses_is_said_and_may_be_asked_again(tab: Tab, model: LiveService) -> None:
    model.refusal = RequestError(400, "prompt is too long: 9 tokens > 5 maximum", code="context_length_exceeded")
    tab.ask("A long story")
    expect(tab.page.locator("article.assistant .trouble")).to_contain_text("9 tokens > 5 maximum")
    model.refusal, model.texts = None, ["So it is."]
    tab.button("Ask again").click()
    expect(tab.answer).to_have_text("So it is.")


def test_conversations_are_found_renamed_deleted_and_brought_back(tab: Tab, model: LiveService) -> None:
    model.texts = ["Blue whales.", "Red foxes."]
    for question in ("About the sea", "About the wood"):
        tab.begin()
        tab.ask(question)
        expect(tab.figures).to_contain_text("token")
    expect(tab.conversations).to_have_text(["About the wood", "About the sea"])
    tab.page.get_by_label("Search conversations").fill("WHALES")
    expect(tab.conversations).to_have_text(["About the sea"])
    tab.page.get_by_label("Search conversations").fill("")
    expect(tab.conversations).to_have_count(2)
    tab.conversations.last.click()
    expect(tab.answer).to_have_text("Blue whales.")
    tab.conversations.last.press("F2")
    tab.page.get_by_label("Title").fill("The deep")
    tab.page.get_by_label("Title").press("Enter")
    expect(tab.page.get_by_role("heading", name="The deep")).to_be_visible()
    expect(tab.conversations).to_have_text(["About the wood", "The deep"])
    tab.conversations.last.press("Delete")
    expect(tab.conversations).to_have_text(["About the wood"])
    expect(tab.answers).to_have_count(0)
    tab.button("Undo").click()
    expect(tab.conversations).to_have_text(["About the wood", "The deep"])
    expect(tab.answers).to_have_text(["Blue whales."])


def test_code_is_coloured_and_copied_as_it_is(tab: Tab, model: LiveService) -> None:
    model.texts = ["```python\nprint('hi')\n```"]
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.ask("Say hi.")
    expect(tab.answer.locator(".hljs-string")).to_have_text("'hi'")
    tab.page.get_by_role("button", name="Copy code").click()
    expect(tab.page.locator("button.done")).to_be_visible()
    assert tab.page.evaluate("navigator.clipboard.readText()") == "print('hi')"


def test_the_command_serves_the_page_and_a_second_turn_reuses_the_first(tab: Tab, tmp_path: Path) -> None:
    folder = scripted_folder(tmp_path / "scripted", ["It is **blue**, all of it.", "<think>\nHm.\n</think>\n\nDark."])
    with serve(str(folder)) as server:
        other = tab.another(server.url)
        other.ask("The sky above the world? " * 10)
        expect(other.answer.locator("strong")).to_have_text("blue")
        other.ask("At night?")
        expect(other.answers).to_have_text(["It is blue, all of it.", "Dark."])
        expect(other.figures).to_have_text(re.compile("[1-9][0-9]* of [0-9]+ reused"))
        other.close()


def test_an_edited_answer_is_another_version_and_is_gone_on_with(tab: Tab, model: LiveService) -> None:
    model.texts = ["It is blue."]
    tab.ask("Sky?")
    expect(tab.figures).to_contain_text("token")
    tab.button("Edit answer").click()
    area = tab.page.get_by_label("Edited message")
    area.fill("It is gr")
    area.press("Control+Enter")
    expect(tab.answers).to_have_text(["It is gr"])
    model.answer()
    tab.button("Continue").click()
    rest = model.answer()
    assert rest.question.messages[-1]["content"] == "It is gr"
    rest.say("een.")
    rest.end()
    expect(tab.answers).to_have_text(["It is green."])
    tab.page.get_by_role("button", name="Earlier version").first.click()
    expect(tab.answers).to_have_text(["It is blue."])
