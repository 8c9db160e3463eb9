"""The Python calls that join several packages: `load`, `convert`, `upload`.

What only a conversion needs is imported when one is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import mlx.core as mx

from .cache import KVQuantization, check_kv_quantization
from .checkpoint import load_model, resolve
from .checkpoint.files import read_config_json
from .checkpoint.load import parse_dtype
from .checkpoint.names import published
from .checkpoint.save import SHARD_BYTES
from .errors import ConversionError, InputError
from .footprint import CountAdapters, ExpertsInMemory, fit_check, place_experts
from .keywords import CONVERT, LOAD, takes
from .models import CausalLM
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .calibration import Calibration
    from .conversion.job import Adapters
    from .conversion.pipeline import ConversionProgress
    from .conversion.recipe import Recipe
    from .conversion.source import Source
    from .hosts.hostfile import Hosts

# The model that comes with the package, by the name "demo".
DEMO = Path(__file__).parent / "demo" / "model"


@overload
def load(
    source: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    context: int | None = None,
    kv_quantization: KVQuantization | None = None,
    experts_in_memory: ExpertsInMemory = None,
    adapter_path: "str | Path | Sequence[str | Path] | None" = None,
    adapter_scale: float = 1.0,
    hosts: "str | Path | Hosts | None" = None,
    silence: float | None = None,
    on_lost: "Callable[[str], None] | None" = None,
    force: bool = False,
    return_config: Literal[False] = False,
) -> tuple[CausalLM, Tokenizer]: ...


@overload
def load(
    source: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    context: int | None = None,
    kv_quantization: KVQuantization | None = None,
    experts_in_memory: ExpertsInMemory = None,
    adapter_path: "str | Path | Sequence[str | Path] | None" = None,
    adapter_scale: float = 1.0,
    hosts: "str | Path | Hosts | None" = None,
    silence: float | None = None,
    on_lost: "Callable[[str], None] | None" = None,
    force: bool = False,
    return_config: Literal[True],
) -> tuple[CausalLM, Tokenizer, dict[str, Any]]: ...


@takes(LOAD)
def load(
    source: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    context: int | None = None,
    kv_quantization: KVQuantization | None = None,
    experts_in_memory: ExpertsInMemory = None,
    adapter_path: "str | Path | Sequence[str | Path] | None" = None,
    adapter_scale: float = 1.0,
    hosts: "str | Path | Hosts | None" = None,
    silence: float | None = None,
    on_lost: "Callable[[str], None] | None" = None,
    force: bool = False,
    return_config: bool = False,
) -> Any:
    """A model, ready to run, and its tokenizer, from a folder, a short name, a Hub id or "demo".

    dtype: of the weights and the computation; by default the checkpoint's, float32 on the CPU. revision: a branch, tag
    or commit on the Hub. context: tokens of conversation that memory must have room for beside the weights, 4096
    unless told. kv_quantization: how caches keep the keys and values of full-attention layers, which counts there too.
    experts_in_memory: bytes for experts; the others are read from the files when the router chooses them, which gives
    the same answers, more slowly. "auto": what is free, but for what the system needs. None, or enough for all: all are
    in memory. `model.expert_reads` counts. adapter_path: an adapter's folder, mlx-lm's or PEFT's, or
    several, which add up; adapter_scale: how much of each. hosts: an MLX hostfile, of whose machines this
    is the first, and each holds some layers; silence, on_lost: see `hosts.start.load_on_hosts`. force: load even what
    does not fit. return_config: give config.json as a third, as it is parsed (`model.config` has what is made of it).
    Keywords of mlx-lm that mean the same are taken too
    (`afmoe_mlx.keywords`). Raises FitError before weights are fetched or read, ConfigError, CheckpointError,
    TokenizerError, HubError, HostError or InputError.
    """
    if source == "demo" and revision is not None:
        raise InputError("the demo comes with the package and has no revisions: leave out the revision")
    check_kv_quantization(kv_quantization)
    wanted = parse_dtype(dtype)
    needs: dict[str, Any] = {"context": context, "dtype": wanted, "kv_quantization": kv_quantization}
    adapt = adapting(adapter_path, adapter_scale, hosts)
    if hosts is None:
        needs["adapters"] = counting(adapter_path)
        check = None if force else fit_check(str(source), **needs, experts_in_memory=experts_in_memory)
        folder = DEMO if source == "demo" else resolve(source, revision=revision, check=check)
    else:
        folder = DEMO if source == "demo" else resolve(source, revision=revision, weights=False)
    raw = read_config_json(folder)  # first: what cannot be read is told before a tokenizer is
    tokenizer = Tokenizer.from_folder(folder)
    if hosts is None:
        place = place_experts(experts_in_memory, **needs)
        model, config = load_model(folder, dtype=wanted, check=check, place=place, adapt=adapt)
    else:
        from .hosts.start import load_on_hosts

        where = DEMO if source == "demo" else source
        named: dict[str, Any] = {"name": "demo" if source == "demo" else None, "revision": revision, "force": force}
        named |= {"silence": silence, "on_lost": on_lost, "experts_in_memory": experts_in_memory}
        model, config = load_on_hosts(where, hosts, **needs, **named)
    if kv_quantization is not None:
        model.kv_quantization = kv_quantization.of_heads(config.head_dim)
    return (model, tokenizer, raw) if return_config else (model, tokenizer)


def adapting(
    adapter_path: "str | Path | Sequence[str | Path] | None" = None, adapter_scale: float = 1.0, hosts: Any = None
) -> Callable[[CausalLM], None] | None:
    """What `load_model` is to do with adapters, if there are any; InputError for what cannot be done."""
    paths = _adapter_paths(adapter_path, adapter_scale)
    if not paths:
        return None
    if hosts is not None:
        raise InputError("an adapter is for a model on one host: leave out the adapter or the hosts")
    from .training import apply

    return apply.adapting(paths, adapter_scale)


def counting(adapter_path: "str | Path | Sequence[str | Path] | None") -> CountAdapters | None:
    """What tells a footprint of adapters, if there are any."""
    if not (paths := _adapter_paths(adapter_path)):
        return None
    from .training import size

    return size.counting(paths)


def merging(
    adapter_path: "str | Path | Sequence[str | Path] | None" = None, adapter_scale: float = 1.0
) -> "Adapters | None":
    """What a conversion is to do with adapters, if there are any."""
    paths = _adapter_paths(adapter_path, adapter_scale)
    if not paths:
        return None
    from .training.merge import MergedAdapters

    return MergedAdapters(paths, adapter_scale)


def _adapter_paths(
    adapter_path: "str | Path | Sequence[str | Path] | None", adapter_scale: float = 1.0
) -> Sequence[str | Path]:
    """As many as are given; InputError for a scale that is no number."""
    if isinstance(adapter_scale, bool) or not isinstance(adapter_scale, int | float):
        raise InputError(f"adapter_scale is {adapter_scale!r}: expected a number")
    return [adapter_path] if isinstance(adapter_path, str | Path) else adapter_path or []


@takes(CONVERT)
def convert(
    source: str | Path,
    destination: str | Path = "mlx_model",
    *,
    quantize: bool = True,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    recipe: "str | Recipe | None" = None,
    dtype: str | None = None,
    dequantize: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    calibrate: "Calibration | str | Path | bool | None" = None,
    adapter_path: "str | Path | Sequence[str | Path] | None" = None,
    adapter_scale: float = 1.0,
    low_disk: bool = False,
    shard_bytes: int = SHARD_BYTES,
    upload_repo: str | None = None,
    on_progress: "Callable[[ConversionProgress], None] | None" = None,
    on_fetched: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the model of a folder, short name or Hub id as MLX files, and return their folder.

    bits and group_size default to what `mode` (affine, mxfp4, nvfp4, mxfp8) has: 4 and 64 for affine. recipe: in their
    place, a built-in recipe's name or a TOML file. dtype: of what is not quantized, by default as stored. dequantize:
    write plain weights from quantized ones instead, in the Hub's layout. Routers and `expert_bias` are never quantized
    unless a recipe file says so. calibrate: choose what the quantized weights are by a text: its path, True for the
    package's, or a `Calibration`. adapter_path: an adapter's folder, or several, merged into the weights, adapter_scale
    times each; with quantize False, quantized weights that they change are quantized anew, each as it was. low_disk:
    remove each file that was fetched from the Hub once it is converted. upload_repo: `upload` the result there.
    on_fetched: called with bytes fetched and to fetch. Keywords of mlx-lm that mean the same are taken too
    (`afmoe_mlx.keywords`).

    The model appears under its name once it is whole. Until then it is made beside it, in `.NAME.partial`: killed and
    run again with the same arguments, a conversion continues there, and gives the same bytes. overwrite replaces a
    model that is there already, and gives up an unfinished conversion with other arguments.

    Raises ConversionError, InputError for a text that cannot be read, and the errors of reading a checkpoint.
    """
    from . import conversion

    if upload_repo is not None:
        from .conversion.publication import check_name

        check_name(upload_repo)
    options = conversion.Options(quantize, bits, group_size, mode, recipe, dtype, dequantize, shard_bytes)
    encoder = None
    if (calibration := _calibration(calibrate)) is not None:
        from .calibration import encoder_of

        if not options.quantizes:
            raise ConversionError("calibrate is given, yet nothing is quantized: expected bits or a recipe")
        encoder = encoder_of(calibration)
    adapters = merging(adapter_path, adapter_scale)
    folder = conversion.convert(
        source,
        destination,
        options,
        encoder=encoder,
        adapters=adapters,
        revision=revision,
        overwrite=overwrite,
        low_disk=low_disk,
        on_progress=on_progress,
        on_fetched=on_fetched,
    )
    if upload_repo is not None:
        card: dict[str, Any] = {"recipe": recipe, "calibrate": calibration, "adapter_path": adapter_path}
        upload(folder, upload_repo, source=source, revision=revision, **card)
    return folder


