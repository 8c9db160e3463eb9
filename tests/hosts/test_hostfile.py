"""A hosts file is MLX's, and nothing in it becomes an option or a command."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.errors import HostError
from afmoe_mlx.hosts.hostfile import Host, read_hosts
from afmoe_mlx.hosts.remote import command_for, remote_command

TWO = [{"ssh": "mac1", "ips": ["10.0.0.1"]}, {"ssh": "user@mac2.local", "ips": ["169.254.3.4"]}]


def read(tmp_path: Path, found: Any) -> Any:
    path = tmp_path / "hosts.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return read_hosts(path)


@pytest.mark.parametrize("wrap", [lambda hosts: hosts, lambda hosts: {"hosts": hosts, "envs": ["LD_PRELOAD=/x"]}])
def test_both_of_mlxs_forms_are_read(tmp_path: Path, wrap: Any) -> None:
    hosts = read(tmp_path, wrap(TWO))
    assert [(host.name, host.ip) for host in hosts.all] == [("mac1", "10.0.0.1"), ("user@mac2.local", "169.254.3.4")]
    assert hosts.backend == "ring"


def test_jaccl_needs_a_device_for_each(tmp_path: Path) -> None:
    hosts = [
        entry | {"rdma": devices} for entry, devices in zip(TWO, ([None, "rdma_en2"], ["rdma_en2", None]), strict=True)
    ]
    assert read(tmp_path, {"backend": "jaccl", "hosts": hosts}).backend == "jaccl"
    with pytest.raises(HostError, match="rdma"):
        read(tmp_path, {"backend": "jaccl", "hosts": TWO})


@pytest.mark.parametrize(
    "found",
    [
        "",
        "[" * 100_000,
        "{}",
        TWO[:1],
        {"hosts": 3},
        {"backend": "mpi", "hosts": TWO},
        [*TWO, 3],
        [*TWO, {"ips": ["10.0.0.3"]}],
        [*TWO, {"ssh": "-oProxyCommand=touch x", "ips": ["10.0.0.3"]}],
        [*TWO, {"ssh": "a b", "ips": ["10.0.0.3"]}],
        [*TWO, {"ssh": "mac3;reboot", "ips": ["10.0.0.3"]}],
        [*TWO, {"ssh": "mac3", "ips": ["mac3"]}],
        [*TWO, {"ssh": "mac3", "ips": ["fe80::1"]}],
        [*TWO, {"ssh": "mac3", "ips": "10.0.0.3"}],
        [*TWO, {"ssh": "mac3", "ips": ["10.0.0.3"], "rdma": ["../x"]}],
    ],
    ids=lambda found: str(found)[:40],
)
def test_what_is_no_hosts_file_is_refused_in_a_line(tmp_path: Path, found: Any) -> None:
    with pytest.raises(HostError) as caught:
        read(tmp_path, found)
    assert "\n" not in str(caught.value)


@given(name=st.text(max_size=20))
def test_a_name_is_never_an_option_nor_more_than_one_word(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "hosts.json"
    path.write_text(json.dumps([TWO[0], {"ssh": name, "ips": ["10.0.0.2"]}]))
    try:
        host = read_hosts(path).all[1]
    except HostError:
        return
    assert host.name == name
    assert shlex.split(shlex.quote(name)) == [name]
    assert not name.startswith("-")


def test_a_host_is_reached_by_ssh_without_a_shell_here_and_a_fixed_command_there() -> None:
    command = command_for(Host("mac2", "10.0.0.2"), 30)
    assert command[0] == "ssh"
    assert command[-3:] == ["--", "mac2", remote_command(30)]
    assert "BatchMode=yes" in command
    assert "mac2" not in remote_command(30)
    assert command_for(Host("127.0.0.1", "127.0.0.1"), 30)[1:] == ["-m", "afmoe_mlx", "follow", "--silence=30"]
