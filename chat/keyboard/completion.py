"""Candidates of Tab completion: commands, settings, models, sessions, files."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from afmoe_mlx.terminal import printable

MOST_FILES = 200


@dataclass(frozen=True)
class Candidate:
    """`text` in place of the last `replaced` characters before the cursor; `shown` and `meaning` are printable."""

    text: str
    replaced: int
    shown: str
    meaning: str = ""


Complete = Callable[[str], Iterable[Candidate]]
"""Candidates for the text before the cursor."""


def words(options: Iterable[tuple[str, str]], typed: str) -> Iterator[Candidate]:
    """Those of (word, meaning) that begin with what was typed, in any case."""
    for word, meaning in options:
        if word.casefold().startswith(typed.casefold()):
            yield Candidate(word, len(typed), printable(word), printable(meaning))


def files(typed: str, endings: tuple[str, ...] = ()) -> Iterator[Candidate]:
    """Files and folders whose path begins with what was typed, `~` for home; files by their ending if any is given."""
    head, tail = os.path.split(typed)
    try:
        entries = sorted(os.scandir(Path(head or ".").expanduser()), key=lambda entry: entry.name.casefold())
    except (OSError, RuntimeError, ValueError):
        return
    found = 0
    for entry in entries:
        if not entry.name.startswith(tail) or (entry.name.startswith(".") and not tail.startswith(".")):
            continue
        is_folder = entry.is_dir()
        if endings and not is_folder and not entry.name.endswith(endings):
            continue
        name = entry.name + "/" * is_folder
        yield Candidate(name, len(tail), printable(name.replace("\n", "\\n")))
        found += 1
        if found == MOST_FILES:
            return


def models(typed: str) -> Iterator[Candidate]:
    """Models by short name and those in the local cache; a folder by its path."""
    from afmoe_mlx.checkpoint.names import MODEL_NAMES

    known = [("demo", "built in"), *((row.name, row.description) for row in MODEL_NAMES)]
    yield from words([*known, *((repo, "downloaded") for repo in _downloaded())], typed)
    if typed.startswith((".", "/", "~")):
        yield from (candidate for candidate in files(typed) if candidate.text.endswith("/"))


def _downloaded() -> list[str]:
    from afmoe_mlx.checkpoint.hub_cache import cached_models
    from afmoe_mlx.errors import HubError

    try:
        return [model.repo for model in cached_models()]
    except HubError:
        return []
