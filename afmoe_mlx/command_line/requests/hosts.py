"""The options of requests whose model may be on several hosts."""

from typing import Any

import typer

from ..options import HostsFile, Silence


class HostsOptions:
    """They declare these fields themselves, each where --help is to list it."""

    hosts: HostsFile
    silence: Silence

    def check_hosts(self) -> None:
        """BadParameter for --silence alone."""
        if self.silence is not None and self.hosts is None:
            raise typer.BadParameter("--silence needs --hosts")

    @property
    def on_hosts(self) -> dict[str, Any]:
        """The options of `load`. A host that is lost ends the program with a line, which is then all that is said."""
        if self.hosts is None:
            return {}
        from ...hosts.lost import EndProcess, hush_native

        hush_native()
        return {"hosts": self.hosts, "silence": self.silence, "on_lost": EndProcess()}
