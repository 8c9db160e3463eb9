"""The requests of `info`, `bench` and `doctor`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from ..options import (
    AdapterPath,
    AdapterScale,
    AsJson,
    ExpertsInMemory,
    HostsFile,
    KVBits,
    Model,
    ModelArgument,
    PrefillStepSize,
    Revision,
    Silence,
)
from .loading import LoadOptions


@dataclass(frozen=True, kw_only=True)
class InfoRequest:
    """Say what a model needs, and where it fits, without downloading its weights."""

    model: ModelArgument
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of conversation to count; 32768 if not given, or the model's most."),
    ] = None
    kv_bits: KVBits = None
    experts_in_memory: ExpertsInMemory = None
    adapter_path: AdapterPath = None
    hosts: HostsFile = None
    revision: Revision = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        """BadParameter for options that cannot be together."""
        if self.adapter_path and self.hosts is not None:
            raise typer.BadParameter("--adapter-path is for a model on one host: leave out --hosts")


@dataclass(frozen=True, kw_only=True)
class BenchRequest(LoadOptions):
    """Measure a model's speed here, or that of a shape with random weights, before a download."""

    model: Model = None
    shape: Annotated[
        str | None, typer.Option(help="Random weights in the shape of trinity-nano, -mini, -large or lfm2-8b-a1b.")
    ] = None
    layers: Annotated[int | None, typer.Option(help="The first layers of --shape alone.")] = None
    bits: Annotated[int | None, typer.Option(help="Bits a weight of --shape, 4 by default; 16 is bfloat16.")] = None
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", help="Length of each prompt.")] = 512
    generation_tokens: Annotated[int, typer.Option("--generation-tokens", "-g", help="Tokens after it.")] = 128
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Prompts at a time.")] = 1
    num_trials: Annotated[int, typer.Option("--num-trials", "-n", help="Runs, of which the median counts.")] = 5
    prefill_step_size: PrefillStepSize = None
    experts_in_memory: ExpertsInMemory = None
    adapter_path: AdapterPath = None
    adapter_scale: AdapterScale = None
    hosts: HostsFile = None
    silence: Silence = None
    revision: Revision = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        """BadParameter for options that contradict each other, or do nothing without another."""
        if self.shape is None and not (self.layers is None and self.bits is None):
            raise typer.BadParameter("--layers and --bits need --shape")
        if self.shape is not None and not (self.model is None and self.revision is None):
            raise typer.BadParameter("choose --model or --shape, not both")
        if self.shape is not None and self.experts_in_memory is not None:
            raise typer.BadParameter("--experts-in-memory needs --model: a shape's random weights are in no file")
        if self.experts_in_memory is not None and self.batch_size > 1:
            raise typer.BadParameter("--experts-in-memory is for one sequence at a time: leave out --batch-size")
        self.check_load()
        if self.shape is not None and (self.hosts is not None or self.adapter_path):
            raise typer.BadParameter("--hosts and --adapter-path need --model: a shape's random weights are nowhere")


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """Look at this machine: device, memory, libraries, the Hub and its cache, and what to do about each problem."""

    self_test: Annotated[
        bool, typer.Option("--self-test", help="Check what the device computes, with tiny models; takes a minute.")
    ] = False
    hosts: HostsFile = None
    model: Annotated[str | None, typer.Option(help="What the hosts of --hosts are to have.")] = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        """BadParameter for options that do nothing without another."""
        if self.model is not None and self.hosts is None:
            raise typer.BadParameter("--model needs --hosts")
        if self.self_test and self.hosts is not None:
            raise typer.BadParameter("choose --self-test or --hosts, not both")
