"""The chat page in a browser's tab, asked and looked at as a user does, and watched for what it may never do."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page, Request

# What a browser tells of requests that fail, as they do when a test wants it.
FAILED = "Failed to load resource"

# Forget what this tab's page has kept, and have it begin anew.
CLEAR = """async () => {
    const database = await new Promise((resolve) => {
        indexedDB.open('afmoe-mlx').onsuccess = (event) => resolve(event.target.result);
    });
    const stores = [...database.objectStoreNames];
    const transaction = database.transaction(stores, 'readwrite');
    for (const store of stores) transaction.objectStore(store).clear();
    await new Promise((resolve) => { transaction.oncomplete = resolve; });
    database.close();
    sessionStorage.clear();
    localStorage.clear();
    for (const dialog of document.querySelectorAll('dialog')) dialog.close();
    document.querySelector('#toasts').replaceChildren();
    document.querySelector('#search').value = '';
    location.hash = '#none';
    new BroadcastChannel('afmoe-mlx').postMessage({kind: 'removed', id: ''});
}"""

COUNT = """async () => {
    const answer = (request) => new Promise((resolve) => { request.onsuccess = () => resolve(request.result); });
    const database = await answer(indexedDB.open('afmoe-mlx'));
    const count = (store) => answer(database.transaction(store).objectStore(store).count());
    const found = {conversations: await count('conversations'), messages: await count('messages')};
    database.close();
    return found;
}"""

DROP = """([name, bytes]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
    document.body.dispatchEvent(new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true}));
}"""


def expect(found: "Locator | Page") -> Any:
    """Playwright's, imported by those alone who have it."""
    from playwright.sync_api import expect

    return expect(found)


class Tab:
    """One tab. `check` says whether it did what no page of ours may."""

    def __init__(self, context: "BrowserContext", url: str) -> None:
        self.url = url
        self._context = context
        self._others: list[Tab] = []
        self.requests: list[Request] = []
        self.troubles: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        self.page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))
        self.page.goto(url)
        expect(self.page.locator("#model:not(:empty), dialog[open]")).to_be_visible()

    def another(self, url: str | None = None) -> "Tab":
        """Another tab of the same browser, for this test."""
        self._others.append(Tab(self._context, url or self.url))
        return self._others[-1]

    def close(self) -> None:
        self.check()
        self.page.close()

    def clear(self) -> None:
        for other in self._others:
            if not other.page.is_closed():
                other.close()
        self._others.clear()
        self.page.evaluate(CLEAR)
        expect(self.page.locator("article, dialog, #conversations a")).to_have_count(0)
        expect(self.page.locator("#empty")).to_be_visible()

    def check(self) -> None:
        """Since the last time: no error, no violation of the policy, nothing asked of anything but the server."""
        troubles, self.troubles = [trouble for trouble in self.troubles if FAILED not in trouble], []
        requests, self.requests = self.requests, []
        assert not troubles, troubles
        elsewhere = [one.url for one in requests if not one.url.startswith((self.url, "blob:", "data:"))]
        assert not elsewhere, elsewhere

    @property
    def message(self) -> "Locator":
        """Where a message is written."""
        return self.page.get_by_label("Message", exact=True)

    @property
    def answers(self) -> "Locator":
        """The texts of all answers that show."""
        return self.page.locator("article.assistant > .content")

    @property
    def answer(self) -> "Locator":
        """The text of the last."""
        return self.answers.last

    @property
    def figures(self) -> "Locator":
        """Of the last answer."""
        return self.page.locator(".figures").last

    @property
    def questions(self) -> "Locator":
        return self.page.locator("article.user .written")

    @property
    def conversations(self) -> "Locator":
        """The list's links."""
        return self.page.locator("#conversations a")

    def button(self, name: str) -> "Locator":
        """The last one of a name."""
        return self.page.get_by_role("button", name=name, exact=True).last

    def ask(self, text: str) -> None:
        self.message.fill(text)
        self.message.press("Enter")

    def begin(self) -> None:
        """A new conversation."""
        self.button("New conversation").click()
        expect(self.page.locator("#empty")).to_be_visible()

    def hover(self, message: "Locator") -> None:
        """Have what can be done with a message shown."""
        message.scroll_into_view_if_needed()
        message.hover()

    def settle(self) -> None:
        """Until the page has drawn what it was told, and told what it has drawn."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def kept(self) -> dict[str, int]:
        """How many conversations and messages the browser keeps."""
        return self.page.evaluate(COUNT)  # type: ignore[no-any-return]

    def drop(self, name: str, content: bytes) -> None:
        """Drop a file onto the page."""
        self.page.evaluate(DROP, [name, list(content)])

    def import_conversation(self, folder: Path, **exported: Any) -> None:
        """Import what an export would have written, and open it."""
        path = folder / "exported.json"
        path.write_text(json.dumps(exported), encoding="utf-8")
        self.page.locator("#pick-import").set_input_files(path)

    def exported(self, kind: str) -> str:
        """The open conversation's text as "Markdown" or "JSON"."""
        self.button("More: rename, export, delete").click()
        with self.page.expect_download() as found:
            self.page.get_by_role("menuitem", name=f"Export as {kind}").click()
        return Path(found.value.path()).read_text(encoding="utf-8")
