"""The server as a process: its address, slow clients, signals."""

import http.client
import json
import re
import signal
import socket
import time

import pytest

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


def test_a_server_from_its_address_to_its_end(endless: str) -> None:
    options = ("--read-timeout", "0.3", "--write-timeout", "0.5", "--grace", "0.5")
    with serve(endless, *options, environment={"AFMOE_MLX_API_KEY": f"other,{SECRET}"}) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        slow = connect(server)
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n")
        silent, idle = connect(server), connect(server)
        taken = run("serve", "--model", endless, "--port", str(server.port))
        assert (taken.code, taken.out, taken.err.count("\n")) == (1, "", 1)
        assert "address already in use" in taken.err
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        assert silent.recv(100).startswith(b"HTTP/1.1 408 ")
        idle.close()
        unread = connect(server)
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(ASKED).encode()
        head = (
            f"host: localhost\r\ncontent-type: application/json\r\nx-api-key: {SECRET}\r\ncontent-length: {len(body)}"
        )
        unread.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
        running = begin_stream(server)  # while another does not read
        server.process.send_signal(signal.SIGTERM)
        rest = running.read()
        assert rest.rstrip().endswith(b"data: [DONE]")  # cut short by the grace, and whole as a stream
        code, out, err = server.end()
    print(err)
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert SECRET not in err
    assert "hello" not in err
    assert err.count("/v1/chat/completions 200") == 2


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
        (["--max-body", "many"], "32MB"),
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
