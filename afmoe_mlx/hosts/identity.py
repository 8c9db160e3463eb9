"""Whether two hosts mean the same model: a digest of its config and headers, and samples of its files."""

import hashlib
import json
from pathlib import Path

from ..checkpoint.verify import Headers

# Of a file: so many bytes at so many places.
SAMPLE, SAMPLES = 4096, 16


def digest(raw: dict[str, object], headers: Headers) -> str:
    """Of what `config.json` and the headers of all tensors say."""
    tensors = {name: (stored.dtype, stored.shape, stored.file.name) for name, stored in sorted(headers.items())}
    return hashlib.sha256(json.dumps([raw, tensors], sort_keys=True).encode()).hexdigest()


def samples(folder: Path, headers: Headers) -> dict[str, str]:
    """A digest, from some of its bytes, of each weight file that is in the folder: two fine-tunes differ in them."""
    found = {}
    for name in sorted({stored.file.name for stored in headers.values()}):
        path = folder / name
        if path.is_file():
            found[name] = _sampled(path)
    return found


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(max(size - SAMPLE, 0) * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