def upload(
    folder: str | Path,
    repo: str,
    *,
    source: "str | Path | Source | None" = None,
    revision: str | None = None,
    recipe: "str | Recipe | None" = None,
    calibrate: "Calibration | str | Path | bool | None" = None,
    adapter_path: "str | Path | Sequence[str | Path] | None" = None,
    quality: Mapping[str, Any] | None = None,
) -> str:
    """Upload a converted model as `owner/name` on the Hub, made if it is not there, and return its address.

    A model card is written into the folder first, in place of one that is there. It says what the model was made of and
    how: source, revision, recipe, calibrate, adapter_path, as they were given to `convert`; and how good it is:
    quality, what `evaluate(…).to_json()` gives. What the Hub holds already is not sent again. The folder stays.

    Raises HubError, which says how to go on, CheckpointError and ConfigError for a folder that is no model's, and the
    errors of opening the source.
    """
    from .conversion import publication
    from .conversion.source import open_source

    publication.check_name(repo)
    calibration = _calibration(calibrate)
    return publication.upload(
        folder,
        repo,
        source=open_source(published(source), revision=revision) if isinstance(source, str | Path) else source,
        recipe=recipe if recipe is None or isinstance(recipe, str) else recipe.name,
        calibration=calibration.in_words if calibration else None,
        adapters=[Path(path).name for path in _adapter_paths(adapter_path)],
        quality=quality,
    )


def _calibration(given: Any) -> "Calibration | None":
    """As `Calibration.of`, which is imported where anything is given."""
    if given is None or given is False:
        return None
    from .calibration import Calibration

    return Calibration.of(given)
