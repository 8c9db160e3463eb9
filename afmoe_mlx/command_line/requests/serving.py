"""The request of `serve`."""

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..options import (
    AdapterPath,
    AdapterScale,
    ChatTemplate,
    ChatTemplateConfig,
    Context,
    DiskCache,
    ExpertsInMemory,
    Force,
    HostsFile,
    KVBits,
    KVGroupSize,
    KVStart,
    Model,
    NoDiskCache,
    Preset,
    PromptCacheDir,
    Revision,
    Silence,
    byte_size,
)
from .answering import CacheOptions

# Where keys are expected that are not to be seen in the list of processes.
KEYS = "AFMOE_MLX_API_KEY"
PORT = 8080
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def duration(given: str | float) -> float:
    """A number of seconds, as in 10m, 1h, 30s or 2.5."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh]?)", str(given).lower())
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{given!r} is no time: expected seconds, or such as 10m")
    return float(found[1]) * SECONDS[found[2]]


def keys_of_environment() -> tuple[str, ...]:
    """Those in AFMOE_MLX_API_KEY."""
    named = os.environ.get(KEYS, "")
    return tuple(key.strip() for key in named.split(",")) if named else ()


def _time(words: str) -> Any:
    return typer.Option(parser=duration, metavar="TIME", help=words)


@dataclass(frozen=True, kw_only=True)
class ServeRequest(CacheOptions):
    """Answer programs over HTTP, by OpenAI's and Anthropic's interfaces; prints its address once it answers.

    Only this machine can ask, unless --host says otherwise, which needs a key.
    """

    model: Model = None
    preset: Preset = None
    """Whose options are among the others already."""
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0: all of this machine's.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at; 0: one that is free.")] = PORT
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help=f"A key that may ask; repeatable. Unseen by other users: {KEYS}, with commas."
        ),
    ] = None
    insecure: Annotated[bool, typer.Option("--insecure", help="Let others ask without a key.")] = False
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Let this site's pages ask; repeatable; * for all.")
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", "-m", min=1, help="Tokens of an answer, unless its request says; 4096 if not given."
        ),
    ] = None
    max_rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Answers written at once; 16 if not given.")
    ] = None
    max_queue: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Requests of a key that may wait; 64 if not given.")
    ] = None
    max_body: Annotated[
        Any | None, typer.Option(parser=byte_size, metavar="SIZE", help="A request's most; 8MiB if not given.")
    ] = None
    read_timeout: Annotated[Any | None, _time("Until a request is here whole; 30s if not given.")] = None
    idle_timeout: Annotated[Any | None, _time("That an unused connection is kept; 75s if not given.")] = None
    write_timeout: Annotated[Any | None, _time("That a client may not read its answer; 60s if not given.")] = None
    grace: Annotated[Any | None, _time("That answers may take to end when told to stop; 30s if not given.")] = None
    prefill_slice_ms: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How long a new prompt may hold up answers at a time; 250 if not given."),
    ] = None
    idle_unload: Annotated[Any | None, _time("Free the weights when unused for so long; never if not given.")] = None
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Let fields of requests pass that are not known.")
    ] = False
    any_model_name: Annotated[bool, typer.Option("--any-model-name", help="Answer whatever model a request names.")] = (
        False
    )
    open: Annotated[bool, typer.Option("--open", help="Open the page in the browser once it answers.")] = False
    no_page: Annotated[bool, typer.Option("--no-page", help="Answer programs alone: no page at /.")] = False
    log_json: Annotated[bool, typer.Option("--log-json", help="Log a JSON object for each request.")] = False
    chat_template: ChatTemplate = None
    chat_template_config: ChatTemplateConfig = None
    kv_bits: KVBits = None
    kv_group_size: KVGroupSize = None
    quantized_kv_start: KVStart = None
    prompt_cache_dir: PromptCacheDir = None
    disk_cache: DiskCache = False
    no_disk_cache: NoDiskCache = False
    context: Context = None
    experts_in_memory: ExpertsInMemory = None
    adapter_path: AdapterPath = None
    adapter_scale: AdapterScale = None
    hosts: HostsFile = None
    silence: Silence = None
    force: Force = False
    revision: Revision = None

    def __post_init__(self) -> None:
        """BadParameter for options that do nothing without another."""
        self.check_kv()
        self.check_load()
        if self.open and self.no_page:
            raise typer.BadParameter("--open opens the page, which --no-page leaves out: choose one")

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that may ask, of the command line and of the environment."""
        return (*(self.api_key or ()), *keys_of_environment())
