"""Real processes: what they write is what one writes, and none outlives the others."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from afmoe_mlx.hosts.orders import Hello, NewCache, answers, to_line
from helpers.command_line import run
from helpers.programs import SSH, benching, command


def test_two_processes_write_what_one_does(folder: Path, hosts: Path) -> None:
    ask = ("generate", "--model", folder, "--prompt", "hello", "--max-tokens", 20, "--temp", 0.8, "--seed", 3, "--json")
    out, told = command(*ask, hosts=hosts).communicate(timeout=60)
    assert json.loads(out)["text"] == json.loads(run(*map(str, ask)).out)["text"]
    assert "Layers: 127.0.0.1" in told
    assert (
        (hosts.parent / "calls").read_text().startswith("-T -o BatchMode=yes -o ConnectTimeout=10 -- mac2 exec /bin/sh")
    )


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=lambda fault: fault.name)
def test_a_follower_that_is_lost_ends_all_with_a_line_that_names_it(folder: Path, hosts: Path, fault: int) -> None:
    with benching(folder, hosts, "--silence", 4) as (program, followers):
        for pid in followers:
            os.kill(pid, fault)
        _, said = program.communicate(timeout=10)
        assert program.returncode == 1
        last = [line for line in said.splitlines() if not line.startswith("Trial")]
        assert len(last) == 1
        assert last[0].startswith("error: mac2 is lost: ")


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda fault: fault.name)
def test_followers_end_with_their_leader(folder: Path, hosts: Path, fault: int) -> None:
    with benching(folder, hosts) as (program, _):
        program.send_signal(fault)
        program.wait(timeout=10)


def test_another_model_is_named_before_anything_is_loaded(folder: Path, hosts: Path) -> None:
    homes = [hosts.parent / name for name in ("a", "b")]
    for home in homes:
        shutil.copytree(folder, home / "model")
    weights = next(homes[1].rglob("*.safetensors"))
    changed = bytearray(weights.read_bytes())
    changed[-8] ^= 1
    weights.write_bytes(changed)
    (hosts.parent / "ssh").write_text(SSH.replace("exec", f"HOME={homes[1]} exec"))
    program = command("generate", "--model", "~/model", "--prompt", "x", hosts=hosts, home=homes[0])
    _, said = program.communicate(timeout=60)
    assert program.returncode == 1
    assert said == "error: mac2 has another model as ~/model: copy this machine's there, or remove what it has\n"


def test_a_follower_says_what_it_is_and_ends_with_its_input(follower: subprocess.Popen[bytes]) -> None:
    out, _ = follower.communicate(to_line(Hello("demo", None, "127.0.0.1")).encode(), timeout=20)
    assert follower.returncode == 0
    facts = answers().read(out.decode().splitlines()[0]) if out else None
    assert facts is None or facts.do == "facts"  # its input may have ended first


@pytest.mark.parametrize("line", [to_line(NewCache(1)).encode(), b"x" * 100_000 + b"\n"], ids=len)
def test_an_order_that_makes_no_sense_ends_it_with_a_line(follower: subprocess.Popen[bytes], line: bytes) -> None:
    assert follower.stdin is not None
    assert follower.stdout is not None
    follower.stdin.write(line)
    follower.stdin.flush()
    found = answers().read(follower.stdout.readline().decode())
    assert found.do == "failed"
    assert follower.wait(timeout=20) == 1
