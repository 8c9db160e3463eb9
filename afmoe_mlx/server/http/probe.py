"""What answers at a port of this machine: nothing, a server of ours, or something else."""

import http.client
import json
from typing import Literal, get_args

# What /health says beside the status.
NAME = "afmoe-mlx"
Status = Literal["ok", "unloaded", "dead"]


def probe(port: int, *, timeout: float = 1.0) -> tuple[bool, Status | None]:
    """Whether something answers at the port, and if it is a server of ours, the status that it tells."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.connect()
    except OSError:
        return False, None
    try:
        connection.request("GET", "/health")
        told = json.loads(connection.getresponse().read(1000))
        return True, told["status"] if told["server"] == NAME and told["status"] in get_args(Status) else None
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return True, None
    finally:
        connection.close()
