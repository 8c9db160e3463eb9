"""Whoever uses the page: by keyboard, on a phone, with a screen reader, from right to left, in light and dark."""

from collections.abc import Callable

import pytest

from helpers import ROOT
from helpers.live_service import LiveService
from helpers.tab import Tab, expect

AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RICH = """# A heading

Some `code`, a [link](https://a.example/), **bold**, ~~struck~~ and a verylongword{long}.

> quoted

| left | right |{columns}
|:-----|------:|{lines}
| a    |     1 |{cells}

```python
def f(x: int) -> str:  # {long}
    return f"{{x}}"
```

1. one
   - two
""".format(long="o" * 200, columns=" column |" * 20, lines="---|" * 20, cells=" cell |" * 20)
ARABIC = "مرحبا بالعالم، هذا نص عربي."


# Number what can be used, and leave all of it.
MARK = """() => {
    const kinds = 'button, a[href], input, textarea, select, summary, [tabindex="0"]';
    const all = [...document.querySelectorAll(kinds)];
    const shown = all.filter((one) => one.checkVisibility() && !one.disabled && one.tabIndex === 0);
    shown.forEach((one, index) => { one.dataset.number = index; });
    document.activeElement.blur();
    return shown.length;
}"""
# The number of what has the focus, and whether that can be seen.
FOCUSED = """() => {
    const one = document.activeElement;
    const isMarked = getComputedStyle(one).outlineStyle !== 'none' || one.matches('body, #message');
    return [one.dataset.number, isMarked];
}"""


def fill(tab: Tab, model: LiveService) -> None:
    """A conversation with some of everything."""
    tab.drop("notes.txt", b"x = 1\n")
    tab.ask("Show me all.")
    answer = model.answer()
    answer.think("Let me see.")
    answer.say(RICH)
    answer.call("clock", '{"zone": "UTC"}')
    answer.end()
    expect(tab.figures).to_contain_text("token")


def test_everything_is_done_by_keyboard(tab: Tab, model: LiveService) -> None:
    model.texts = ["One.", "Two.", "Three."]
    press, write = tab.page.keyboard.press, tab.page.keyboard.type
    press("Alt+n")
    write("First?")
    press("Enter")
    expect(tab.answers).to_have_text(["One."])
    press("Alt+r")
    expect(tab.answers).to_have_text(["Two."])
    press("ArrowUp")
    write(" Edited.")
    press("Control+Enter")
    expect(tab.answers).to_have_text(["Three."])
    expect(tab.questions).to_have_text(["First? Edited."])
    press("/")
    write("Go on.")
    press("Enter")
    answer = model.answer()
    while answer.question.messages[-1]["content"] != "Go on.":
        answer = model.answer()
    answer.say("A begin")
    expect(tab.answer).to_have_text("A begin")
    press("Escape")
    answer.wait_until_left()
    expect(tab.button("Continue")).to_be_visible()
    press("Alt+c")
    rest = model.answer()
    rest.say("ning.")
    rest.end()
    expect(tab.answer).to_have_text("A beginning.")
    press("Alt+n")
    expect(tab.page.locator("#empty")).to_be_visible()
    press("Alt+k")
    press("ArrowDown")
    press("Enter")
    expect(tab.answer).to_have_text("A beginning.")
    press("Alt+k")
    press("ArrowDown")
    press("F2")
    write("Named")
    press("Enter")
    expect(tab.conversations).to_have_text(["Named"])
    press("Alt+ArrowUp")
    expect(tab.page.locator("article.assistant").last).to_be_focused()
    press("Alt+ArrowUp")
    expect(tab.page.locator("article.user").last).to_be_focused()
    press("Alt+s")
    expect(tab.page.get_by_label("System prompt")).to_be_visible()
    press("Escape")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    press("?")
    expect(tab.page.get_by_role("dialog", name="Keys")).to_be_visible()
    press("Escape")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    press("Alt+k")
    press("ArrowDown")
    press("Delete")
    expect(tab.conversations).to_have_count(0)


def test_tab_reaches_every_control_that_shows_and_shows_where_it_is(tab: Tab, model: LiveService) -> None:
    fill(tab, model)
    wanted = tab.page.evaluate(MARK)
    reached = set()
    for _ in range(wanted + 1):  # once it is the browser's turn, between the last and the first
        tab.page.keyboard.press("Tab")
        number, is_marked = tab.page.evaluate(FOCUSED)
        reached.add(number)
        assert is_marked, number
    assert reached >= set(map(str, range(wanted)))


