"""`ExpertPool`: slots in memory for some of a layer's experts, read from where all of them are when they are wanted.

The slots are rows of arrays that a product takes as it takes all experts, and they are written in place. MLX knows
nothing of that: a graph that is built but not computed would read what was written later. So nobody but `run` lets an
array be made of the slots, and it waits for what was made of a slot before that is written.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from threading import Lock
from typing import TYPE_CHECKING, Protocol, Self

import mlx.core as mx

from ..device import parallel_streams
from ..errors import AfmoeError
from .moe import Experts

if TYPE_CHECKING:
    from ..device import Stream

# Makes arrays of some experts, which lie in these slots: (experts, slots) -> arrays, which need not be evaluated.
Compute = Callable[[Sequence[int], Sequence[int]], Sequence[mx.array]]


class Reading(Protocol):
    """Experts that are to be read."""

    def begin(self) -> None:
        """Read them from now on. Who has this waits, even if it is interrupted here."""

    def wait(self) -> float:
        """Wait until nothing is written any more; the seconds from the beginning of reading to its end.

        Raises AfmoeError if not all was read.
        """


class ExpertSource(Protocol):
    """Where all experts of one layer are."""

    @property
    def tensors(self) -> Mapping[str, mx.Dtype]:
        """What an expert is made of, such as "gate_proj.weight", and what that is stored in."""

    @property
    def expert_bytes(self) -> int:
        """What reading one of them takes."""

    @property
    def identity(self) -> str:
        """What tells them from those of another model."""

    def read(self, wanted: Mapping[int, Sequence[memoryview]]) -> Reading:
        """What is to read experts, each into the views of its `tensors` in their order. Raises AfmoeError."""


@dataclass
class ExpertReads:
    """What a model's layers wanted of their pools, all since it was loaded."""

    hits: int = 0
    """Experts that were in memory when a step wanted them; each counts once a step and layer."""
    misses: int = 0
    """Those that were read."""
    bytes_read: int = 0
    seconds_reading: float = 0.0
    """From the beginning of each reading to its end."""
    seconds_waited: float = 0.0
    """For experts, while the host had nothing else to do."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, before: Self) -> Self:
        """What has been added since."""
        return type(self)(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)})

    @property
    def hit_rate(self) -> float | None:
        """The share that was in memory; None where nothing was wanted."""
        wanted = self.hits + self.misses
        return self.hits / wanted if wanted else None

    @property
    def bytes_per_second(self) -> float | None:
        """How fast was read; None where nothing was."""
        return self.bytes_read / self.seconds_reading if self.seconds_reading else None


@dataclass
class _Part:
    """A tensor of an expert in a slot: `size` bytes from `begin` on in a row of an array, where `stride` bytes are."""

    array: mx.array
    begin: int
    size: int
    stride: int
    stored: mx.Dtype
    """Another one than the array's is cast."""

    def __post_init__(self) -> None:
        mx.eval(self.array)
        self._bytes = memoryview(self.array).cast("B")  # type: ignore[arg-type]
        assert self._bytes.nbytes == self.array.nbytes, "the slots are rows of one buffer"

    @classmethod
    def of(cls, experts: Experts, name: str, stored: mx.Dtype) -> Self:
        """The tensor "gate_proj.weight", or the like, in the slots of `experts`."""
        projection, kind = name.split(".")
        is_joined = projection not in experts
        array = experts["gate_up_proj" if is_joined else projection][kind]
        stride = array.nbytes // array.shape[0]
        size = stride // 2 if is_joined else stride
        return cls(array, size if is_joined and projection == "up_proj" else 0, size, stride, stored)

    def of_slot(self, slot: int) -> memoryview:
        first = slot * self.stride + self.begin
        return self._bytes[first : first + self.size]

    def unread(self) -> mx.array | None:
        """An array to read the tensor of one expert into, as it is stored, if that is to be cast."""
        if self.stored == self.array.dtype:
            return None
        return mx.zeros((self.size // self.array.itemsize,), self.stored, stream=_aside())


def _aside() -> "Stream":
    """Where to prepare what is read: beside what is computed meanwhile, not after it."""
    return parallel_streams()[-1]


class _Fill:
    """Experts on their way into slots."""

    def __init__(self, slots: Mapping[int, int], parts: Sequence[_Part], source: ExpertSource) -> None:
        self.slots = slots
        self._staged: list[tuple[memoryview, mx.array, mx.Dtype]] = []
        wanted = {expert: [self._view(part, slot) for part in parts] for expert, slot in slots.items()}
        self._reading = source.read(wanted)

    def _view(self, part: _Part, slot: int) -> memoryview:
        place, array = part.of_slot(slot), part.unread()
        if array is None:
            return place
        self._staged.append((place, array, part.array.dtype))
        return memoryview(array).cast("B")  # type: ignore[arg-type]

    def begin(self) -> None:
        self._reading.begin()

    def wait(self) -> float:
        """Wait until all is read; the seconds that this took. Raises AfmoeError once nothing is written any more."""
        return self._reading.wait()

    def cast(self) -> None:
        """Put what is stored in another dtype into its place."""
        if not self._staged:
            return
        cast = [array.astype(dtype, stream=_aside()) for _, array, dtype in self._staged]
        mx.eval(cast)
        for (place, *_), array in zip(self._staged, cast, strict=True):
            place[:] = memoryview(array).cast("B")  # type: ignore[arg-type]


class ExpertPool:
    """`slots` rows of the arrays of `experts`, the first ones; the rows behind them hold experts that always stay.

    experts: of all of which, `num_experts`, those that stay are the last. What is least recently used makes room, but
    nothing that is still to be computed with.
    """

    def __init__(self, experts: Experts, slots: int, source: ExpertSource, reads: ExpertReads) -> None:
        self.experts, self.slots, self._source, self._reads = experts, slots, source, reads
        self._parts = [_Part.of(experts, name, stored) for name, stored in source.tensors.items()]
        self.identity = source.identity
        self.lock = Lock()  # from `order` to the end of `run`: threads that share a model take turns
        self.expert_bytes = sum(part.size for part in self._parts)  # in memory
        rows = experts.down_proj.weight.shape[0]
        self._pinned = {experts.num_experts - rows + slot: slot for slot in range(slots, rows)}
        self._slots: dict[int, int] = {}  # of experts that were read whole
        self._used: dict[int, int] = {}  # when an expert was last wanted, by a count of all that were
        self._wanted = 0
        self._made: dict[int, mx.array] = {}  # by slot: to be evaluated before it is written
        self._fill: _Fill | None = None

    @property
    def pinned(self) -> int:
        """Experts that always stay."""
        return len(self._pinned)

    @property
    def held(self) -> list[int]:
        """The experts in slots, the least recently used first."""
        return sorted(self._slots, key=self._used.__getitem__)

    def order(self, needed: Sequence[int]) -> list[int]:
        """The order in which `run`, called next, computes with experts: those that are here come first."""
        with suppress(AfmoeError):  # of a run that was interrupted: what it has not read is not here
            self._finish_reading()
        return sorted(needed, key=lambda expert: not self._is_here(expert))

    def run(self, needed: Sequence[int], compute: Compute) -> None:
        """Compute with experts, given in the order of their last use, each once: as many at a time as have room.

        Those that are not here are read meanwhile. Raises AfmoeError for what cannot be read; then not all has been
        computed.
        """
        order = self.order(needed)
        self._used |= {expert: self._wanted + i for i, expert in enumerate(needed)}
        self._wanted += len(needed)
        here = sum(map(self._is_here, order))
        group, missing = order[:here], order[here:]
        self._reads.hits += sum(expert in self._slots for expert in group)
        while group or missing:
            following = self._begin_reading(missing, beside=group)
            if group:
                self._compute(group, compute)
            following = following or self._begin_reading(missing)
            self._finish_reading()
            group, missing = following, missing[len(following) :]

    def _is_here(self, expert: int) -> bool:
        return expert in self._slots or expert in self._pinned

    def _compute(self, group: Sequence[int], compute: Compute) -> None:
        slots = [self._pinned[expert] if expert in self._pinned else self._slots[expert] for expert in group]
        made = list(compute(group, slots))
        after = mx.depends(mx.array(0), made)  # which keeps none of them, once they are evaluated
        mx.async_eval(*made, after)
        self._made |= dict.fromkeys(slots, after)

    def _begin_reading(self, missing: Sequence[int], beside: Sequence[int] = ()) -> list[int]:
        """Begin to read as many of the missing as there is room for, `beside` some that are to stay; which."""
        most = self.slots - sum(expert in self._slots for expert in beside)
        if len(missing) > most:  # half of them at most: the next are read while these are computed with
            most = min(most, max(self.slots // 2, 1))
        experts = list(missing[:most])
        if experts:
            slots = self._make_room(len(experts), beside)
            self._settle(slots)
            self._fill = _Fill(dict(zip(experts, slots, strict=True)), self._parts, self._source)
            self._fill.begin()  # once it is known: an interruption leaves nobody writing into a slot unwaited for
        return experts

    def _make_room(self, count: int, beside: Sequence[int]) -> list[int]:
        """So many slots without an expert, those of the least recently used if need be.

        That no expert is in them is all that says so: whatever interrupts what follows, none is lost.
        """
        short = max(count - (self.slots - len(self._slots)), 0)
        for expert in [expert for expert in self.held if expert not in beside][:short]:
            del self._slots[expert]
        taken = set(self._slots.values())
        return [slot for slot in range(self.slots) if slot not in taken][:count]

    def _settle(self, slots: Sequence[int]) -> None:
        """Wait for all that was made of slots."""
        mx.eval([self._made[slot] for slot in slots if slot in self._made])
        for slot in slots:
            self._made.pop(slot, None)

    def _finish_reading(self) -> None:
        """Publish what was read; of what could not be, the slots stay empty."""
        if (fill := self._fill) is None:
            return
        began = time.perf_counter()
        try:
            self._reads.seconds_reading += fill.wait()
        except AfmoeError:
            self._fill = None
            raise
        finally:
            self._reads.seconds_waited += time.perf_counter() - began
        fill.cast()
        self._slots |= fill.slots
        self._reads.misses += len(fill.slots)
        self._reads.bytes_read += len(fill.slots) * self._source.expert_bytes
        self._fill = None
