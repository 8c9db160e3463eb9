"""`convert`: from a published checkpoint to MLX files, a piece at a time, in bounded memory.

While a thread writes, the device computes and the next weights are read. What is finished is noted in a journal, so
that a conversion which was killed continues where it was.
"""

import errno
import hashlib
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from .. import device
from ..checkpoint.files import INDEX
from ..checkpoint.names import published
from ..checkpoint.save import copy_companions, write_json
from ..errors import ConversionError
from .encoder import Encoder, join
from .finite import INFINITY, NotFiniteError, is_finite
from .job import Adapters, Job, MakeEncoder, Options, make_job
from .journal import Journal
from .plan import Group
from .source import Source, SourceChangedError, open_source
from .space import check_space
from .stored import SourceReader, StoredWeights
from .workspace import Workspace, workspace
from .writer import Writer, trusted

# What a user cannot go back to with the same command.
VERSIONS = "version of afmoe-mlx or MLX, or device"

# Bytes of the output, for each stream, that are computed ahead of what is handed on to be written, one array aside.
AHEAD_BYTES = 2 << 20


@dataclass(frozen=True)
class ConversionProgress:
    """How far a conversion has come."""

    bytes_done: int
    """Of the output's tensors, those of an earlier run among them."""
    bytes_total: int
    layer: int
    """Decoder layers that are done."""
    layers: int
    learned: int = 0
    """Tokens that the weights have learned from, where they do once all layers are done."""
    to_learn: int = 0


