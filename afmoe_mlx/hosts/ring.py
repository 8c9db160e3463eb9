"""How a process joins the others: MLX takes it from environment variables and files that they name."""

import json
import os
import socket
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from ..errors import HostError
from .link import GroupLink, Link
from .orders import Join, Probe


def free_port(ip: str) -> int:
    """A port of this host that nothing listens at; HostError if the address is none of its own."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as listening:
            listening.bind((ip, 0))
            port: int = listening.getsockname()[1]
            return port
    except OSError as error:
        raise HostError(f"cannot listen at {ip} ({error.strerror}): expected an address of this host") from None


def connect(join: Join) -> Link:
    """The link to the others, once all have joined; HostError if they do not.

    The variables are those of `mlx.launch`; the files hold no secret, and are gone when it returns.
    """
    with tempfile.TemporaryDirectory(prefix="afmoe-mlx-") as folder:
        file = Path(folder, "hosts.json")
        environment = {"MLX_RANK": str(join.rank)}
        if join.backend == "ring":
            file.write_text(json.dumps([[address] for address in join.addresses]))
            environment["MLX_HOSTFILE"] = str(file)
        else:
            file.write_text(join.devices or "")
            environment["MLX_IBV_DEVICES"] = str(file)
            environment["MLX_JACCL_COORDINATOR"] = join.addresses[0]
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            return GroupLink(join.backend)
        except RuntimeError as error:
            found = " ".join(str(error).split())
            raise HostError(f"the hosts cannot connect over {join.backend} ({found}): see afmoe-mlx doctor") from None
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


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
