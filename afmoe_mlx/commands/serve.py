"""`afmoe-mlx serve`: one model over HTTP; its address on stdout once it answers, all else on stderr."""

from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ..api import load
from ..command_line.browser import open_page
from ..command_line.experts import tell_experts
from ..command_line.generation_config import tell_unused_keys
from ..command_line.hosts import tell_hosts
from ..command_line.kv_bits import tell_kv_bits
from ..command_line.prompt_cache import disk_directory
from ..command_line.requests.answering import or_demo
from ..command_line.requests.serving import ServeRequest
from ..command_line.self_test import suggest_self_test
from ..command_line.template import read_template, template_variables
from ..interrupts import begun
from ..models import CausalLM
from ..server.http.address import bind, url
from ..server.http.settings import Settings
from ..terminal import note, write
from ..tokenizer import Tokenizer

# Of the service; where the command line says nothing, its own defaults stand, as those of `Settings` do.
LIMITS = ("max_rows", "max_queue", "max_tokens", "idle_unload")


def run(request: ServeRequest) -> int:
    """Serve until a signal to stop; the exit status."""
    settings, options, template = _settings(request), _options(request), read_template(request.chat_template)
    directory = disk_directory(request.prompt_cache_dir, wanted=request.wants_disk_cache)
    listening = bind(settings)
    name = or_demo(request.model)
    # on several hosts in this thread, where a signal ends the wait for one that is missing
    loading = begun(partial(_load, request, name)) if request.hosts is None else None
    from ..server.engine.service import ModelService, make_store
    from ..server.http.app import App  # meanwhile
    from ..server.http.listener import listen
    from ..server.http.log import log_to_stderr
    from ..server.page.page import read_page
    from ..server.protocols import ENDPOINTS

    model, tokenizer = _load(request, name) if loading is None else loading.result()
    tell_kv_bits(model)
    tell_experts(model)
    tell_hosts(model)
    if not model.takes_batches:
        note("One request is answered at a time, the others wait", dim=True)
    tell_unused_keys(tokenizer)
    suggest_self_test(name)
    tokenizer = tokenizer if template is None else tokenizer.with_chat_template(template)
    service = ModelService(
        model,
        tokenizer,
        name=served_name(name),
        make_store=partial(make_store, directory=directory),
        load=lambda: _load(request, name)[0],
        **options,
    )
    del loading, model  # the service alone holds the weights, which it may let go of
    log_to_stderr()
    app = App(service, ENDPOINTS, settings, page={} if request.no_page else read_page())

    def ready() -> None:
        write(f"{url(listening)}\n")
        if request.open:
            open_page(url(listening))

    listen(app, service, listening, settings, ready=ready)
    return 0


def _settings(request: ServeRequest) -> Settings:
    names = [field.name for field in fields(Settings) if field.name != "cors_origins"]
    return Settings(cors_origins=tuple(request.cors_origin or ()), **_given(request, names))


def _options(request: ServeRequest) -> dict[str, Any]:
    """Those of the service. InputError for what cannot be read."""
    found = _given(request, LIMITS) | {"template_variables": template_variables(request.chat_template_config)}
    if request.prefill_slice_ms is not None:
        found["prefill_slice"] = request.prefill_slice_ms / 1000
    return found


def _load(request: ServeRequest, name: str) -> tuple[CausalLM, Tokenizer]:
    return load(
        name,
        revision=request.revision,
        context=request.context,
        kv_quantization=request.kv.quantization,
        experts_in_memory=request.experts_in_memory,
        **request.adapters,
        **request.on_hosts(),
        force=request.force,
    )


def served_name(model: str) -> str:
    """What requests call a model: a folder by its own name, any other as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _given(request: ServeRequest, names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(request, name)) is not None}