def convert(
    source: str | Path,
    destination: str | Path,
    options: Options,
    *,
    encoder: MakeEncoder | None = None,
    adapters: Adapters | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    low_disk: bool = False,
    on_progress: Callable[[ConversionProgress], None] | None = None,
    on_fetched: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model as MLX files; see `afmoe_mlx.convert`.

    encoder: makes the `Encoder` that decides what is stored; None for a `PlainEncoder`. adapters: those that are
    merged into the weights.
    """
    with workspace(Path(destination), overwrite=overwrite) as space:
        downloads = space.downloads if low_disk else None
        opened = open_source(published(source), revision=revision, downloads=downloads, on_fetched=on_fetched)
        with closing(opened) as origin:
            if space.destination.exists():
                read = [] if adapters is None else adapters.files
                space.check_apart([origin.folder / "config.json", *{t.file for t in origin.headers.values()}, *read])
            job = make_job(origin, options, adapters)
            chosen = job.encoder if encoder is None else encoder(job, origin, space.calibration)
            _Run(origin, job, chosen, adapters, space, on_progress).run(overwrite=overwrite)
        return space.destination


class _Run:
    """One conversion under way."""

    def __init__(
        self,
        source: Source,
        job: Job,
        encoder: Encoder,
        adapters: Adapters | None,
        space: Workspace,
        on_progress: Callable[[ConversionProgress], None] | None,
    ) -> None:
        self._source, self._job, self._encoder, self._space = source, job, encoder, space
        self._plan = job.plan
        self._adapters = adapters
        self._on_progress = on_progress
        self._bytes_done = 0
        self._layers_done = 0
        self._learned = (0, 0)
        self._ahead: deque[tuple[str, mx.array, mx.array | None]] = deque()
        """Tensors, or slices of one, and whether they are finite where they may not be."""
        self._ahead_bytes = 0
        self._most_ahead = AHEAD_BYTES * len(device.parallel_streams())

    def run(self, *, overwrite: bool) -> None:
        """Do all that is not done yet, and publish the result."""
        journal = self._journal()
        if self._space.may_be_published:
            if self._is_published(journal):
                self._space.clear()
                return
            self._space.check()
        self._give_up_other(journal, overwrite=overwrite)
        self._space.model.mkdir(exist_ok=True)
        kept = self._check_finished(journal)
        journal.begin(kept)
        groups = self._groups_to_do(kept)
        self._layers_done = self._layers() - sum(group.index is not None for group in groups)
        shards = [dict.fromkeys(file for name in group.parameters for file in self._files(name)) for group in groups]
        self._check_space(self._source.bytes_to_fetch(shards))
        self._source.expect(list(dict.fromkeys(file for files in shards for file in files)))
        try:
            self._convert(groups, journal)
            self._source.check_unchanged()
            if self._adapters is not None:
                self._adapters.check_unchanged()
        except OSError as error:
            raise self._failed(error, journal) from None
        except (SourceChangedError, NotFiniteError):
            self._space.clear()  # what is done may be made of both, or of what is no number
            raise
        self._finish()

    def _groups_to_do(self, kept: set[str]) -> list[Group]:
        """The groups that are not wholly there, and those before them that the encoder has to begin at."""
        groups = self._plan.groups
        missing = [i for i in range(len(groups)) if not self._is_done(i, kept)]
        spans = [(self._encoder.start(i), i) for i in missing]
        return [group for i, group in enumerate(groups) if any(first <= i <= last for first, last in spans)]

    def _is_done(self, group: int, finished: set[str]) -> bool:
        """Whether nothing is left to be encoded of a group, with these tensors on disk."""
        return self._encoder.is_done(group, {*self._plan.groups[group].tensors} - finished)

    def _check_space(self, fetched: int) -> None:
        """ConversionError if what is to be put on disks does not fit there; fetched: bytes, from the Hub."""
        there = sum(path.stat().st_size for path in self._space.calibration.rglob("*.safetensors"))
        needs = [
            (self._space.folder, self._plan.file_bytes - self._bytes_done, "what is written"),
            (self._space.calibration, max(self._encoder.scratch_bytes - there, 0), "the calibration's files"),
            (self._source.downloads, fetched, "the download"),
        ]
        stays = fetched > 0 and not self._source.removes
        check_space(needs, "free space, or pass --low-disk" if stays else "free space")

    def _files(self, name: str) -> list[str]:
        return sorted(self._job.parameters[name].files)

    def _layers(self) -> int:
        return sum(group.index is not None for group in self._plan.groups)

    def _journal(self) -> Journal:
        """The journal of this conversion, with what an earlier run of it has finished."""
        identity = {
            "source": self._source.identity,
            "options": _digest(f"{self._plan.identity} {sorted(self._job.formats.items())}"),
            "calibration": self._encoder.identity,
            "adapters": "none" if self._adapters is None else self._adapters.identity,
            VERSIONS: f"{version('afmoe-mlx')} {version('mlx')} {device.backend()}",
        }
        return Journal(self._space.journal, identity)

    def _is_published(self, journal: Journal) -> bool:
        """Whether the destination holds all that a run made which was killed before it could clear up."""
        found = trusted(self._space.destination, self._plan, journal)
        try:
            return sum(is_good for _, is_good in found) == len(self._plan.tensors)
        except OSError:
            return False

    def _give_up_other(self, journal: Journal, *, overwrite: bool) -> None:
        """Clear up what is no part of this conversion; ConversionError if it is of another, unless `overwrite`."""
        if journal.differs and not overwrite:
            found = f"another conversion is unfinished there, which differs in its {' and '.join(journal.differs)}"
            again = "" if VERSIONS in journal.differs else "run that command again to continue it, or "
            advice = f"{again}pass --overwrite to give it up"
            raise ConversionError(f"{self._space.folder}: {found}: {advice}")
        if not journal.continues:
            self._space.discard()

    def _check_finished(self, journal: Journal) -> set[str]:
        """The tensors of an earlier run that are still what they were."""
        kept = set()
        for tensor, is_good in trusted(self._space.model, self._plan, journal):
            if is_good:
                kept.add(tensor.name)
                self._advance(tensor.nbytes)
        return kept

    def _convert(self, groups: list[Group], journal: Journal) -> None:
        reader = SourceReader(self._source, self._job.parameters)
        reader.done(name for group in self._plan.groups if group not in groups for name in group.parameters)
        with closing(reader), closing(Writer(self._space.model, self._plan, journal)) as writer:
            left = deque(groups)
            for group in groups:
                for name, array in self._encoder.encode(group.index, StoredWeights(reader, group.parameters)):
                    if name not in journal.finished:
                        self._compute(name, array, writer)
                self._drain(writer)
                reader.check()
                mx.clear_cache()
                self._layers_done += group.index is not None
                self._advance(0)
                if self._source.removes or self._encoder.scratch_bytes:
                    writer.flush()  # so that shards, or files of the encoder, that are done with can go
                finished = writer.finished
                while left and self._is_done(self._plan.groups.index(left[0]), finished):
                    reader.done(left.popleft().parameters)
            writer.flush()
            for name, array in self._encoder.finish(self._space.model, self._show_learned):
                if name not in journal.finished:
                    self._compute(name, array, writer)
            self._drain(writer)
            writer.flush()
            missing = self._plan.tensors.keys() - writer.finished
            assert not missing, f"not made: {sorted(missing)}"
            reader.done(name for group in left for name in group.parameters)

    def _compute(self, name: str, array: mx.array, writer: Writer) -> None:
        """Start on an array, and hand the oldest ones on while more is under way than need be."""
        dtype = self._plan.tensors[name].dtype
        assert array.dtype == dtype, f"{name} is {array.dtype}, planned as {dtype}"
        data = mx.contiguous(array).view(mx.uint8)
        finite = is_finite(array) if self._is_narrowed(name) else None
        mx.async_eval(data, [] if finite is None else finite)
        self._ahead.append((name, data, finite))
        self._ahead_bytes += data.nbytes
        self._drain(writer, keep=self._most_ahead)

    def _drain(self, writer: Writer, keep: int = 0) -> None:
        while self._ahead and self._ahead_bytes > keep:
            name, data, finite = self._ahead.popleft()
            mx.eval(data)
            if finite is not None and not finite.item():
                dtype = str(self._plan.tensors[name].dtype).removeprefix("mlx.core.")
                found = f"{name} has weights beyond the range of {dtype}"
                raise NotFiniteError(f"{found}: convert to another dtype, such as the one they are stored in")
            writer.write(name, memoryview(data))  # type: ignore[arg-type]
            self._ahead_bytes -= data.nbytes
            self._advance(data.nbytes)

    def _is_narrowed(self, name: str) -> bool:
        """Whether a tensor is made of weights of another number format, which may have a wider range."""
        parameters = self._job.parameters
        stored = parameters.get(name) or parameters[join(name.rpartition(".")[0], "weight")]
        return stored.dtype in INFINITY and stored.dtype != self._plan.tensors[name].dtype

    def _advance(self, count: int) -> None:
        self._bytes_done += count
        if self._on_progress is not None:
            layers = self._layers_done, self._layers()
            self._on_progress(ConversionProgress(self._bytes_done, self._plan.nbytes, *layers, *self._learned))

    def _show_learned(self, done: int, total: int) -> None:
        self._learned = done, total
        self._advance(0)

    def _finish(self) -> None:
        """Publish what was made."""
        write_json(self._space.model / "config.json", self._job.config_json)
        write_json(self._space.model / INDEX, self._plan.index)
        copy_companions(self._source.folder, self._space.model)
        self._space.publish()

    def _failed(self, error: OSError, journal: Journal) -> Exception:
        """What to tell a user whose disk is full; other errors as they are."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        done = sum(self._plan.tensors[name].nbytes for name in journal.finished)
        kept = f"{done / 1e9:.1f} of {self._plan.nbytes / 1e9:.1f} GB are kept"
        found = f"the disk is full; {kept} in {self._space.folder}"
        return ConversionError(f"{self._space.destination}: {found}: free space and run the same command again")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
