"""What answers at a port is told apart: nothing, ours, something else."""

import socket
import threading
from contextlib import suppress

import pytest

from afmoe_mlx.server.http.probe import probe


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b'HTTP/1.1 200 OK\r\nx: 1\r\n\r\n{"status": "ok", "server": "afmoe-mlx"}', "ok"),
        (b'HTTP/1.1 503 No\r\nx: 1\r\n\r\n{"status": "dead", "server": "afmoe-mlx"}', "dead"),
        (b'HTTP/1.1 200 OK\r\nx: 1\r\n\r\n{"status": "ok"}', None),
        (b'HTTP/1.1 200 OK\r\nx: 1\r\n\r\n{"status": "\x1b[2J", "server": "afmoe-mlx"}', None),
        (b'HTTP/1.1 200 OK\r\nx: 1\r\n\r\n{"status": ["ok"], "server": "afmoe-mlx"}', None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", None),
        (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", None),
        (b"220 mail.example ESMTP\r\n", None),
        (b"", None),
    ],
)
def test_what_answers_is_told_apart(answer: bytes, status: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                client, _ = server.accept()
                client.recv(1000)
                client.sendall(answer)
                client.close()

        threading.Thread(target=serve, daemon=True).start()
        assert probe(server.getsockname()[1]) == (True, status)


def test_a_port_where_nothing_answers_is_free() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert probe(bound.getsockname()[1]) == (False, None)
