"""A conversation in the browser: asked, stopped, edited, asked again, gone on with."""

from helpers.live_service import LiveService
from helpers.tab import Tab, expect


def test_an_answer_shows_as_it_comes_and_ends_with_its_figures(tab: Tab, model: LiveService) -> None:
    tab.ask("Why is the sky blue?")
    answer = model.answer()
    answer.say("Because ")
    expect(tab.answer).to_have_text("Because")
    answer.say("it **scatters** light.")
    expect(tab.answer.locator("strong")).to_have_text("scatters")
    answer.end()
    figures = tab.page.locator(".figures").last
    expect(figures).to_contain_text("2 tokens")
    expect(figures).to_contain_text("8 of 20 reused")
    assert answer.question.messages == [{"role": "user", "content": "Why is the sky blue?"}]