@pytest.fixture
def narrow(tab: Tab) -> "Callable[[], bool]":
    """Makes the tab a phone's, and says whether anything is wider than it."""
    tab.page.set_viewport_size({"width": 360, "height": 700})
    yield lambda: tab.page.evaluate(
        """() => [...document.querySelectorAll('html, body, #scroller, #side, #below, dialog')]
            .some((one) => one.scrollWidth > Math.max(one.clientWidth, one === document.body ? innerWidth : 0))"""
    )
    tab.page.set_viewport_size({"width": 1280, "height": 720})


def test_a_phone_has_all_of_it_and_scrolls_one_way(tab: Tab, model: LiveService, narrow: "Callable[[], bool]") -> None:
    fill(tab, model)
    assert not narrow()
    tab.button("Conversations").click()
    expect(tab.conversations).to_be_in_viewport()
    assert not narrow()
    tab.page.keyboard.press("Escape")
    expect(tab.conversations).not_to_be_visible()
    tab.button("Settings").click()
    expect(tab.page.get_by_label("Temperature")).to_be_visible()
    assert not narrow()
    tab.button("Cancel").click()
    tab.page.get_by_role("button", name="Edit message").click()
    assert not narrow()
    tab.button("Cancel").click()
    tab.message.fill("line\n" * 100)
    assert not narrow()
    expect(tab.button("Send")).to_be_in_viewport()


def test_text_runs_from_right_to_left_and_code_does_not(tab: Tab, model: LiveService) -> None:
    model.texts = [f"{ARABIC}\n\n- {ARABIC}\n\nEnglish.\n\n```\n{ARABIC}\n```"]
    tab.ask(ARABIC)
    expect(tab.answer.locator("pre")).to_be_visible()
    direction = "(found) => found.map((one) => getComputedStyle(one).direction)"
    assert tab.answer.locator("p, li").evaluate_all(direction) == ["rtl", "rtl", "ltr"]
    assert tab.answer.locator("code").evaluate_all(direction) == ["ltr"]
    assert tab.page.locator("h1, .written, #conversations a").evaluate_all(direction) == ["rtl"] * 3


def test_screen_readers_hear_of_answers_and_not_of_each_token(tab: Tab, model: LiveService) -> None:
    live = """() => { window.heard = []; new MutationObserver((records) => {
        for (const {target} of records) {
            const region = (target.nodeType === 1 ? target : target.parentElement).closest('[aria-live], [role]');
            if (region?.ariaLive === 'polite' || region?.role === 'alert') window.heard.push(region.textContent);
        }
    }).observe(document, {subtree: true, childList: true, characterData: true}); }"""
    tab.page.evaluate(live)
    tab.ask("Well?")
    answer = model.answer()
    answer.say(*"a b c d e f g h".split())
    answer.end()
    expect(tab.page.get_by_role("status")).to_have_text("Answer complete, 8 tokens")
    assert tab.page.evaluate("window.heard") in (
        ["The answer begins.", "Answer complete, 8 tokens"],
        ["Answer complete, 8 tokens"],
    )


def axe(tab: Tab, *rules: str) -> list[str]:
    """What axe-core finds serious or critical, with where; by these rules alone, or all."""
    only = {"type": "rule", "values": rules} if rules else {"type": "tag", "values": TAGS}
    found = tab.page.evaluate(
        "(options) => axe.run(document, options)", {"runOnly": only, "resultTypes": ["violations"]}
    )
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: cd web && npm ci")
def test_axe_finds_nothing_serious_in_light_and_dark(tab: Tab, model: LiveService) -> None:
    tab.page.evaluate(AXE.read_text(encoding="utf-8"))
    assert axe(tab) == []
    fill(tab, model)
    tab.page.locator("summary").evaluate_all("(all) => all.forEach((one) => { one.parentElement.open = true; })")
    assert axe(tab) == []
    tab.page.emulate_media(color_scheme="dark")
    assert axe(tab, "color-contrast") == []
    for key, name in (("Alt+s", "Settings of this conversation"), ("?", "Keys")):
        tab.page.locator("#scroller").focus()
        tab.page.keyboard.press(key)
        dialog = tab.page.get_by_role("dialog", name=name)
        expect(dialog).to_be_visible()
        assert axe(tab) == []
        tab.page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
    tab.button("More: rename, export, delete").click()
    assert axe(tab) == []
    tab.page.keyboard.press("Escape")
    tab.page.emulate_media(color_scheme="light")
