"""Programs on several hosts, as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}
# One that is reached by ssh, for which a script stands in.
MAC2 = {"ssh": "mac2", "ips": ["127.0.0.1"]}
SSH = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
while [ "$1" != "--" ]; do shift; done
[ "$2" = mac2 ] || exit 255
exec /bin/sh -c "$3"
"""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def command(*arguments: object, hosts: Path | None = None, home: Path | None = None) -> subprocess.Popen[str]:
    own = () if hosts is None else ("--hosts", hosts)
    path = os.environ["PATH"] if hosts is None else f"{hosts.parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "afmoe_mlx", *map(str, (*arguments, *own))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_THREAD | {"PATH": path} | ({} if home is None else {"HOME": str(home)}),
    )


def children(process: int) -> list[int]:
    """All below a process."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    own = [int(pid) for pid, parent, state in rows if int(parent) == process and not state.startswith("Z")]
    return [*own, *(pid for child in own for pid in children(child))]


def is_running(process: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) and not found.stdout.startswith("Z")


@contextmanager
def benching(folder: Path, hosts: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program in the midst of its work, and its followers, none of which may be left."""
    trials = ("-n", 100_000, "-p", 32, "-g", 32)
    program = command("bench", "--model", folder, *trials, *arguments, hosts=hosts)
    followers: list[int] = []
    said: list[str] = []
    assert program.stderr is not None
    try:
        while not (line := program.stderr.readline()).startswith("Trial"):
            said.append(line)
            assert line, said
        followers = children(program.pid)
        assert followers
        yield program, followers
        until = time.monotonic() + 10
        while any(map(is_running, followers)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not [pid for pid in followers if is_running(pid)]
    finally:
        program.kill()
        for pid in followers:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        program.communicate()
