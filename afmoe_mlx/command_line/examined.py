"""What `doctor --hosts` says of the hosts of a file, and what to do about each problem."""

import platform
from typing import Any

from ..hosts.examine import Examination, Examined, link_of
from ..terminal import printable, size

# What macOS answers to a program that may not use the local network.
REFUSED = "No route to host"
PERMISSION = "on macOS the terminal needs System Settings > Privacy & Security > Local Network, on every Mac"


def section(found: Examination) -> dict[str, Any]:
    """For --json."""
    return {
        "backend": found.hosts.backend,
        "leader": {"name": found.hosts.all[0].name, "ip": found.hosts.all[0].ip, "link": link_of(found.hosts.all[0])},
        "followers": [_follower(each) for each in found.followers],
        "hop_seconds": found.hop,
        "sum_seconds": found.sum,
    }


def _follower(each: Examined) -> dict[str, Any]:
    facts = each.facts
    told = {"name": each.host.name, "ip": each.host.ip, "link": link_of(each.host), "problem": each.problem}
    if facts is None:
        return told
    return told | {
        "device": facts.device,
        "memory_bytes": facts.memory,
        "usable_bytes": facts.usable,
        "versions": {"afmoe-mlx": facts.version, "mlx": facts.mlx},
        "has_model": facts.identity is not None,
    }


def problems(found: Examination) -> list[str]:
    """Each with what to do."""
    lines = [_advised(each.problem) for each in found.followers if each.problem]
    if found.problem:
        lines.append(_advised(f"the hosts do not connect: {found.problem}"))
    public = [host.name for host in found.hosts.all if link_of(host) == "public"]
    if public:
        where = f"the addresses of {', '.join(map(printable, public))} are public"
        lines.append(f"{where}: what hosts send is neither encrypted nor authenticated, use a private link")
    return lines


def _advised(problem: str) -> str:
    text = printable(problem)
    if "Permission denied" in text:
        return f"{text}: let this user in by a key (ssh-copy-id), for nobody can type a password"
    if "command not found" in text or "afmoe-mlx: not found" in text or "status 127" in text:
        return f"{text}: install afmoe-mlx there, the same version"
    if REFUSED in text:
        return f"{text}: {PERMISSION}"
    return text


def lines(found: Examination) -> list[tuple[str, str]]:
    """For a person: a label and a line for each host, and for what is between them."""
    told = [("Hosts", f"{len(found.hosts.all)}, over {found.hosts.backend}")]
    for each in found.followers:
        facts = each.facts
        if facts is None:
            told.append(("", f"{printable(each.host.name)} ({link_of(each.host)}): see below"))
            continue
        usable = "" if facts.usable is None else f", {size(facts.usable)} for a model now"
        model = ", has the model" if facts.identity else ""
        told.append(
            ("", f"{printable(each.host.name)} ({link_of(each.host)}): {printable(facts.device)}{usable}{model}")
        )
    if found.hop is not None and found.sum is not None:
        told.append(("", f"a hop {found.hop * 1e6:.0f} µs, a sum {found.sum * 1e6:.0f} µs, of 8 kB"))
    if platform.mac_ver()[0]:
        told.append(("", PERMISSION))
    return told
