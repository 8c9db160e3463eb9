"""`DistilledEncoder`: the encoder of a conversion whose scales, biases and norms learn from the original model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx

from ..conversion.encoder import join
from ..conversion.job import FINAL_NORMS, Job
from ..conversion.source import Source
from ..conversion.stored import StoredWeights
from ..models import make_model
from ..tokenizer import Tokenizer
from .activations import load, write_arrays
from .calibration import Calibration
from .distillation import Distillation
from .encoder import EMBEDDINGS, CalibratedEncoder, then
from .layer import Stored
from .original import Original
from .student import Arrays, Lesson, Student, learned_names

# Tokens of rows of one length that are run together, one row aside.
PIECE = 512
# Bytes in the training's file for each value: it and Adam's two in float32, and the best in its own dtype.
STATE_BYTES = 16


class DistilledEncoder:
    """An `Encoder` that has weights calibrated by another, and at last trains what is beside the codes.

    Until then the calibrated values wait in files, as the original's hidden states after its last layer do.
    """

    def __init__(self, calibrated: CalibratedEncoder, job: Job, work_folder: Path, *, seed: int) -> None:
        """calibrated: with files of its own in `work_folder`. seed: of the training's order."""
        self._calibrated, self._job, self._folder, self._seed = calibrated, job, work_folder, seed
        self._late = frozenset(learned_names(make_model(job.config), job.formats))
        chosen = job.formats.get(EMBEDDINGS)
        self._ties = job.config.tie_word_embeddings and chosen is not None and chosen["mode"] == "affine"
        if self._ties:
            self._late |= {join(EMBEDDINGS, "weight")}
        self._original = Original(job.config, calibrated.batches, work_folder / "original")

    @property
    def identity(self) -> str:
        """As `Encoder.identity`: the method is part of the calibration's."""
        return self._calibrated.identity

    @property
    def tokens(self) -> int:
        """Of the text, that are used."""
        return self._calibrated.tokens

    @property
    def scratch_bytes(self) -> int:
        """As `Encoder.scratch_bytes`: hidden states of both models, the original's head, what comes late, and the
        training's state twice, an old one and the next."""
        tensors = [self._job.plan.tensors[name] for name in self._late]
        learned = (tensor for tensor in tensors if tensor.dtype != mx.uint32)
        states = 2 * STATE_BYTES * sum(tensor.nbytes // tensor.dtype.size for tensor in learned)
        own = sum(tensor.nbytes for tensor in tensors) + states
        return self._calibrated.scratch_bytes + self._original.scratch_bytes(self._job.parameters) + own

    def start(self, group: int) -> int:
        """As `Encoder.start`: the last one where the inputs of both models are there."""
        places = range(group, -1, -1)
        return next(i for i in places if i == 0 or (self._calibrated.start(i) == i and i - 1 in self._original))

    def is_done(self, group: int, missing: set[str]) -> bool:
        """As `Encoder.is_done`."""
        return missing <= self._late and self._values(group).is_file() and self._original.is_done(group)

    def encode(self, index: int | None, weights: StoredWeights) -> Iterator[tuple[str, mx.array]]:
        """As `Encoder.encode`: all but what `finish` gives."""
        parts: dict[str, list[mx.array]] = {}
        is_first = join(EMBEDDINGS, "weight") in weights
        group = 0 if is_first else len(self._job.plan.groups) - 1 if index is None else index + 1

        def carried() -> None:
            self._original.carry(index, weights)
            write_arrays(self._values(group), {name: mx.concatenate(list_) for name, list_ in parts.items()})

        yield from then(self._others(self._calibrated.encode(index, weights), parts), carried)

    def finish(self, folder: Path, on_step: Callable[[int, int], None]) -> Iterator[tuple[str, mx.array]]:
        """As `Encoder.finish`: what is learned, and tied embeddings."""
        plan = self._job.plan
        initial: Arrays = {}
        for group in range(len(plan.groups)):
            initial |= load(self._values(group))
        if self._ties:
            norm = next(initial[name] for name in plan.groups[-1].tensors if name in FINAL_NORMS)
            anew = self._calibrated.tied_embeddings(self._original.head_weight(), norm)
            initial |= {join(EMBEDDINGS, kind): array for kind, array in anew.items()}
        codes = {name: initial.pop(name) for name in list(initial) if initial[name].dtype == mx.uint32}
        mx.eval(codes)
        yield from codes.items()

        def read(name: str) -> mx.array:
            return codes[name] if name in codes else load(folder / plan.tensors[name].file)[name]

        student = Student(self._job.config, plan.groups, self._job.formats, read)
        state = self._folder / "training.safetensors"
        training = Distillation(student, self._original.head(), self._lessons(), state, self._seed)
        yield from training.run(initial, self._job.formats, on_step).items()

    def _others(self, stored: Stored, parts: dict[str, list[mx.array]]) -> Stored:
        """The tensors that do not come late; those that do are kept in `parts`."""
        for name, array in stored:
            if name in self._late:
                parts.setdefault(name, []).append(array)
            else:
                yield name, array

    def _values(self, group: int) -> Path:
        """The file of what a group's values were when they had been calibrated."""
        return self._folder / f"values-{group:05}.safetensors"

    def _lessons(self) -> list[Lesson]:
        lessons: list[Lesson] = []
        for rows, normed in zip(self._calibrated.batches, self._original.normed(), strict=True):
            step = max(PIECE // len(rows[0]), 1)
            parts = (slice(start, start + step) for start in range(0, len(rows), step))
            lessons += (Lesson(mx.array(rows[part]), normed[part]) for part in parts)
        mx.eval([lesson.normed for lesson in lessons])
        return lessons


def encoder_of(calibration: Calibration) -> Callable[[Job, Source, Path], CalibratedEncoder | DistilledEncoder]:
    """What makes the encoder of a conversion's job; that raises as the classes do, and TokenizerError."""

    def make(job: Job, source: Source, work_folder: Path) -> CalibratedEncoder | DistilledEncoder:
        tokenizer = Tokenizer.from_folder(source.folder)
        made = CalibratedEncoder(calibration, job.config, tokenizer, job.formats, work_folder, plain=job.encoder)
        if calibration.method == "distil":
            return DistilledEncoder(made, job, work_folder, seed=calibration.seed)
        return made

    return make
