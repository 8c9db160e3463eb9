"""The server as a process: its address, its errors of one line, signals."""

import asyncio
import http.client
import json
import re
import signal
import socket
import time

import pytest

from afmoe_mlx.server.http.listener import Troubles
from helpers.command_line import run
from helpers.scripted import scripted_folder
from helpers.serving import Served, serve

ASKED = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 16000}
SECRET = "a-key-of-a-test"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that writes until its context is full."""
    return str(scripted_folder(tmp_path_factory.mktemp("endless") / "endless", ["on and on "], endless=True))


def connect(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answers(server: Served) -> bool:
    """Whether it can be connected to."""
    try:
        connect(server).close()
    except OSError:
        return False
    return True


def begin_stream(server: Served) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"content-type": "application/json", "authorization": f"Bearer {SECRET}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(ASKED), headers)
    response = connection.getresponse()
    assert response.status == 200
    response.read(100)
    return response


def test_an_error_of_the_event_loop_is_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    tell, loop = Troubles(), asyncio.new_event_loop()
    for error in [OSError("no file descriptors left")] * 3 + [ValueError()]:
        tell(loop, {"message": "no connection", "exception": error})
    loop.close()
    assert len(caplog.records) == 2


def test_a_server_from_its_address_to_its_end(endless: str) -> None:
    with serve(endless, "--grace", "0.2", environment={"AFMOE_MLX_API_KEY": f"other,{SECRET}"}) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        taken = run("serve", "--model", endless, "--port", str(server.port))
        assert (taken.code, taken.out, taken.err.count("\n")) == (1, "", 1)
        assert "address already in use" in taken.err
        running = begin_stream(server)
        server.process.send_signal(signal.SIGTERM)
        rest = running.read()
        assert rest.rstrip().endswith(b"data: [DONE]")  # cut short by the grace, and whole as a stream
        code, out, err = server.end()
    assert (code, out) == (0, "")
    assert err.count("/v1/chat/completions 200") == err.count("\n") == 1
    assert SECRET not in err
    assert "hello" not in err


def test_answers_are_finished_after_a_signal_and_a_second_one_is_not_waited_for(endless: str) -> None:
    with serve(endless, environment={"AFMOE_MLX_API_KEY": SECRET}) as server:
        running = begin_stream(server)
        server.process.send_signal(signal.SIGINT)
        while answers(server):
            time.sleep(0.02)
        assert running.read(100)
        server.process.send_signal(signal.SIGINT)
        assert server.end()[0] == -signal.SIGINT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "no.such.host.invalid"], "--insecure"),
        (["--host", "no.such.host.invalid", "--insecure"], "--host no.such.host.invalid"),
        (["--api-key", ""], "API key"),
        (["--cors-origin", "a.example"], "--cors-origin"),
        (["--max-body", "many"], "600MB"),
        (["--grace", "-1"], "no time"),
        (["--port", "70000"], "65535"),
        (["--kv-group-size", "64"], "--kv-bits"),
    ],
)
def test_what_cannot_be_served_is_one_line(options: list[str], words: str, model: str) -> None:
    result = run("serve", "--model", model, *options)
    assert result.code in (1, 2)
    assert (result.out, result.err.count("\n")) == ("", 1)
    assert words in result.err
