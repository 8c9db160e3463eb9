"""Followers that fail at a stage of their life, as processes of their own: all end, with a line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afmoe_mlx.hosts.orders import Hello, Join, answers, to_line
from helpers.programs import command, is_running

# Stands in for ssh: a follower here, of which something is replaced.
SSH = """#!{python}
import os, signal
from afmoe_mlx.commands.follow import run
from afmoe_mlx.hosts import link, process
open({said!r}, "w").write(str(os.getpid()))
{fault}
run({silence})
"""
STOPS_AT_JOIN = "process.connect = lambda join: os.kill(os.getpid(), signal.SIGSTOP)"
SENDS_NOTHING = "link.GroupLink.send = lambda self, x: x * 1"
DIES_AT_PROBE = "process.take_part = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"


def failing(hosts: Path, fault: str, silence: float = 3) -> Path:
    said = hosts.parent / "pid"
    (hosts.parent / "ssh").write_text(SSH.format(python=sys.executable, fault=fault, silence=silence, said=str(said)))
    return said


def said_by(program: "subprocess.Popen[str]") -> tuple[str, str]:
    """All that a program writes till it ends, which it does in any case."""
    try:
        return program.communicate(timeout=40)
    finally:
        program.kill()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (STOPS_AT_JOIN, "error: mac2 cannot be reached: the hosts cannot connect over ring (not within 4 s)"),
        (SENDS_NOTHING, "error: mac2 is lost: what it sent 3 s ago has not arrived"),
    ],
    ids=["stops while all connect", "sends nothing"],
)
def test_the_wait_for_another_host_has_an_end(folder: Path, hosts: Path, fault: str, expected: str) -> None:
    said = failing(hosts, fault)
    silence = 60 if fault == STOPS_AT_JOIN else 3
    program = command("generate", "--model", folder, "--prompt", "x", "--silence", silence, hosts=hosts)
    _, told = said_by(program)
    assert program.returncode == 1
    assert told.splitlines()[-1].startswith(expected)
    assert "Traceback" not in told
    assert not is_running(int(said.read_text()))


def test_ctrl_c_ends_the_wait_for_a_connection(folder: Path, hosts: Path) -> None:
    said = failing(hosts, f"process.connect = lambda join: open({str(hosts) + '-'!r}, 'w') and signal.pause()", 30)
    program = command("generate", "--model", folder, "--prompt", "x", hosts=hosts)
    while not Path(f"{hosts}-").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    _, told = said_by(program)
    assert program.returncode == 130
    assert "Traceback" not in told
    assert not is_running(int(said.read_text()))


def test_doctor_tells_of_a_host_that_is_lost_while_it_measures(hosts: Path) -> None:
    failing(hosts, DIES_AT_PROBE, 30)
    told = "".join(said_by(command("doctor", hosts=hosts)))
    assert "mac2 is lost: its process ended (signal 9)" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("rank", [0, 1])
def test_a_follower_without_a_leader_does_not_wait_for_a_connection(
    follower: "subprocess.Popen[bytes]",
    rank: int,
) -> None:
    assert follower.stdin is not None
    assert follower.stdout is not None
    follower.stdin.write(to_line(Hello(None, None, "127.0.0.1")).encode())
    follower.stdin.flush()
    port = answers().read(follower.stdout.readline().decode()).port  # type: ignore[union-attr]
    addresses = [f"127.0.0.1:{port}", "127.0.0.1:1"]
    follower.stdin.write(to_line(Join(rank, "ring", tuple(addresses if rank == 0 else reversed(addresses)))).encode())
    follower.stdin.flush()
    time.sleep(0.3)
    follower.stdin.close()
    assert follower.wait(timeout=15) != os.EX_OK or rank == 0
