"""`afmoe-mlx serve`: one model over HTTP; its address on stdout once it answers, all else on stderr."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api import load
from ..cache import PrefixStore
from ..command_line.kv_bits import tell_kv_bits
from ..command_line.prompt_cache import disk_directory
from ..command_line.requests.answering import or_demo
from ..command_line.requests.serving import ServeRequest
from ..command_line.template import read_template, template_variables
from ..interrupts import begun
from ..models import CausalLM
from ..server.address import bind, url
from ..server.endpoint import Options
from ..server.settings import Settings
from ..terminal import write
from ..tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..server.service import ModelService

# Options with a default of their own elsewhere, which stands where the command line says nothing.
SETTINGS = ("max_body", "read_timeout", "idle_timeout", "write_timeout", "grace")
LIMITS = ("max_rows", "max_tokens")


def run(request: ServeRequest) -> int:
    """Serve until a signal to stop; the exit status."""
    settings = _settings(request)
    listening = bind(settings)
    name = or_demo(request.model)
    template, variables = read_template(request.chat_template), template_variables(request.chat_template_config)
    loading = begun(partial(_load, name, request))
    from ..server.app import App  # meanwhile
    from ..server.listener import listen
    from ..server.log import log_to_stderr
    from ..server.protocols import ENDPOINTS

    model, tokenizer = loading.result()
    tell_kv_bits(model)
    tokenizer = tokenizer if template is None else tokenizer.with_chat_template(template)
    log_to_stderr()
    service = _service(name, model, tokenizer, variables, request)
    app = App(service, ENDPOINTS, settings)
    listen(app, service, listening, settings, ready=lambda: write(f"{url(listening)}\n"))
    return 0


def _settings(request: ServeRequest) -> Settings:
    return Settings(
        host=request.host,
        port=request.port,
        keys=request.keys,
        insecure=request.insecure,
        cors_origins=tuple(request.cors_origin or ()),
        log_json=request.log_json,
        options=Options(ignore_unknown=request.ignore_unknown, any_model_name=request.any_model_name),
        **_given(request, SETTINGS),
    )


def _load(name: str, request: ServeRequest) -> tuple[CausalLM, Tokenizer]:
    return load(
        name,
        revision=request.revision,
        context=request.context,
        kv_quantization=request.kv.quantization,
        force=request.force,
    )


def _service(
    name: str, model: CausalLM, tokenizer: Tokenizer, variables: Mapping[str, Any], request: ServeRequest
) -> "ModelService":
    from ..server.service import ModelService

    directory = disk_directory(request.prompt_cache_dir, wanted=request.wants_disk_cache)
    return ModelService(
        model,
        tokenizer,
        name=served_name(name),
        template_variables=variables,
        make_store=lambda model: PrefixStore(model, directory=directory),
        **_given(request, LIMITS),
    )


def served_name(model: str) -> str:
    """What requests call a model: a folder by its own name, any other as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _given(request: ServeRequest, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(request, name)) is not None}
