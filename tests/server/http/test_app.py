"""The app in front of the service: what it refuses, in whose words, what it tells of a request and what it does not."""

import asyncio
import json
from typing import Any

import pytest

from helpers.asgi import ask, asked
from helpers.fake_app import Desk, make_app

SAID = {"content": "hello"}


def test_an_answer_comes_whole_or_as_events() -> None:
    app = make_app()
    whole = ask(app, "POST", "/v1/echo", SAID)
    assert (whole.status, whole.json["content"], whole.headers["content-type"]) == (200, "hello", "application/json")
    stream = ask(app, "POST", "/v1/echo", SAID | {"stream": True})
    assert stream.pieces[:2] == [b"data: h\n\n", b"data: e\n\n"]
    assert stream.is_whole
    assert stream.pieces[-2:] == [b"data: [DONE]\n\n", b""]
    told = [stream.headers[name] for name in ("content-type", "cache-control", "x-accel-buffering")]
    assert told == ["text/event-stream; charset=utf-8", "no-cache, no-store", "no"]
    assert whole.headers["x-request-id"] != stream.headers["x-request-id"]


def test_halves_of_characters_are_escapes_in_an_answer() -> None:
    answer = ask(make_app(), "POST", "/v1/echo", {"content": "Zürich \U0001f600"})
    assert answer.json["content"] == "Zürich \U0001f600"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("POST", "/v1/echo", b"{", {}, 400, "not valid JSON"),
        ("POST", "/v1/echo", b"\xff", {}, 400, "not valid JSON"),
        ("POST", "/v1/echo", [1], {}, 400, "not a JSON object"),
        ("POST", "/v1/echo", {}, {}, 400, "content: Field required"),
        ("POST", "/v1/echo", SAID | {"shape": 1, "colour": 2}, {}, 400, "unknown field: colour, shape"),
        ("POST", "/v1/echo", SAID | {"model": "/etc/passwd"}, {}, 404, "expected 'maker/tiny'"),
        ("POST", "/v1/echo", SAID, {"content_type": "text/plain"}, 415, "expected application/json"),
        ("POST", "/v1/echo", SAID, {"content_type": None}, 415, "expected application/json"),
        ("POST", "/v1/echo", SAID, {"content_length": "99999999"}, 413, "more than"),
        ("POST", "/v1/echo", {"content": "x" * 1000}, {}, 413, "more than"),
        ("POST", "/v1/echo", SAID, {"host": "evil.example"}, 403, "Host"),
        ("POST", "/v1/echo", SAID, {"origin": "https://evil.example"}, 403, "--cors-origin"),
        ("POST", "/v1/echo", SAID | {"fails": "refused"}, {}, 429, "too many"),
        ("GET", "/v1/echo", None, {}, 405, "expected POST"),
        ("HEAD", "/v1/echo", None, {}, 405, "expected POST"),
        ("POST", "/v1/echo", SAID, {"upgrade": "websocket"}, 426, "HTTP"),
    ],
)
def test_what_is_wrong_is_told_in_the_protocols_words(
    method: str, path: str, body: Any, headers: dict[str, str | None], status: int, words: str
) -> None:
    desk = Desk()
    app = make_app(desk, max_body=500)
    response = ask(app, method, path, body, **headers)
    assert response.status == status
    assert words in response.error["echo"]
    assert "\n" not in response.error["echo"]
    assert len(response.headers["x-request-id"]) == 32
    assert desk.asked == [] or status == 429


def test_paths_that_are_nobodys_answer_in_openais_words() -> None:
    app = make_app()
    for path in ("/", "/v1/echo/", "/v1/../health", "/health/x", "/v1/" + "x" * 5000):
        response = ask(app, "GET", path)
        assert (response.status, response.error["code"]) == (404, "not_found")
    wrong = ask(app, "DELETE", "/metrics")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
    assert ask(app, "POST", "/v1/echo", SAID | {"fails": "refused"}).headers["retry-after"] == "7"


