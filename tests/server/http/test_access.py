"""Who may ask: names of this machine, pages from here, keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.errors import InputError
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.http.access import Access
from afmoe_mlx.server.http.settings import Settings


@pytest.mark.parametrize("port", ["", ":8080", ":1"])
@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("[::1]", True),
        ("", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("[::2]", False),
        ("0.0.0.0", False),
        ("192.168.0.2", False),
    ],
)
def test_on_loopback_a_request_names_this_machine(host: str, is_ours: bool, port: str) -> None:
    access = Access(Settings())
    if is_ours:
        access.check_host({"host": host + port})
    else:
        with pytest.raises(RequestError, match="Host"):
            access.check_host({"host": host + port})
    Access(Settings(host="0.0.0.0", insecure=True)).check_host({"host": host + port})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "server.lan", ""])
def test_a_listener_that_others_reach_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(InputError, match="--insecure"):
        Settings(host=host)
    assert Settings(host=host, keys=("a",)).keys == Settings(host=host, keys=("a",), insecure=True).keys
    for local in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert Settings(host=local).is_local


@pytest.mark.parametrize("key", ["", "a b", "a\n", "schlüssel"])
def test_a_key_that_no_client_could_send_is_refused(key: str) -> None:
    with pytest.raises(InputError) as caught:
        Settings(keys=("good", key))
    assert "\n" not in str(caught.value)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/", "https://", "https://a b"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(InputError, match="--cors-origin"):
        Settings(cors_origins=(origin,))


KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)


@given(st.lists(KEYS, min_size=1, max_size=3, unique=True), KEYS)
def test_the_keys_alone_are_let_in_each_as_someone_else(keys: list[str], other: str) -> None:
    access = Access(Settings(keys=tuple(keys)))
    owners = [access.owner({"authorization": f"Bearer {key}"}) for key in keys]
    assert owners == [access.owner({"x-api-key": key}) for key in keys]
    assert len({*owners}) == len(keys)
    assert Access(Settings(keys=tuple(reversed(keys)))).owner({"x-api-key": keys[0]}) == owners[0]
    if other not in keys:
        with pytest.raises(RequestError):
            access.owner({"x-api-key": other, "authorization": f"Bearer {other}"})
    with pytest.raises(RequestError):
        access.owner({"authorization": keys[0]})


LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    ("headers", "method", "may"),
    [
        ({}, "POST", True),  # no browser
        ({"sec-fetch-site": "none", **LINK}, "GET", True),  # typed
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, "POST", True),
        ({"sec-fetch-site": "cross-site", **LINK}, "GET", True),  # a link
        ({"sec-fetch-site": "same-site", **LINK}, "GET", True),
        ({"sec-fetch-site": "cross-site", **LINK}, "POST", False),  # a form
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, "GET", False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, "GET", False),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}, "GET", False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, "POST", False),
    ],
)
def test_another_sites_page_has_a_browser_ask_for_nothing(headers: dict[str, str], method: str, may: bool) -> None:
    access = Access(Settings())
    if may:
        access.check_site(headers, method)
    else:
        with pytest.raises(RequestError) as caught:
            access.check_site(headers, method)
        assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


def test_a_page_of_an_allowed_site_may_ask_though_it_is_another() -> None:
    headers = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "cors",
        "origin": "https://a.example",
        "host": "localhost",
    }
    access = Access(Settings(cors_origins=("https://a.example",)))
    access.check_origin(headers)
    access.check_site(headers, "POST")
    with pytest.raises(RequestError):
        Access(Settings()).check_origin(headers)
