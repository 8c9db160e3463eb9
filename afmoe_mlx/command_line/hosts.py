"""`--hosts`: the options of `load`, and what is said of who holds what."""

from typing import TYPE_CHECKING, Any

import typer

from ..terminal import note
from .options import HostsFile, Silence

if TYPE_CHECKING:
    from ..models import CausalLM


class HostsOptions:
    """The options of commands whose model may be on several hosts."""

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
        from ..hosts.lost import EndProcess, hush_native

        hush_native()
        return {"hosts": self.hosts, "silence": self.silence, "on_lost": EndProcess()}


def tell_hosts(model: "CausalLM") -> None:
    """Say which host has which layers of a model that is on several."""
    if model.beyond is not None:
        shares = ", ".join(f"{name} {len(part)}" for name, part in model.beyond.parts)
        note(f"Layers: {shares}, of {model.config.num_hidden_layers}", dim=True)
