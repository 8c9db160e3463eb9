"""The options of requests whose model may be on several hosts, or have adapters."""

from typing import Any

import typer

from ..options import AdapterPath, AdapterScale, HostsFile, Silence


class AdapterOptions:
    """They declare these fields themselves, each where --help is to list it."""

    adapter_path: AdapterPath
    adapter_scale: AdapterScale

    def check_adapters(self) -> None:
        """BadParameter for a scale of nothing."""
        if self.adapter_scale is not None and not self.adapter_path:
            raise typer.BadParameter("--adapter-scale needs --adapter-path")

    @property
    def adapters(self) -> dict[str, Any]:
        """The options of `load` for --adapter-path."""
        if not self.adapter_path:
            return {}
        scale = {} if self.adapter_scale is None else {"adapter_scale": self.adapter_scale}
        return {"adapter_path": self.adapter_path, **scale}


class LoadOptions(AdapterOptions):
    """They declare these fields themselves, too."""

    hosts: HostsFile
    silence: Silence

    def check_load(self) -> None:
        """BadParameter for options that do nothing without another, or that cannot be together."""
        self.check_adapters()
        if self.adapter_path and self.hosts is not None:
            raise typer.BadParameter("--adapter-path is for a model on one host: leave out --hosts")
        if self.silence is not None and self.hosts is None:
            raise typer.BadParameter("--silence needs --hosts")

    def on_hosts(self) -> dict[str, Any]:
        """The options of `load` for --hosts, with which a host that is lost ends the program with a line.

        That is then all that is said: what MLX itself would say on stderr is kept off it from here on.
        """
        if self.hosts is None:
            return {}
        from ...hosts.lost import EndProcess, hush_native

        hush_native()
        return {"hosts": self.hosts, "silence": self.silence, "on_lost": EndProcess()}
