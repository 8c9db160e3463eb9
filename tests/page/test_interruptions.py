"""What is begun is gone on with: after a reload, in another tab, when the server was away."""

from helpers.live_service import LiveService
from helpers.served_app import ServedApp
from helpers.tab import Tab, expect


def test_an_answer_cut_by_a_reload_goes_on_from_what_was_on_the_page(tab: Tab, model: LiveService) -> None:
    tab.ask("Tell me a story.")
    cut = model.answer()
    cut.say("Once ", "upon ")
    expect(tab.answer).to_have_text("Once upon")
    tab.page.reload()
    cut.wait_until_left()
    rest = model.answer()
    assert rest.question.continues
    assert [message["content"] for message in rest.question.messages] == ["Tell me a story.", "Once upon "]
    rest.say("a time.")
    rest.end()
    expect(tab.figures).to_contain_text("token")
    expect(tab.answers).to_have_text(["Once upon a time."])


def test_reasoning_cut_by_a_reload_goes_on(tab: Tab, model: LiveService) -> None:
    tab.ask("Think.")
    cut = model.answer()
    cut.think("First ")
    expect(tab.page.locator("details.reasoning summary")).to_have_text("Reasoning … 1 word")
    tab.page.reload()
    rest = model.answer()
    assert rest.question.messages[-1] == {"role": "assistant", "content": "", "reasoning_content": "First "}
    rest.think("then.")
    rest.say("Done.")
    rest.end()
    expect(tab.answers).to_have_text(["Done."])
    tab.page.locator("details.reasoning summary").click()
    expect(tab.page.locator("details.reasoning .content")).to_have_text("First then.")


def test_an_answer_whose_tab_was_closed_is_broken_off_and_goes_on_when_it_is_told_to(
    tab: Tab, model: LiveService
) -> None:
    other = tab.another()
    other.ask("Tell me a story.")
    cut = model.answer()
    cut.say("Once upon ")
    tab.conversations.click()
    expect(tab.answer).to_have_text("Once upon")
    other.close()
    cut.wait_until_left()
    expect(tab.page.get_by_text("Broken off.")).to_be_visible()
    tab.button("Continue").click()
    rest = model.answer()
    assert rest.question.messages[-1]["content"] == "Once upon "
    rest.say("a time.")
    rest.end()
    expect(tab.figures).to_contain_text("token")
    expect(tab.answers).to_have_text(["Once upon a time."])


def test_two_tabs_show_the_same_and_either_stops_an_answer(tab: Tab, model: LiveService) -> None:
    other = tab.another()
    tab.ask("Tell me a story.")
    answer = model.answer()
    answer.say("Once upon ")
    other.conversations.click()
    expect(other.answer).to_have_text("Once upon")
    answer.say("a ")
    expect(other.answer).to_have_text("Once upon a")
    other.button("Stop").click()
    answer.wait_until_left()
    expect(tab.button("Send")).to_be_visible()
    expect(other.button("Continue")).to_be_visible()
    assert model.asks == 1
    model.texts = ["Of course."]
    other.ask("Shorter?")
    expect(tab.answers).to_have_text(["Once upon a", "Of course."])


def test_a_conversation_deleted_in_another_tab_is_gone_with_the_answer_that_is_written(
    tab: Tab, model: LiveService
) -> None:
    other = tab.another()
    tab.ask("Tell me a story.")
    answer = model.answer()
    answer.say("Once upon ")
    other.conversations.press("Delete")
    answer.wait_until_left()
    expect(tab.answers).to_have_count(0)
    expect(tab.conversations).to_have_count(0)
    assert tab.kept() == {"conversations": 0, "messages": 0}


def test_a_server_that_is_away_in_mid_answer_is_waited_for(tab: Tab, model: LiveService, server: ServedApp) -> None:
    tab.ask("Tell me a story.")
    cut = model.answer()
    cut.say("Once ", "upon ")
    expect(tab.answer).to_have_text("Once upon")
    server.stop()
    expect(tab.page.get_by_role("log")).to_contain_text("The server is away: waiting")
    server.start()
    rest = model.answer()
    assert rest.question.continues
    assert rest.question.messages[-1]["content"] == "Once upon "
    rest.say("a time.")
    rest.end()
    expect(tab.figures).to_contain_text("token")
    expect(tab.answers).to_have_text(["Once upon a time."])
