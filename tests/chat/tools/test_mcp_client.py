"""MCP servers in processes of their own, that misbehave; a real one is called in test_one_shot.py."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from afmoe_mlx.chat.tools.mcp_client import McpClient
from afmoe_mlx.chat.tools.server_file import ServerConfig
from helpers.mcp_server import TOOLS, misbehaving

pytestmark = pytest.mark.skipif(find_spec("mcp") is None, reason="needs the extra mcp")


@pytest.fixture(scope="module")
def client() -> Iterator[McpClient]:
    """Several servers, started once."""
    from mcp.client import stdio

    configs = [
        misbehaving("good", "garbage", env={"KEY": "v"}, cwd="/"),
        misbehaving("dies"),
        misbehaving("dies-early", "die"),
        misbehaving("lies", "lie"),
        ServerConfig("absent", "/no/such/program\x1b[2J"),
        ServerConfig("far", refusal="at an address"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "secret")
        patch.setattr(stdio, "PROCESS_TERMINATION_TIMEOUT", 0.1)  # seconds that each server is waited for
        with McpClient(configs, call_seconds=0.5) as client:
            client.wait()
            yield client


def test_each_server_that_does_not_start_has_its_trouble_in_a_line_and_the_others_are_there(client: McpClient) -> None:
    assert {name: server.trouble for name, server in client.servers.items()} == {
        "good": "",
        "dies": "",
        "dies-early": "it has ended (no key: set KEY)",
        "lies": "it answered what MCP does not have: tools.0.inputSchema: Field required",
        "absent": r"there is no /no/such/program\x1b[2J",
        "far": "at an address",
    }
    assert [tool.name for tool in client.servers["good"].tools] == list(TOOLS)  # over several pages


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("echo", '{"x": 1}'),
        ("fail", "it went wrong"),
        ("refuse", r"error: the server good gave no result: no tools/call\x1b[31m"),
        ("structured", '{"sun": true}'),
        ("noise", "ok"),
        ("get-odd name", "ok"),
        (
            "picture",
            "[image, image/png, 3 bytes: not shown]\n[audio, audio/wav, 3 bytes: not shown]\n"
            "[link to notes: file:///notes.txt]\ntext of a resource\n"
            "[file:///b.bin, application/x-b, 3 bytes: not shown]",
        ),
    ],
)
def test_a_result_is_its_text_and_what_is_no_text_is_named(client: McpClient, tool: str, text: str) -> None:
    found = client.call("good", tool, {"x": 1})
    assert (found.text, found.is_error) == (text, tool in ("fail", "refuse"))


def test_a_server_sees_its_own_variables_and_few_of_ours(client: McpClient) -> None:
    found = json.loads(client.call("good", "environment", {}).text)
    assert (found["env"]["KEY"], "HF_TOKEN" in found["env"], found["cwd"]) == ("v", False, "/")


def test_a_server_that_hangs_at_its_start_is_given_up(client: McpClient) -> None:
    with McpClient([misbehaving("hung", "hang"), misbehaving("mute", "mute")], start_seconds=0.4) as other:
        other.wait()
        for server in other.servers.values():
            assert server.trouble == "it did not answer within 0.4 s of its start"
        assert other.call("hung", "echo", {}).is_error


def test_a_server_that_dies_in_a_call_is_an_error_and_the_others_go_on(client: McpClient) -> None:
    assert client.call("dies", "die", {}).text == "error: the server dies gave no result: it has ended"
    after = client.call("dies", "echo", {})
    assert after.text == r"error: the server dies is not there: it has ended (last words\x1b[31m)"
    assert client.call("good", "echo", {}).text == "{}"


def test_a_call_that_hangs_is_given_up(client: McpClient) -> None:
    found = client.call("good", "silent", {})
    assert (found.text, found.is_error) == ("error: the server good did not answer within 0.5 s", True)


def test_ctrl_c_cancels_the_call_alone() -> None:
    with McpClient([misbehaving("one")]) as client:
        client.wait()
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            client.call("one", "silent", {})
        end = time.monotonic() + 10
        while client.call("one", "cancelled", {}).text != "1":
            assert time.monotonic() < end


def test_the_end_does_not_wait_for_a_server_to_start() -> None:
    with McpClient([misbehaving("hung", "hang")], start_seconds=60) as client:
        pass
    assert client.wait(0) is False
    assert not client._thread.is_alive()


def test_a_server_that_will_not_end_is_killed_with_what_it_started(client: McpClient) -> None:
    with McpClient([misbehaving("one", "stay")]) as other:
        other.wait()
        child = int(other.call("one", "spawn", {}).text)
    end = time.monotonic() + 5
    while alive(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_nothing_that_servers_write_is_on_our_terminal(client: McpClient, capfd: pytest.CaptureFixture[str]) -> None:
    client.call("good", "noise", {})
    assert capfd.readouterr() == ("", "")
