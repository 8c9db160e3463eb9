"""`afmoe-mlx convert`: a checkpoint becomes MLX files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api import DEMO
from ..checkpoint.files import find_weights, read_config_json, read_headers
from ..checkpoint.names import published
from ..checkpoint.quantized import read_quantization
from ..conversion import convert, upload
from ..conversion.job import Options, calibrated, make_job
from ..conversion.model_card import bits_per_weight, formats_of
from ..conversion.publication import check_upload
from ..conversion.source import Source, open_source
from ..conversion.workspace import is_unfinished
from ..errors import AfmoeError, InputError
from ..terminal import note, size, write
from .dry_run import describe, show
from .progress import conversion_progress, progress_bar

if TYPE_CHECKING:
    from ..calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to convert and where to; as the arguments of `convert`."""

    source: str
    destination: str
    options: Options
    revision: str | None
    overwrite: bool
    low_disk: bool
    calibrate: "Calibration | None"
    upload_repo: str | None

    @property
    def is_local(self) -> bool:
        return self.source == "demo" or os.path.isdir(os.path.expanduser(self.source))


def calibration(text: str | None, **options: Any) -> "Calibration | None":
    """What to calibrate with, None for not at all; an empty text is the built-in one, options of None the defaults."""
    if text is None:
        return None
    from ..calibration import Calibration

    given = {name: value for name, value in options.items() if value is not None}
    return Calibration(text=Path(os.path.expanduser(text)) if text else None, **given)


def preview(request: Request, *, verbose: bool, as_json: bool) -> None:
    """Print what a conversion would write, from the source's headers, and from the text to calibrate with."""
    source = _open(request)
    try:
        job = make_job(source, request.options)
        tokens = None
        if request.calibrate is not None:
            tokens = calibrated(request.calibrate, job, source, Path(request.destination)).tokens
        show(describe(request.source, source, job, request.options, tokens), verbose=verbose, as_json=as_json)
    finally:
        source.close()


def run(request: Request, *, as_json: bool) -> None:
    """Convert with progress on stderr, and say where the result is and how large; upload it if asked."""
    if request.upload_repo is not None:
        check_upload(request.upload_repo)
    source = _open(request)
    if request.upload_repo is not None:
        source.card()  # fetched now, while the Hub is known to answer
    source.close()
    target = _convert(request, source)
    headers = read_headers(find_weights(target))
    formats = formats_of(headers, read_quantization(read_config_json(target)) or {})
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    found: dict[str, Any] = {"path": str(target), "bytes": written}
    found["bits_per_weight"] = bits_per_weight(headers, formats)
    note(f"Wrote {target} ({size(written)}). Try it: afmoe-mlx generate --model {target} --prompt hello")
    if request.upload_repo is not None:
        found["uploaded_to"] = _upload(request, request.upload_repo, source, target)
    if as_json:
        write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _open(request: Request) -> Source:
    if request.source == "demo" and request.revision is not None:
        raise InputError("the demo comes with the package and has no revisions: leave out the revision")
    origin = DEMO if request.source == "demo" else published(request.source)
    return open_source(origin, revision=request.revision)


def _convert(request: Request, source: Source) -> Path:
    """Convert the very commit that was opened."""
    options = request.options
    with _interruptible(Path(request.destination)), conversion_progress() as progress:
        return convert(
            DEMO if request.source == "demo" else request.source,
            request.destination,
            quantize=options.quantize,
            bits=options.bits,
            group_size=options.group_size,
            mode=options.mode,
            recipe=options.recipe,
            dtype=options.dtype,
            dequantize=options.dequantize,
            revision=None if request.is_local else source.commit,
            overwrite=request.overwrite,
            calibrate=request.calibrate,
            low_disk=request.low_disk,
            on_progress=progress.converted,
            on_fetched=progress.fetched,
        )


@contextmanager
def _interruptible(destination: Path) -> Iterator[None]:
    """Say how to go on when a conversion is interrupted that can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        if is_unfinished(destination):
            note("Interrupted. What is done is kept: run the same command again to continue.")
        raise


def _upload(request: Request, repo: str, source: Source, target: Path) -> str:
    """Upload a converted model with its card; its address."""
    reference = None if request.low_disk and not request.is_local else source.folder
    address = upload(
        target,
        repo,
        source=source,
        recipe=request.options.recipe,
        calibrate=request.calibrate,
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
