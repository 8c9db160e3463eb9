"""How a process joins the others: MLX takes it from environment variables and files that they name."""

import errno
import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from ..errors import HostError
from .link import GroupLink, Link
from .orders import Join, Probe

# Seconds that all hosts have to connect, which those that live do in a fraction of one.
CONNECTING = {"ring": 4.0, "jaccl": 20.0}


def free_port(ip: str) -> int:
    """A port of this host that nothing listens at; HostError if the address is none of its own."""
    try:
        with socket.socket() as listening:
            listening.bind((ip, 0))
            port: int = listening.getsockname()[1]
            return port
    except OSError as error:
        raise HostError(f"cannot listen at {ip} ({error.strerror}): expected an address of this host") from None


def connect(join: Join) -> Link:
    """The link to the others, once all have joined; HostError if they do not.

    The variables are those of `mlx.launch`; the file that they name is a pipe, of which nothing can be left.
    """
    is_ring = join.backend == "ring"
    text = json.dumps([[address] for address in join.addresses]) if is_ring else join.devices or ""
    reading, writing = os.pipe()
    os.write(writing, text.encode())  # less than a pipe holds: messages are bounded
    os.close(writing)
    environment = {"MLX_RANK": str(join.rank)}
    environment["MLX_HOSTFILE" if is_ring else "MLX_IBV_DEVICES"] = f"/dev/fd/{reading}"
    if not is_ring:
        environment["MLX_JACCL_COORDINATOR"] = join.addresses[0]
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with _limited(CONNECTING[join.backend]):
            return GroupLink(join.backend)
    except RuntimeError as error:
        found = " ".join(str(error).split())
        if f"(error: {errno.EINTR})" in found:
            found = f"not within {CONNECTING[join.backend]:g} s"
        raise HostError(f"the hosts cannot connect over {join.backend} ({found}): see afmoe-mlx doctor") from None
    finally:
        os.close(reading)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """In which MLX waits for other hosts, for as long as one is missing, and no thread of Python runs.

    In the main thread a signal ends the wait for a connection, an alarm as Ctrl-C. Elsewhere, or where MLX is still
    trying half a second later, the process is ended.
    """
    is_main = threading.current_thread() is threading.main_thread()
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds + 0.5, exit=True, file=nowhere)
        handler = signal.signal(signal.SIGALRM, lambda *_: None) if is_main else None
        if is_main:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if is_main:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, handler)


def take_part(link: Link, probe: Probe) -> float:
    """Do what a probe says, on all hosts at once: the seconds of a round, of those after the first few."""
    x = mx.zeros((probe.size,))
    seconds = 0.0
    for i in range(probe.rounds + WARM_UP):
        if i == WARM_UP:
            seconds = time.perf_counter()
        if probe.kind == "sum":
            mx.eval(link.sum(x))
        elif link.rank == 0:
            mx.async_eval(link.send(x))
            mx.eval(link.receive(x.shape, x.dtype))
        else:
            mx.eval(link.send(link.receive(x.shape, x.dtype)))
    return (time.perf_counter() - seconds) / max(probe.rounds, 1)


# Rounds that are not counted.
WARM_UP = 5
