"""What changes on the page while an answer comes: its last block alone; how far the prompt is read; the context."""

from pathlib import Path

from helpers.live_service import LiveService
from helpers.tab import Tab, expect

MESSAGES = [{"role": ("user", "assistant")[i % 2], "content": f"Message **{i}**.\n\n- one\n- two"} for i in range(500)]
WATCH = """() => {
    window.seen = [];
    new MutationObserver((records) => window.seen.push(...records)).observe(document, {
        subtree: true, childList: true, characterData: true, attributes: true,
    });
}"""
# Of what was seen, what is neither in the last block, nor that block's coming in place of what it was.
OUTSIDE = """(content) => window.seen.splice(0).filter(({target, addedNodes, removedNodes}) => {
    const last = content.lastElementChild;
    const isLast = (node) => !node.isConnected || node === last || node === last.nextSibling;
    const blocks = [...removedNodes].filter((node) => node.nodeType === Node.ELEMENT_NODE);
    const isOwn = target === content && [...addedNodes].every(isLast) && blocks.length <= 1;
    return !isOwn && !last.contains(target) && target.isConnected;
}).map(({type, target, attributeName}) => `${type} ${attributeName} of ${target.outerHTML ?? target.data}`)"""


def test_of_500_messages_a_token_changes_the_last_block_alone(tab: Tab, model: LiveService, tmp_path: Path) -> None:
    tab.import_conversation(tmp_path, messages=MESSAGES)
    expect(tab.page.locator("article")).to_have_count(500)
    tab.ask("And now?")
    answer = model.answer()
    assert [message["content"] for message in answer.question.messages] == [
        *(message["content"] for message in MESSAGES),
        "And now?",
    ]
    answer.say("A first paragraph, and", " some *more* of it.\n\nA sec", "ond")
    expect(tab.answer.locator("p")).to_have_count(2)
    tab.settle()
    first = tab.answer.locator("p").first.element_handle()
    tab.page.evaluate(WATCH)
    for piece, whole in [(" one", "A second one"), (", of", "A second one, of"), (" [x](https://a.example", None)]:
        answer.say(piece)
        if whole is not None:
            expect(tab.answer.locator("p").last).to_have_text(whole)
        else:
            expect(tab.answer.locator("a")).to_have_count(1)
        tab.settle()
        assert tab.page.evaluate("window.seen.length") in range(1, 5)
        assert tab.answer.evaluate(OUTSIDE) == []
    assert tab.answer.locator("p").first.evaluate("(now, then) => now === then", first)


def test_a_bar_tells_how_far_a_long_prompt_is_read(tab: Tab, model: LiveService) -> None:
    tab.ask("A long one.")
    answer = model.answer()
    answer.read(1024, 4000, cached=512)
    bar = tab.page.get_by_role("progressbar", name="Prompt read")
    expect(bar).to_have_js_property("position", 1024 / 4000)
    expect(tab.page.get_by_text("1,024 of 4,000 tokens, 512 known")).to_be_visible()
    answer.read(4000, 4000, cached=512)
    answer.say("Here.")
    expect(tab.answer).to_have_text("Here.")
    expect(bar).to_be_hidden()


def test_the_context_is_told_of_and_warned_of_before_it_is_full(tab: Tab, model: LiveService) -> None:
    model.context = 1000
    other = tab.another()
    warning = other.page.get_by_text("The context is nearly full")
    for total, is_warned in ((500, False), (900, True)):
        other.ask("More?")
        answer = model.answer()
        answer.read(total, total)
        answer.say("Yes.")
        answer.end()
        expect(other.page.get_by_text(f"{total + 1} of 1,000 tokens")).to_be_visible()
        expect(warning).to_be_visible(visible=is_warned)
    other.message.fill("x" * 4000)
    expect(other.page.get_by_text("more than the context has room for")).to_be_visible()


def test_the_newest_is_followed_until_the_user_goes_up(tab: Tab, model: LiveService) -> None:
    tab.ask("Long?")
    first = model.answer()
    first.say("line\n\n" * 60)
    expect(tab.answer.locator("p")).to_have_count(60)
    tab.settle()
    at_end = "(one) => one.scrollHeight - one.scrollTop - one.clientHeight < 5"
    scroller = tab.page.locator("#scroller")
    assert scroller.evaluate(at_end)
    scroller.evaluate("(one) => { one.scrollTop = 100; }")
    expect(tab.button("To the newest")).to_be_visible()
    first.say("line\n\n" * 5)
    expect(tab.answer.locator("p")).to_have_count(65)
    tab.settle()
    assert scroller.evaluate("(one) => one.scrollTop") == 100
    tab.button("To the newest").click()
    assert scroller.evaluate(at_end)
    first.say("line\n\n" * 5)
    expect(tab.answer.locator("p")).to_have_count(70)
    tab.settle()
    assert scroller.evaluate(at_end)
    first.end()
