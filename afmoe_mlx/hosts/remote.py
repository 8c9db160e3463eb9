"""The command that starts a follower, here or by ssh."""

import shlex
import sys
from pathlib import Path

from .hostfile import Host

# Where installers put commands that a shell which is not a login shell does not look for.
PLACES = "$HOME/.local/bin:/opt/homebrew/bin:/usr/local/bin"
CONNECT_SECONDS = 10


def command_for(host: Host, silence: float) -> list[str]:
    """What starts a follower on a host. Nothing of the hosts file but the name is in it, and that is no option."""
    if host.is_here:
        return [sys.executable, "-m", "afmoe_mlx", "follow", f"--silence={silence:g}"]
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    return ["ssh", *options, "--", host.name, remote_command(silence)]


def remote_command(silence: float) -> str:
    """For the login shell of another host: this environment's command if it is there too, else the one on the path."""
    own = shlex.quote(str(Path(sys.executable).with_name("afmoe-mlx")))
    follow = f"follow --silence={silence:g}"
    script = f'PATH="$PATH:{PLACES}"; if [ -x {own} ]; then exec {own} {follow}; else exec afmoe-mlx {follow}; fi'
    return f"exec /bin/sh -c {shlex.quote(script)}"
