"""What it costs to quantize weights anew that adapters were merged into."""

import math
from contextlib import closing
from pathlib import Path

import mlx.core as mx

from ..conversion.encoder import PIECE_BYTES, join
from ..conversion.job import Job, Options, make_job
from ..conversion.source import LocalSource, Source
from ..conversion.stored import MergedParameter, SourceReader
from .merge import plain


def rounding(source: Source, job: Job, written: Path) -> float | None:
    """How far rounding moved the merged weights that were quantized anew, where the adapters moved them by 1.

    Both are lengths of the differences of all such weights together; 0 would be a merge without any loss, and 1 is as
    much as the adapters changed. None where nothing was quantized anew. written: the folder that the job's conversion
    wrote.
    """
    merged = {
        path: parameter
        for path, chosen in job.formats.items()
        if chosen and isinstance(parameter := job.parameters[join(path, "weight")], MergedParameter)
        if "scales" in parameter.parts
    }
    if not merged:
        return None
    target = LocalSource(written)
    stored = {join(path, kind): part for path, parameter in merged.items() for kind, part in parameter.parts.items()}
    moved = rounded = 0.0
    with (
        closing(SourceReader(source, stored)) as before,
        closing(SourceReader(target, make_job(target, Options(quantize=False)).parameters)) as after,
    ):
        for path, parameter in merged.items():
            count = max(PIECE_BYTES // (4 * math.prod(parameter.shape[1:])), 1)
            for start in range(0, parameter.shape[0], count):
                rows = slice(start, min(start + count, parameter.shape[0]))
                parts = {kind: before.read(join(path, kind), rows) for kind in parameter.parts}
                found = {kind: after.read(join(path, kind), rows) for kind in parts}
                changed = parameter.merge(parts, rows).astype(mx.float32)
                steps = changed - plain(parts, job.formats[path]), plain(found, job.formats[path]) - changed
                squares: list[float] = mx.stack([mx.square(step).sum() for step in steps]).tolist()  # type: ignore[assignment]
                moved, rounded = moved + squares[0], rounded + squares[1]
    return math.sqrt(rounded / moved) if moved else None
