"""A part of a model, of which alone the files that hold it are fetched from the Hub."""

import os
from dataclasses import replace
from pathlib import Path

from .files import StoredTensor, read_headers
from .hub import check_first, fetch_shards, resolve_headers
from .layouts import is_in_part
from .names import repo_id
from .verify import Check


def resolve_part(
    source: str | os.PathLike[str], part: range, *, revision: str | None = None, check: Check | None = None
) -> tuple[Path, dict[str, StoredTensor]]:
    """The folder with a part of a model, see `layouts.is_in_part`, and the headers of all of its weights.

    Of a model on the Hub the files that hold the part are fetched, and what the headers of the others say is kept, so
    that the part needs no network again. check: may refuse the part before it is fetched. Raises the errors of
    `resolve`, and those of `check`.
    """
    from .remote import keep_headers

    folder, headers = resolve_headers(source, revision=revision)
    files = {tensor.file.name for name, tensor in headers.items() if is_in_part(name, part)}
    if absent := sorted(name for name in files if not (folder / name).is_file()):
        if check is not None:
            check_first(folder, headers, check, part)
        fetch_shards(repo_id(os.fspath(source)), folder.name, absent)
        keep_headers(folder, headers)
        headers |= read_headers(folder / name for name in absent)
    return folder, {name: replace(tensor, file=folder / tensor.file.name) for name, tensor in headers.items()}
