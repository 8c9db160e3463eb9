"""What `doctor --hosts` says of the hosts of a file, and what to do about each problem."""

import platform
from typing import Any

from ..hosts.advice import PERMISSION, advised
from ..hosts.examine import Examination, Examined, link_of
from ..terminal import printable, size


def section(found: Examination) -> dict[str, Any]:
    """For --json."""
    leader = found.hosts.all[0]
    return {
        "backend": found.hosts.backend,
        "leader": {"name": leader.name, "ip": leader.ip, "link": link_of(leader)},
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
    lines = [printable(each.problem) for each in found.followers if each.problem]
    if found.problem:
        lines.append(printable(advised(found.problem)))
    if found.model_problem:
        lines.append(printable(f"what the hosts have of the model is not looked at: {found.model_problem}"))
    public = [host.name for host in found.hosts.all if link_of(host) == "public"]
    if public:
        where = f"the addresses of {', '.join(map(printable, public))} are public"
        lines.append(f"{where}: what hosts send is neither encrypted nor authenticated, use a private link")
    return lines


def lines(found: Examination) -> list[tuple[str, str]]:
    """For a person: a label and a line for each host, and for what is between them."""
    leader = found.hosts.all[0]
    told = [("Hosts", f"{len(found.hosts.all)}, over {found.hosts.backend}")]
    told.append(("", f"{printable(leader.name)} ({link_of(leader)}): leads, which this machine must be"))
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
