"""`read_hosts`: the hosts of an MLX hostfile, which `mlx.distributed_config` writes, as data that is checked."""

import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HostError
from .link import Backend

# What ssh takes for a destination, and nothing that it could take for an option or a shell for a command.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:%-]{0,254}")
DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HERE = ("localhost", "127.0.0.1")
LARGEST_FILE = 1 << 20
EXPECTED = "expected what mlx.distributed_config writes"


@dataclass(frozen=True)
class Host:
    """A machine that takes part."""

    name: str
    """By which ssh reaches it."""
    ip: str
    """At which the others reach it."""
    rdma: tuple[Any, ...] = ()
    """RDMA devices that lead to each of the hosts, for jaccl."""

    @property
    def is_here(self) -> bool:
        """Whether it is started directly, without ssh."""
        return self.name in HERE


@dataclass(frozen=True)
class Hosts:
    """All of them, the first being this machine, and how they are connected."""

    all: tuple[Host, ...]
    backend: Backend


def read_hosts(path: str | Path) -> Hosts:
    """The hosts of a file: a list of {"ssh", "ips", "rdma"}, or an object that has it as "hosts".

    "envs" is not taken. The backend is "jaccl" where the file says so, else "ring". HostError for what makes no sense.
    """
    path = Path(path).expanduser()
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise HostError(f"{path}: {path.stat().st_size:,} bytes: {EXPECTED}")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HostError(f"{path}: {error.strerror or error}: {EXPECTED}") from None
    except (ValueError, RecursionError) as error:
        raise HostError(f"{path}: not valid JSON ({error}): {EXPECTED}") from None
    backend = raw.get("backend") or "ring" if isinstance(raw, dict) else "ring"
    entries = raw.get("hosts") if isinstance(raw, dict) else raw
    if backend not in ("ring", "jaccl", "any", "jaccl-ring"):
        raise HostError(f"{path}: backend is {backend!r}: expected ring or jaccl")
    if not isinstance(entries, list) or len(entries) < 2:
        raise HostError(f"{path}: {len(entries) if isinstance(entries, list) else 'no'} hosts: expected 2 or more")
    hosts = tuple(_host(f"{path}: host {number}", entry, len(entries)) for number, entry in enumerate(entries, 1))
    is_jaccl = backend.startswith("jaccl")
    if is_jaccl and not all(host.rdma for host in hosts):
        raise HostError(f"{path}: backend is jaccl and a host has no rdma devices: {EXPECTED}")
    return Hosts(hosts, "jaccl" if is_jaccl else "ring")


def _host(where: str, entry: Any, count: int) -> Host:
    if not isinstance(entry, dict):
        raise HostError(f"{where} is {type(entry).__name__}: expected an object with ssh and ips")
    name, ips, rdma = entry.get("ssh"), entry.get("ips") or [], entry.get("rdma") or []
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise HostError(f"{where}: ssh is {name!r}: expected a host name, or user@name")
    if not isinstance(ips, list) or not all(isinstance(ip, str) for ip in ips):
        raise HostError(f"{where}: ips is {ips!r}: expected a list of addresses")
    if not ips:
        ips = ["127.0.0.1" if name in HERE else name.rpartition("@")[2]]
    try:
        ip = str(ipaddress.IPv4Address(ips[0]))
    except ValueError:
        raise HostError(f"{where}: ips has {ips[0]!r}: expected an IPv4 address, as MLX connects to") from None
    if not isinstance(rdma, list) or (rdma and len(rdma) != count) or not all(map(_is_device, rdma)):
        raise HostError(f"{where}: rdma is {rdma!r}: expected the name of a device, or null, for each host")
    return Host(name, ip, tuple(rdma))


def _is_device(found: Any) -> bool:
    if isinstance(found, list):
        return all(isinstance(name, str) and DEVICE.fullmatch(name) for name in found)
    return found is None or (isinstance(found, str) and bool(DEVICE.fullmatch(found)))
