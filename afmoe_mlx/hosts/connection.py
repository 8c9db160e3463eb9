"""`Connection`: this process's followers and the link to them, of which MLX allows one in a process's life."""

import atexit
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from ..errors import HostError
from .crew import Followers
from .hostfile import Hosts
from .leader import Leader
from .link import Link
from .lost import EndIfBlocked


@dataclass
class Connection:
    """Followers, and what has been loaded on them."""

    hosts: Hosts
    crew: Followers
    link: Link | None = None
    models: "count[int]" = field(default_factory=count)
    leaders: list["weakref.ref[Leader]"] = field(default_factory=list)

    def wait(self) -> None:
        """Wait for whatever is on its way."""
        for ref in self.leaders:
            if (leader := ref()) is not None:
                leader.wait()

    def wait_for_followers(self) -> None:
        """Wait for what they have sent here."""
        for ref in self.leaders:
            if (leader := ref()) is not None:
                leader.wait_for_followers()

    def close_at_exit(self) -> None:
        """Let the followers go, which takes a moment, and has an end: Ctrl-C would only leave a traceback."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.close()

    def close(self) -> None:
        """Let the followers go, once nothing is on its way from them: MLX would take their end for a fault."""
        try:
            self.wait()
        except (RuntimeError, HostError):
            self.crew.reason()  # one is lost, which is told first
        self.crew.end()


# MLX gives a process one group, however often it is asked: what is loaded later goes to the same followers.
_connections: list[Connection] = []


@contextmanager
def connected(hosts: Hosts, silence: float, on_lost: Callable[[str], None] | None) -> Iterator[Connection]:
    """The connection to some hosts, in whose block something is loaded, which may take its time.

    silence, on_lost: see `start.load_on_hosts`; those of the first time stand. HostError where this process is
    connected to others already. Followers that were started for nothing are ended.
    """
    if _connections and _connections[0].hosts != hosts:
        raise HostError("this process is connected to other hosts, and MLX connects once: start another process")
    connection = _connections[0] if _connections else _begun(hosts, silence, on_lost)
    connection.crew.is_under_way = False
    try:
        yield connection
    finally:
        if connection.link is None:
            connection.crew.kill()
        elif not _connections:
            _connections.append(connection)
            atexit.register(connection.close_at_exit)
    connection.crew.arrived = connection.wait_for_followers
    connection.crew.is_under_way = True


def _begun(hosts: Hosts, silence: float, on_lost: Callable[[str], None] | None) -> Connection:
    def wait() -> None:
        for connection in _connections:
            connection.wait()

    return Connection(hosts, Followers(hosts.all[1:], silence=silence, on_lost=on_lost or EndIfBlocked(wait)))
