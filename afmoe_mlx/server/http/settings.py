"""`Settings`: what whoever runs the server has chosen; a listener that others can reach needs a key."""

import ipaddress
import re
from dataclasses import dataclass

from ...errors import InputError

# What a header can hold, and no blank that a client would trim.
KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Times are in seconds. InputError for what contradicts itself or would let strangers in."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: one that is free."""
    keys: tuple[str, ...] = ()
    """Of which each client has to show one; none: nobody is asked for one."""
    insecure: bool = False
    """Listen where others may come from, without a key."""
    cors_origins: tuple[str, ...] = ()
    """Whose pages a browser may let ask: "https://a.example", or "*" for all."""
    max_body: int = 8 << 20
    """Bytes of a request, at most."""
    read_timeout: float = 30.0
    """Until all of a request is here."""
    idle_timeout: float = 75.0
    """That a connection is kept without a request."""
    write_timeout: float = 60.0
    """That a client may take to read what waits for it."""
    grace: float = 30.0
    """That answers may take to finish once the server is told to stop."""
    log_json: bool = False
    ignore_unknown: bool = False
    """Let fields of requests pass that are not known."""
    any_model_name: bool = False
    """Answer whatever model a request names."""

    def __post_init__(self) -> None:
        if not all(KEY.fullmatch(key) for key in self.keys):
            raise InputError("an API key is empty or has blanks or non-ASCII characters: expected letters and digits")
        if not (self.is_local or self.keys or self.insecure):
            raise InputError(
                f"--host {self.host} can be reached by others: set AFMOE_MLX_API_KEY, or say --insecure to let everyone"
                " ask"
            )
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise InputError(f"--cors-origin {origin}: expected * or an origin, such as https://a.example")

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address, [::1] also in brackets, is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
