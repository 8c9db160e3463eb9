"""What can be told of hosts before, or without, a model that is loaded on them: for `doctor` and `info`."""

import ipaddress
from collections.abc import Sequence
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..cache import KVQuantization
from ..errors import AfmoeError, HostError, is_link_trouble
from ..footprint import TYPICAL_SSD, ExpertsInMemory
from ..interrupts import begun
from .crew import Followers
from .hostfile import Host, Hosts, read_hosts
from .leader import measure
from .link import Link
from .orders import Facts
from .plan import Share
from .ring import free_port
from .start import Stored, hello, join, open_stored, share_out

# Seconds a hidden vector takes from one host to the next, where nobody has measured it: TCP over Thunderbolt.
TYPICAL_HOP = 3e-4
KINDS: tuple[Literal["hop", "sum"], ...] = ("hop", "sum")
# Seconds between two looks whether a host is lost.
LOOK_SECONDS = 0.2
# Seconds without a word; ssh gives up sooner.
SILENCE = 30.0


@dataclass(frozen=True)
class Examined:
    """A host, what it says of itself, and what is wrong with it, if anything."""

    host: Host
    facts: Facts | None
    problem: str | None


@dataclass(frozen=True)
class Examination:
    """Each follower, and the seconds of a hop and of a sum of 8 kB, once all are well."""

    hosts: Hosts
    followers: list[Examined]
    hop: float | None = None
    sum: float | None = None
    problem: str | None = None
    """Why the hosts cannot connect."""
    model_problem: str | None = None
    """Why nothing can be said of the model."""


def examine(path: str | Path, source: str | Path | None, name: str | None) -> Examination:
    """Look at the hosts of a file, and at what each has of a model, if one is given. HostError for the file."""
    hosts = read_hosts(path)
    stored, model_problem = None, None
    try:
        stored = None if source is None else open_stored(source, name, None, None, None, None)
    except AfmoeError as error:
        model_problem = str(error)
    followers = [_examined(host, hosts, stored) for host in hosts.all[1:]]
    problem = _problem_of_leader(hosts.all[0])
    if problem or any(each.problem for each in followers):
        return Examination(hosts, followers, problem=problem, model_problem=model_problem)
    crew = Followers(hosts.all[1:], silence=SILENCE, on_lost=_nothing)
    try:
        link = join(crew, hosts, hello(crew, hosts, None))
        crew.is_under_way = True
        hop, total = (_measured(crew, link, kind) for kind in KINDS)
        return Examination(hosts, followers, hop / len(hosts.all), total, model_problem=model_problem)
    except AfmoeError as error:
        problem = f"the hosts do not connect: {error}"
        return Examination(hosts, followers, problem=problem, model_problem=model_problem)
    finally:
        crew.end()


def _problem_of_leader(host: Host) -> str | None:
    try:
        free_port(host.ip)
    except HostError:
        return f"{host.ip} of {host.name}, the first host of the file, is no address of this machine: put its own first"
    return None


def _examined(host: Host, hosts: Hosts, stored: Stored | None) -> Examined:
    crew = Followers([host], silence=SILENCE, on_lost=_nothing)
    try:
        (facts,) = hello(crew, Hosts((hosts.all[0], host), hosts.backend), stored)
        return Examined(host, facts, None)
    except AfmoeError as error:
        return Examined(host, None, str(error))
    finally:
        crew.end()


def _measured(crew: Followers, link: Link, kind: Literal["hop", "sum"]) -> float:
    """Seconds of a hop or sum; HostError if a host is lost meanwhile, whatever MLX still waits for."""
    measuring = begun(lambda: measure(crew, link, kind))
    while True:
        try:
            return measuring.result(LOOK_SECONDS)
        except NotYetError:
            if crew.lost is not None:
                raise HostError(crew.lost) from None
        except RuntimeError as error:
            if not is_link_trouble(error):
                raise
            raise HostError(crew.reason() or str(error)) from None


def _nothing(_: str) -> None:
    """The error is raised where it is waited for."""


def planned(
    path: str | Path,
    source: str | Path,
    name: str | None,
    *,
    revision: str | None,
    context: int | None,
    kept: KVQuantization | None,
    experts_in_memory: ExpertsInMemory,
) -> tuple[list[Share], list[Facts]]:
    """Who would hold what of a model, whether it fits or not, and what each follower says of itself."""
    hosts = read_hosts(path)
    stored = open_stored(source, name, None, revision, context, kept, experts_in_memory)
    crew = Followers(hosts.all[1:], silence=SILENCE, on_lost=_nothing)
    try:
        facts = hello(crew, hosts, stored)
    finally:
        crew.end()
    return share_out(stored, hosts, facts, force=True), facts


def tokens_per_second(shares: Sequence[Share], bandwidths: Sequence[float], hop: float = TYPICAL_HOP) -> float:
    """What memory and hops allow at most: the hosts work one after the other.

    Experts that are read come from SSDs of an entry-level Mac's speed.
    """
    pairs = zip(shares, bandwidths, strict=True)
    reading = sum(share.footprint.seconds_per_token(bandwidth, TYPICAL_SSD) for share, bandwidth in pairs)
    return 1 / (reading + len(shares) * hop)


def link_of(host: Host) -> str:
    """What kind of network its address is of: loopback, link-local (as of Thunderbolt), private or public."""
    address = ipaddress.ip_address(host.ip)
    for kind in ("loopback", "link_local"):
        if getattr(address, f"is_{kind}"):
            return kind.replace("_", "-")
    return "public" if address.is_global else "private"