def test_a_body_that_does_not_come_to_its_end_is_given_up() -> None:
    app = make_app(read_timeout=0.02)
    response = ask(app, "POST", "/v1/echo", chunks=[b'{"content"', b""])
    assert (response.status, response.error["code"], response.headers["connection"]) == (
        408,
        "request_timeout",
        "close",
    )


def test_a_body_in_pieces_is_counted_as_it_comes() -> None:
    app = make_app(max_body=20)
    assert ask(app, "POST", "/v1/echo", chunks=[b'{"content": ', b'"a"}']).status == 200
    assert ask(app, "POST", "/v1/echo", chunks=[b" " * 15, b" " * 15, b""]).status == 413


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(stream: bool, capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk()
    response = ask(make_app(desk), "POST", "/v1/echo", SAID | {"stream": stream, "pause": 60}, stays=0.01)
    assert desk.cancelled == 1
    assert not response.is_whole
    assert "removed" in capsys.readouterr().err


@pytest.mark.parametrize("fails", ["broken", "midway"])
def test_a_defect_ends_one_request_and_is_told_without_what_was_said(
    fails: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    response = ask(app, "POST", "/v1/echo", SAID | {"fails": fails, "stream": fails == "midway"})
    assert (response.status, response.is_whole) == ((500, True) if fails == "broken" else (200, False))
    assert "secret" not in response.text
    assert "internal_error" in capsys.readouterr().err
    assert "failed" in caplog.text
    assert ask(app, "POST", "/v1/echo", SAID).status == 200


@pytest.mark.parametrize("asked", ["maker/tiny", "tiny", None])
def test_the_model_has_its_name_and_the_end_of_it(asked: str | None) -> None:
    assert ask(make_app(), "POST", "/v1/echo", SAID | {"model": asked}).status == 200


def test_names_and_fields_that_are_let_pass() -> None:
    desk = Desk()
    app = make_app(desk, ignore_unknown=True, any_model_name=True)
    assert ask(app, "POST", "/v1/echo", SAID | {"model": "gpt-9", "colour": 1}).status == 200
    assert ask(make_app(desk), "POST", "/v1/echo", SAID | {"user": "me"}).status == 200
    assert len(desk.asked) == 2


def test_a_key_is_asked_for_but_of_health_and_taken_either_way() -> None:
    app = make_app(host="0.0.0.0", keys=("one", "two"))
    everywhere = {"host": "server.lan:8080"}
    for shown in ({"authorization": "Bearer two"}, {"authorization": "bearer  two "}, {"x_api_key": "two"}):
        assert ask(app, "POST", "/v1/echo", SAID, **everywhere, **shown).status == 200
    owners = {ask(app, "POST", "/v1/echo", SAID, x_api_key=key).json["owner"] for key in ("one", "two")}
    assert len(owners) == 2
    assert not owners & {"", "one", "two"}
    for shown in ({}, {"authorization": "Bearer"}, {"authorization": "Basic two"}, {"x_api_key": "TWO"}):
        refused = ask(app, "POST", "/v1/echo", SAID, **shown)
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.error["code"] == "invalid_api_key"
        assert ask(app, "GET", "/metrics", **shown).status == ask(app, "GET", "/openapi.json", **shown).status == 401
        assert ask(app, "GET", "/health", **shown).status == 200
    assert ask(app, "GET", "/nothing").status == 401  # not even what is there


def test_allowed_origins_alone_are_answered_for() -> None:
    app = make_app(cors_origins=("https://a.example",))
    theirs, other = {"origin": "https://a.example"}, {"origin": "https://b.example"}
    asks = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    before = ask(app, "OPTIONS", "/v1/echo", **theirs, **asks)
    assert (before.status, before.headers["access-control-allow-headers"]) == (204, "authorization")
    assert ask(app, "OPTIONS", "/v1/echo", **other, **asks).status == 403
    for response in (before, ask(app, "POST", "/v1/echo", SAID, **theirs), ask(app, "POST", "/v1/echo", {}, **theirs)):
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        assert response.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in ask(app, "POST", "/v1/echo", SAID, **other).headers
    assert "vary" not in ask(make_app(), "GET", "/health").headers
    own = ask(make_app(), "POST", "/v1/echo", SAID, origin="http://127.0.0.1:8080")
    assert own.status == 200


def test_health_is_the_engines() -> None:
    desk = Desk()
    app = make_app(desk)
    assert (ask(app, "GET", "/health").status, ask(app, "GET", "/health").json) == (
        200,
        {"status": "ok", "server": "afmoe-mlx"},
    )
    desk.dies()
    assert (ask(app, "GET", "/health").status, ask(app, "GET", "/health").json) == (
        503,
        {"status": "dead", "server": "afmoe-mlx"},
    )


def test_a_request_that_is_answered_counts_as_running() -> None:
    app, name = make_app(), "afmoe_mlx_requests_running"

    async def look() -> list[str]:
        asking = asyncio.create_task(asked(app, "POST", "/v1/echo", SAID | {"pause": 60}))
        await asyncio.sleep(0.01)
        during = (await asked(app, "GET", "/metrics")).text
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return [during, (await asked(app, "GET", "/metrics")).text]

    during, after = asyncio.run(look())
    assert f"\n{name} 1.0\n" in during
    assert f"\n{name} 0.0\n" in after
    assert 'afmoe_mlx_errors_total{code="stopped"} 1.0' in after


def test_metrics_count_what_was_asked_and_tell_the_engines_state() -> None:
    app = make_app()
    ask(app, "POST", "/v1/echo", SAID)
    ask(app, "POST", "/v1/echo", {})
    ask(app, "GET", "/made/up")
    told = dict(
        line.rsplit(" ", 1) for line in ask(app, "GET", "/metrics").text.splitlines() if not line.startswith("#")
    )
    assert all(name.startswith("afmoe_mlx_") for name in told)
    expected = {
        'requests_total{route="/v1/echo",status="200"}': 1,
        'requests_total{route="/v1/echo",status="400"}': 1,
        'requests_total{route="unknown",status="404"}': 1,
        'errors_total{code="invalid_value"}': 1,
        "prompt_tokens_total": 10,
        "cached_tokens_total": 4,
        "completion_tokens_total": 3,
        "time_to_first_token_seconds_sum": 0.5,
        "time_per_token_seconds_count": 1,
        "batch_rows": 2,
        "requests_waiting": 1,
        "cache_bytes": 100,
        "engine_restarts_total": 0,
        "up": 1,
    }
    assert {name: float(told[f"afmoe_mlx_{name}"]) for name in expected} == expected


@pytest.mark.parametrize("log_json", [True, False])
def test_the_log_has_a_line_a_request_without_what_was_said(log_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app(log_json=log_json, keys=("hidden",))
    response = ask(app, "POST", "/v1/echo", {"content": "hidden"}, x_api_key="hidden")
    ask(app, "POST", "/v1/hidden\n\x1b[2J", {"hidden": "hidden"}, x_api_key="hidden")
    ask(app, "POST", "/v1/echo", {"content": "hidden"}, x_api_key="hidden!")
    first, second, third = capsys.readouterr().err.splitlines()
    assert "hidden" not in first + second + third
    assert response.headers["x-request-id"] in first
    if log_json:
        told = json.loads(first)
        assert (told["route"], told["status"], told["reason"]) == ("/v1/echo", 200, "stop")
        assert (told["prompt_tokens"], told["cached_tokens"], told["completion_tokens"]) == (10, 4, 3)
        assert json.loads(second)["reason"] == "not_found"
        assert json.loads(third)["reason"] == "invalid_api_key"
    else:
        assert "/v1/echo 200 in 10 (4 known) out 3 first 0.50 s" in first


def test_what_another_sites_page_has_a_browser_ask_for_is_refused() -> None:
    app, theirs = make_app(), {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}
    for method, path in (("GET", "/health"), ("GET", "/metrics"), ("POST", "/v1/echo")):
        refused = ask(app, method, path, SAID, **theirs)
        assert (refused.status, refused.error["code"]) == (403, "origin_not_allowed")
    assert ask(app, "POST", "/v1/echo", SAID, sec_fetch_site="same-origin").status == 200
