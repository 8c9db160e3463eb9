"""By ssh itself: its client, and a server in this process that runs what it is told."""

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.programs import HERE, MAC2, command
from helpers.tiny import tiny_folder

asyncssh = pytest.importorskip("asyncssh")
CLIENT = shutil.which("ssh")
pytestmark = pytest.mark.skipif(CLIENT is None, reason="there is no ssh here")
CONFIG = """Host mac2
  HostName 127.0.0.1
  Port {port}
  User somebody
  IdentityFile {folder}/key
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking accept-new
"""


async def run(process: Any) -> None:
    """What a server does with a command: its shell's work, with its streams, ended with them."""
    shell = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", process.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    await process.redirect(stdin=shell.stdin, stdout=shell.stdout, stderr=shell.stderr)
    process.exit(await shell.wait())


async def listen(key: Any, allowed: Path) -> Any:
    options = {"server_host_keys": [key], "authorized_client_keys": str(allowed), "encoding": None}
    return await asyncssh.listen("127.0.0.1", 0, process_factory=run, **options)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Path]:
    """A hosts file whose second host is behind the server."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key")
    key.write_public_key(tmp_path / "key.pub")
    (tmp_path / "key").chmod(0o600)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    listening = asyncio.run_coroutine_threadsafe(listen(key, tmp_path / "key.pub"), loop).result(10)
    (tmp_path / "config").write_text(CONFIG.format(port=listening.get_port(), folder=tmp_path))
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec {CLIENT} -F {tmp_path}/config "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "hosts.json").write_text(json.dumps([HERE, MAC2]))
    yield tmp_path / "hosts.json"
    loop.call_soon_threadsafe(listening.close)


def test_a_follower_is_started_by_ssh_and_ends_with_it(hosts: Path) -> None:
    folder = tiny_folder(hosts.parent / "model", "afmoe", num_hidden_layers=3)
    ask = ("generate", "--model", folder, "--prompt", "hello", "--max-tokens", 5, "--temp", 0, "--json")
    told = [program.communicate(timeout=60) for program in (command(*ask), command(*ask, hosts=hosts))]
    alone, together = (json.loads(out or "{}") for out, _ in told)
    assert together.get("text") == alone["text"], told[1][1]
    assert "mac2" in told[1][1]


def test_what_ssh_says_is_told(hosts: Path) -> None:
    (hosts.parent / "key").unlink()
    _, said = command("generate", "--prompt", "hello", hosts=hosts).communicate(timeout=60)
    assert "\nerror: mac2 is lost: its process ended (status 255): " in said
    assert "Permission denied" in said
