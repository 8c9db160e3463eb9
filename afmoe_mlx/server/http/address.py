"""The address that is listened at: taken before a model is loaded, opened once it is."""

import socket

from ...errors import InputError
from .settings import Settings


def bind(settings: Settings) -> socket.socket:
    """A socket at the chosen address, to which nobody can connect yet; InputError if it cannot be had."""
    try:
        places = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = places[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise taken(settings, error) from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise taken(settings, error) from None
    return found


def taken(settings: Settings, error: OSError) -> InputError:
    """What a user is told of an address that cannot be listened at."""
    words = (error.strerror or str(error)).lower()
    return InputError(f"--host {settings.host} --port {settings.port}: {words}: choose another; --port 0: a free one")


def url(listening: socket.socket) -> str:
    """Where a client finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
