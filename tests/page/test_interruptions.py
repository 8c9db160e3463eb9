"""What is begun is gone on with: after a reload, in another tab, beside another answer, when the server was away."""

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


def test_answers_of_two_conversations_are_written_at_once(tab: Tab, model: LiveService) -> None:
    tab.ask("First?")
    first = model.answer()
    first.say("One ")
    expect(tab.answer).to_have_text("One")
    tab.begin()
    tab.ask("Second?")
    second = model.answer()
    second.say("Two ")
    expect(tab.answers).to_have_text(["Two"])
    first.say("and a half")
    first.end()
    second.say("and a bit")
    expect(tab.answers).to_have_text(["Two and a bit"])
    tab.conversations.last.click()
    expect(tab.answers).to_have_text(["One and a half"])
    expect(tab.button("Send")).to_be_visible()
    tab.conversations.first.click()
    expect(tab.button("Stop")).to_be_visible()
    second.end()
    expect(tab.button("Send")).to_be_visible()


def test_a_message_edited_while_it_is_answered_is_answered_anew(tab: Tab, model: LiveService) -> None:
    tab.ask("First?")
    first = model.answer()
    first.say("One ")
    expect(tab.answer).to_have_text("One")
    tab.hover(tab.page.locator("article.user").first)
    tab.page.get_by_role("button", name="Edit message").first.click()
    tab.page.get_by_label("Edited message").fill("Second?")
    tab.page.get_by_label("Edited message").press("Control+Enter")
    second = model.answer()
    second.say("Two.")
    second.end()
    expect(tab.answers).to_have_text(["Two."])
    first.wait_until_left()
    expect(tab.button("Send")).to_be_visible()
    tab.page.get_by_role("button", name="Earlier version").first.click()
    expect(tab.answers).to_have_text(["One"])
    expect(tab.page.get_by_role("button", name="Continue")).to_be_visible()


def test_an_answer_that_failed_or_was_at_its_limit_goes_on(tab: Tab, model: LiveService) -> None:
    tab.ask("First?")
    first = model.answer()
    first.say("One ")
    first.fail("out of luck")
    expect(tab.page.locator(".trouble")).to_contain_text("out of luck")
    expect(tab.answer).to_have_text("One")
    tab.button("Continue").click()
    rest = model.answer()
    rest.say("two.")
    rest.end("length")
    expect(tab.answers).to_have_text(["One two."])
    expect(tab.page.locator(".trouble")).to_have_text("At its limit.")
    tab.button("Continue").click()
    rest = model.answer()
    rest.say(" Three.")
    rest.end()
    expect(tab.answers).to_have_text(["One two. Three."])
    expect(tab.page.locator(".trouble")).to_be_hidden()


def test_a_conversation_deleted_in_mid_answer_comes_back_with_what_there_was(tab: Tab, model: LiveService) -> None:
    tab.ask("First?")
    first = model.answer()
    first.say("One ")
    expect(tab.answer).to_have_text("One")
    tab.conversations.press("Delete")
    first.wait_until_left()
    expect(tab.conversations).to_have_count(0)
    tab.button("Undo").click()
    expect(tab.answers).to_have_text(["One"])
    expect(tab.button("Continue")).to_be_visible()
    expect(tab.button("Send")).to_be_visible()
