"""Whether two hosts mean the same model: a digest of its config and headers, and samples of its tensors."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.files import StoredTensor
from ..checkpoint.headers import read_places
from ..checkpoint.layouts import EXPERT
from ..checkpoint.verify import Headers

# Of a tensor: so many bytes; where it is of several experts, at so many places, or of every so manieth expert. And of a
# file, so many at its end, which broken copies lack.
SAMPLE, PLACES, EVERY = 256, 16, 8
END = 4096


def digest(raw: dict[str, object], headers: Headers) -> str:
    """Of what `config.json` and the headers of all tensors say."""
    tensors = {name: (stored.dtype, stored.shape, stored.file.name) for name, stored in sorted(headers.items())}
    return hashlib.sha256(json.dumps([raw, tensors], sort_keys=True).encode()).hexdigest()


def samples(folder: Path, headers: Headers) -> dict[str, str]:
    """A digest of each weight file that is in the folder, from some bytes of its tensors: fine-tunes differ in them."""
    files: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in sorted(headers.items()):
        files.setdefault(stored.file.name, {})[name] = stored
    return {name: _sampled(folder / name, tensors) for name, tensors in files.items() if (folder / name).is_file()}


def _sampled(path: Path, tensors: Headers) -> str:
    places = read_places(path)
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        digest.update(size.to_bytes(8, "little") + os.pread(fd, END, max(size - END, 0)))
        for name, stored in tensors.items():
            for offset in _offsets(name, stored):
                digest.update(os.pread(fd, min(SAMPLE, stored.nbytes - offset), places[name].begin + offset))
    finally:
        os.close(fd)
    return digest.hexdigest()


def _offsets(name: str, stored: StoredTensor) -> Iterator[int]:
    """Where in a tensor samples begin: in the middle of it, or of as many equal parts as it is to be looked at."""
    expert = EXPERT.fullmatch(name)
    if expert is not None and int(expert["expert"]) % EVERY:
        return
    parts = PLACES if len(stored.shape) == 3 else 1
    for i in range(parts):
        yield max(stored.nbytes * (2 * i + 1) // (2 * parts) - SAMPLE // 2, 0)
