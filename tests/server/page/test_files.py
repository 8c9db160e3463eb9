"""The page's files: what is handed out, with what headers, and what they may not do."""

import gzip
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import Any

import pytest

from afmoe_mlx.server.page.page import POLICY, File, read_page
from helpers import ROOT
from helpers.asgi import ask
from helpers.fake_app import make_app

STATIC = ROOT / "afmoe_mlx" / "server" / "page" / "static"
PAGE = read_page()
MOST_BYTES = 150_000
OWN_SCRIPTS = [path for path in PAGE if path.endswith(".js") and "/vendor/" not in path]


class Markup(HTMLParser):
    """What index.html refers to, and what it would run itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.addresses += [given[name] for name in ("src", "href") if given.get(name, "#")[0] != "#"]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)


@pytest.mark.parametrize("path", PAGE)
def test_every_file_comes_as_it_is_with_its_type_and_the_policy(path: str) -> None:
    app = make_app(page=PAGE, keys=("k",))
    plain, packed = ask(app, "GET", path), ask(app, "GET", path, accept_encoding="br, gzip")
    body = (STATIC / ("index.html" if path == "/" else path.removeprefix("/page/"))).read_bytes()
    assert b"".join(plain.pieces) == gzip.decompress(b"".join(packed.pieces)) == body
    kind = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    wanted = kind[".html" if path == "/" else PurePosixPath(path).suffix]
    for response in (plain, packed):
        assert (response.status, response.headers["content-type"].partition(";")[0]) == (200, wanted)
        assert response.headers["content-security-policy"] == POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.headers["etag"] != packed.headers["etag"]


def test_a_file_that_a_browser_has_is_not_sent_again() -> None:
    app = make_app(page=PAGE)
    for coding in ("identity", "gzip"):
        first = ask(app, "GET", "/", accept_encoding=coding)
        again = ask(app, "GET", "/", accept_encoding=coding, if_none_match=first.headers["etag"])
        assert (again.status, again.text, again.headers["etag"]) == (304, "", first.headers["etag"])
        assert ask(app, "GET", "/page/main.js", if_none_match=first.headers["etag"]).status == 200
    assert File(b"a", "text/css").tag != File(b"b", "text/css").tag


def test_the_policy_lets_nothing_in_or_out() -> None:
    given = dict(directive.split(" ", 1) for directive in POLICY.split("; "))
    assert given.pop("default-src") == given.pop("base-uri") == given.pop("form-action") == "'none'"
    assert given.pop("frame-ancestors") == "'none'"
    assert given.pop("img-src") == "'self' data:"
    assert (given.pop("require-trusted-types-for"), given.pop("trusted-types")) == ("'script'", "dompurify")
    assert set(given.values()) == {"'self'"}


def test_the_page_is_small() -> None:
    assert sum(len(file.packed) for file in PAGE.values()) <= MOST_BYTES


def test_nothing_is_inline_and_every_address_is_a_file_of_the_page() -> None:
    markup = Markup()
    markup.feed(PAGE["/"].body.decode())
    assert markup.inline == []
    assert {f"/{address}" for address in markup.addresses} <= PAGE.keys()
    assert "/page/main.js" in {f"/{address}" for address in markup.addresses}


@pytest.mark.parametrize("path", OWN_SCRIPTS)
def test_modules_import_each_other_alone_and_make_no_markup(path: str) -> None:
    text = PAGE[path].body.decode()
    for name in re.findall(r"(?m)^(?:import|export) .*?from '(.*?)';|^import '(.*?)'", text):
        assert str(PurePosixPath(path).parent / PurePosixPath("".join(name))) in PAGE
    assert set(re.findall(r"https?://[\w.]+\w", text)) <= {"http://www.w3.org"}  # the namespace of SVG
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)


def test_the_libraries_are_those_that_their_script_made() -> None:
    vendor = STATIC / "vendor"
    made = json.loads((vendor / "vendor.json").read_text())
    assert {path.name for path in vendor.glob("*.js")} == made.keys()
    licences = (vendor / "LICENSES.txt").read_text()
    for name, file in made.items():
        assert sha256((vendor / name).read_bytes()).hexdigest() == file["sha256"], f"{name} was changed by hand"
        for package in file["packages"]:
            assert f"{package['name']} {package['version']}\n" in licences


def test_versions_of_libraries_are_those_of_the_lock_file() -> None:
    lock = json.loads((ROOT / "web" / "package-lock.json").read_text())["packages"]
    for file in json.loads((STATIC / "vendor" / "vendor.json").read_text()).values():
        for package in file["packages"]:
            locked = lock[f"node_modules/{package['name']}"]
            assert (package["version"], package["integrity"]) == (locked["version"], locked["integrity"])


def test_the_page_needs_no_key_and_what_it_asks_does() -> None:
    app = make_app(page=PAGE, keys=("k",))
    assert ask(app, "GET", "/page/main.js").status == ask(app, "GET", "/health").status == 200
    assert ask(app, "POST", "/v1/echo", {"content": "hi"}).status == 401
    assert ask(app, "GET", "/metrics").status == 401
    assert ask(app, "GET", "/page/none.js").status == 401


def test_the_page_is_for_reading_alone_and_can_be_left_out() -> None:
    app = make_app(page=PAGE)
    wrong = ask(app, "POST", "/", {})
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
    for path in ("/page/vendor/LICENSES.txt", "/page/vendor/vendor.json", "/page/index.html", "/page/../page.py"):
        assert ask(app, "GET", path).status == 404
    assert ask(make_app(), "GET", "/").status == 404


def test_the_log_has_no_lines_of_the_page_unless_something_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app(page=PAGE)
    assert ask(app, "GET", "/").status == 200
    assert capsys.readouterr().err == ""
    assert ask(app, "POST", "/", {}).status == 405
    assert "405" in capsys.readouterr().err
