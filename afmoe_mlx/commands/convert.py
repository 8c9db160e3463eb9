"""`afmoe-mlx convert`: a checkpoint becomes MLX files."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api import DEMO, merging
from ..checkpoint.files import find_weights, read_config_json, read_headers
from ..checkpoint.names import published
from ..checkpoint.quantized import read_quantization
from ..command_line.progress import conversion_progress, progress_bar
from ..command_line.requests.conversion import ConvertRequest
from ..conversion import Options, convert, dry_run, upload
from ..conversion.job import Job, make_job
from ..conversion.model_card import bits_per_weight, formats_of
from ..conversion.publication import check_upload
from ..conversion.recipe import Recipe
from ..conversion.source import Source, open_source
from ..conversion.workspace import is_unfinished
from ..errors import AfmoeError, InputError
from ..terminal import note, size, write, write_json

if TYPE_CHECKING:
    from ..calibration import CalibratedEncoder, Calibration, DistilledEncoder


def run(request: ConvertRequest, recipe: Recipe | None = None) -> None:
    """Convert, or say what would be written. recipe: in place of the request's."""
    if request.dry_run:
        _preview(request)
    else:
        _run(request, recipe)


def _preview(request: ConvertRequest) -> None:
    """Print what a conversion would write, from the source's headers, and from the text to calibrate with."""
    options, calibration = _options(request), _calibration(request)
    source = _open(request)
    try:
        job = make_job(source, options, merging(**request.adapters))
        tokens = None
        if calibration is not None:
            tokens = _encoder(calibration)(job, source, Path(request.mlx_path)).tokens
        found = dry_run.describe(request.hf_path, source, job, tokens)
    finally:
        source.close()
    if request.as_json:
        write_json(dry_run.as_json(found), indent=2)
    else:
        write(dry_run.as_text(found, verbose=request.verbose))


def _run(request: ConvertRequest, recipe: Recipe | None) -> None:
    """Convert with progress on stderr, and say where the result is and how large; upload it if asked."""
    options, calibration = _options(request, recipe), _calibration(request)
    if request.upload_repo is not None:
        check_upload(request.upload_repo)
    source = _open(request)
    if request.upload_repo is not None:
        source.card()  # fetched now, while the Hub is known to answer
    source.close()
    target = _convert(request, options, calibration, source)
    headers = read_headers(find_weights(target))
    formats = formats_of(headers, read_quantization(read_config_json(target)) or {})
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    found: dict[str, Any] = {"path": str(target), "bytes": written}
    found["bits_per_weight"] = bits_per_weight(headers, formats)
    command = f"afmoe-mlx generate --model {shlex.quote(str(target))} --prompt hello"
    note(f"Wrote {target} ({size(written)}). Try it: {command}")
    if request.adapter_path and (share := _rounding(request, options, target)) is not None:
        found["rounding"] = share
        note(
            f"Quantized anew: rounding moved the merged weights {share:.2f} times as far as the adapter did."
            " To round once, merge into what the model was quantized from: afmoe-mlx fuse --original"
        )
    if request.upload_repo is not None:
        found["uploaded_to"] = _upload(request, request.upload_repo, options, calibration, source, target)
    if request.as_json:
        write_json(found, indent=2)


def _options(request: ConvertRequest, recipe: Recipe | None = None) -> Options:
    return Options(
        quantize=request.quantize,
        bits=request.q_bits,
        group_size=request.q_group_size,
        mode=request.q_mode.value,
        recipe=recipe or request.recipe,
        dtype=request.dtype.value if request.dtype else None,
        dequantize=request.dequantize,
    )


def _calibration(request: ConvertRequest) -> "Calibration | None":
    """What to calibrate with, None for not at all; an empty text is the built-in one."""
    if request.calibrate is None:
        return None
    from ..calibration import Calibration

    given: dict[str, Any] = {"tokens": request.calibration_tokens}
    given["method"] = request.calibration_method.value if request.calibration_method else None
    chosen = {name: value for name, value in given.items() if value is not None}
    text = Path(os.path.expanduser(request.calibrate)) if request.calibrate else None
    return Calibration(text=text, all_experts=not request.calibrate_routed, **chosen)


def _encoder(calibration: "Calibration") -> "Callable[[Job, Source, Path], CalibratedEncoder | DistilledEncoder]":
    from ..calibration import encoder_of

    return encoder_of(calibration)


def _is_local(request: ConvertRequest) -> bool:
    return request.hf_path == "demo" or os.path.isdir(os.path.expanduser(request.hf_path))


def _open(request: ConvertRequest) -> Source:
    if request.hf_path == "demo" and request.revision is not None:
        raise InputError("the demo comes with the package and has no revisions: leave out the revision")
    origin = DEMO if request.hf_path == "demo" else published(request.hf_path)
    return open_source(origin, revision=request.revision)


def _convert(request: ConvertRequest, options: Options, calibration: "Calibration | None", source: Source) -> Path:
    """Convert the very commit that was opened."""
    with _interruptible(Path(request.mlx_path)), conversion_progress() as progress:
        return convert(
            DEMO if request.hf_path == "demo" else request.hf_path,
            request.mlx_path,
            options,
            encoder=_encoder(calibration) if calibration else None,
            adapters=merging(**request.adapters),
            revision=None if _is_local(request) else source.commit,
            overwrite=request.overwrite,
            low_disk=request.low_disk,
            on_progress=progress.converted,
            on_fetched=progress.fetched,
        )


def _rounding(request: ConvertRequest, options: Options, target: Path) -> float | None:
    """As `training.rounding.rounding`; None too where the source's weights are not kept."""
    if options.quantizes or options.dequantize or (request.low_disk and not _is_local(request)):
        return None
    from ..training.rounding import rounding

    with closing(_open(request)) as source:
        return rounding(source, make_job(source, options, merging(**request.adapters)), target)


@contextmanager
def _interruptible(destination: Path) -> Iterator[None]:
    """Say how to go on when a conversion is interrupted that can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        if is_unfinished(destination):
            note("Interrupted. What is done is kept: run the same command again to continue.")
        raise


def _upload(
    request: ConvertRequest,
    repo: str,
    options: Options,
    calibration: "Calibration | None",
    source: Source,
    target: Path,
) -> str:
    """Upload a converted model with its card; its address."""
    is_gone = request.low_disk and not _is_local(request)
    reference = None if is_gone or request.adapter_path else source.folder
    recipe = options.recipe
    address = upload(
        target,
        repo,
        source=source,
        recipe=recipe.name if isinstance(recipe, Recipe) else recipe,
        adapters=[Path(path).name for path in request.adapter_path or ()],
        calibration=calibration.in_words if calibration else None,
        quality=_quality(target, reference),
    )
    note(f"Uploaded to {address}")
    return address


def _quality(target: Path, reference: Path | None) -> dict[str, Any] | None:
    """What `afmoe-mlx eval` says of the model, against the source if that fits in memory; None if not even it does."""
    from ..evaluation import evaluate

    for other in (reference, None) if reference else (None,):
        try:
            with progress_bar("evaluating for the model card") as show_steps:
                return evaluate(target, reference=other, on_progress=show_steps).to_json()
        except AfmoeError as error:
            note(f"no figures {'against the source ' if other else ''}in the model card: {error}")
    return None
