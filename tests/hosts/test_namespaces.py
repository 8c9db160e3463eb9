"""Two hosts with a network of their own between them, where the system lets a test make one."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.programs import benching
from helpers.tiny import tiny_folder

NAME = f"afmoe{os.getpid() % 100_000}"
SSH = f"""#!/bin/sh
while [ "$1" != "--" ]; do shift; done
exec ip netns exec {NAME} /bin/sh -c "$3"
"""
MAKE = (
    f"netns add {NAME}",
    f"link add {NAME}a type veth peer name {NAME}b netns {NAME}",
    f"addr add 10.231.77.1/30 dev {NAME}a",
    f"link set {NAME}a up",
    f"-n {NAME} addr add 10.231.77.2/30 dev {NAME}b",
    f"-n {NAME} link set {NAME}b up",
    f"-n {NAME} link set lo up",
)


def ip(arguments: str) -> bool:
    return subprocess.run(["ip", *arguments.split()], capture_output=True, check=False).returncode == 0


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("only root makes network namespaces")
    try:
        if not all(map(ip, MAKE)):
            pytest.skip("this system makes no network namespaces")
        path = tmp_path / "hosts.json"
        path.write_text(json.dumps([{"ssh": f"mac{i}", "ips": [f"10.231.77.{i}"]} for i in (1, 2)]))
        (tmp_path / "ssh").write_text(SSH)
        (tmp_path / "ssh").chmod(0o755)
        yield path
    finally:
        ip(f"link del {NAME}a")
        ip(f"netns del {NAME}")


def test_a_link_that_is_pulled_ends_all_with_a_line_that_names_a_host(tmp_path: Path, hosts: Path) -> None:
    folder = tiny_folder(tmp_path / "model", num_hidden_layers=6, max_position_embeddings=4096)
    with benching(folder, hosts, "--silence", 4) as (program, _):
        assert ip(f"link set {NAME}a down")
        _, said = program.communicate(timeout=15)
        assert program.returncode == 1
        assert [line for line in said.splitlines() if line.startswith("error: mac2 is lost: ")]
