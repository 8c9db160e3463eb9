"""Draws docs/page-*.png: the real server with the built-in demo, in Chromium.

`python docs/make_page_pictures.py`, with the extra `browser`.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from helpers.serving import serve  # noqa: E402
from helpers.tab import Tab, expect  # noqa: E402

CONVERSATIONS = (
    ("how big are the models?",),
    ("whats a router", "and a KV cache?"),
    ("What is AFMoE?", "how big is trinity mini?", "and how do i convert it?"),
)
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        serve("demo") as server,
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=chromium) as browser,
    ):
        with browser.new_context(viewport={"width": 1200, "height": 860}) as context:
            tab = Tab(context, server.url)
            talk(tab)
            draw(tab, "light")
            tab.page.emulate_media(color_scheme="dark")
            draw(tab, "dark")
            kept = context.storage_state(indexed_db=True)
            place = tab.page.url
        with browser.new_context(**PHONE, storage_state=kept) as context:
            draw(Tab(context, place), "phone")


def talk(tab: Tab) -> None:
    tab.button("Settings").click()
    tab.page.get_by_label("Temperature").fill("0")
    tab.page.get_by_label("Use these for new conversations").check()
    tab.button("Save").click()
    for questions in CONVERSATIONS:
        tab.begin()
        for count, question in enumerate(questions, 1):
            tab.ask(question)
            expect(tab.page.locator(".figures", has_text="reused")).to_have_count(count)
    tab.page.mouse.move(0, 0)


def draw(tab: Tab, name: str) -> None:
    """Write what the tab shows to docs/page-`name`.png."""
    expect(tab.answers).to_have_count(len(CONVERSATIONS[-1]))
    tab.settle()
    tab.page.screenshot(path=DOCS / f"page-{name}.png", animations="disabled")


if __name__ == "__main__":
    main()
