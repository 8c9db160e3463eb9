"""What the leader tells its followers and they answer: a JSON object a line, read as data and checked.

A follower does its orders one after the other. It may hold parts of several models, known by numbers.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

from annotated_types import Ge, Lt, MaxLen

from ..cache import KVQuantization
from ..errors import HostError

# Characters of a line that is read.
LONGEST_LINE = 1 << 26

Number = Annotated[int, Ge(0), Lt(1 << 31)]
Bytes = Annotated[int, Ge(0), Lt(1 << 60)]
Text = Annotated[str, MaxLen(4096)]
Numbers = tuple[Number, ...]
Rows = tuple[Numbers, ...]
# A KVQuantization: bits, group size, start.
Kept = tuple[Number, Number | None, Number]


@dataclass(frozen=True)
class Hello:
    """Answer with `Facts`. source, revision: of the model that is meant, if any. ip: the host's own, to listen at."""

    source: Text | None
    revision: Text | None
    ip: Text
    do: Literal["hello"] = "hello"


@dataclass(frozen=True)
class Join:
    """Connect to the others and answer with `Done`.

    addresses: "ip:port" of each rank, for ring. devices: for jaccl, MLX's matrix of RDMA devices as JSON.
    """

    rank: Number
    backend: Literal["ring", "jaccl"]
    addresses: tuple[Text, ...]
    devices: Text | None = None
    do: Literal["join"] = "join"


@dataclass(frozen=True)
class Load:
    """Load the layers from `first` on, before `last`, and answer with `Done`. The others are `load`'s."""

    first: Number
    last: Number
    dtype: Literal["float32", "bfloat16", "float16"]
    context: Number
    kept: Kept | None
    experts_in_memory: Bytes | Literal["auto"] | None
    force: bool
    model: Number = 0
    do: Literal["load"] = "load"


@dataclass(frozen=True)
class Unload:
    """Forget a model, with its caches and stores."""

    model: Number
    do: Literal["unload"] = "unload"


@dataclass(frozen=True)
class Probe:
    """Take part in `rounds` hops around the ring, or sums, of `size` float32 numbers; no answer."""

    kind: Literal["hop", "sum"]
    rounds: Number
    size: Number
    do: Literal["probe"] = "probe"


@dataclass(frozen=True)
class NewCache:
    """Make an empty cache, known by a number; the others are `make_cache`'s."""

    cache: Number
    slack: Number | None = None
    kept: Kept | None = None
    model: Number = 0
    do: Literal["new_cache"] = "new_cache"


@dataclass(frozen=True)
class Drop:
    """Forget caches and stores, by their numbers."""

    numbers: Numbers
    model: Number = 0
    do: Literal["drop"] = "drop"


@dataclass(frozen=True)
class Rewind:
    """Take back the last `n` tokens of a cache."""

    cache: Number
    n: Number
    model: Number = 0
    do: Literal["rewind"] = "rewind"


@dataclass(frozen=True)
class Run:
    """Receive hidden states of chunks that follow one another, run them through the layers here, send them on.

    cache: its number, None for none. seen: the tokens that it has seen, as the leader knows it. wanted: how many of the
    last chunk's columns the leader gets, 0 for all; None for nothing. mask, positions: rows of a call's
    `attention_mask` and `position_ids`.
    """

    cache: Number | None
    seen: Number
    rows: Annotated[int, Ge(1), Lt(1 << 16)]
    lengths: Numbers
    wanted: Number | None
    mask: Rows | None = None
    positions: Rows | None = None
    model: Number = 0
    do: Literal["run"] = "run"


@dataclass(frozen=True)
class OpenStore:
    """Keep a prefix store, known by a number; the others are `PrefixStore`'s, the directory this host's own."""

    store: Number
    block_size: Number
    max_bytes: Bytes | None
    on_disk: bool
    max_disk_bytes: Bytes | None
    model: Number = 0
    do: Literal["open_store"] = "open_store"


@dataclass(frozen=True)
class Reach:
    """Answer with `Found`: how many of `tokens` the store could give a cache of."""

    store: Number
    owner: Text
    tokens: Numbers
    model: Number = 0
    do: Literal["reach"] = "reach"


@dataclass(frozen=True)
class Lookup:
    """Fill a cache, an empty one, with what the store has of `tokens`; answer with `Found`: how many those are."""

    store: Number
    owner: Text
    tokens: Numbers
    cache: Number
    model: Number = 0
    do: Literal["lookup"] = "lookup"


@dataclass(frozen=True)
class Insert:
    """Keep in the store what a cache has of `tokens`."""

    store: Number
    owner: Text
    tokens: Numbers
    cache: Number
    marks: Numbers = ()
    model: Number = 0
    do: Literal["insert"] = "insert"


@dataclass(frozen=True)
class Flush:
    """Answer with `Done` once the store's disk has all that it shall have."""

    store: Number
    model: Number = 0
    do: Literal["flush"] = "flush"


@dataclass(frozen=True)
class Beat:
    """The sender lives. finished: how many orders it has done, if it is a follower."""

    finished: Bytes = 0
    do: Literal["beat"] = "beat"


@dataclass(frozen=True)
class Facts:
    """What a follower is, before anything is loaded.

    problem: why it cannot take part, in a line. identity, samples: of the model, see `identity`. port: free at its ip.
    """

    version: Text
    mlx: Text
    device: Text
    memory: Bytes | None
    usable: Bytes | None
    bandwidth: Bytes
    identity: Text | None
    samples: dict[Text, Text]
    port: Number
    problem: Text | None = None
    do: Literal["facts"] = "facts"


@dataclass(frozen=True)
class Found:
    tokens: Number
    do: Literal["found"] = "found"


@dataclass(frozen=True)
class Done:
    """reads_experts: after a `Load`, whether experts are read from the SSD."""

    reads_experts: bool = False
    do: Literal["done"] = "done"


@dataclass(frozen=True)
class Failed:
    """The follower cannot go on, why in a line, and ends."""

    line: Text
    do: Literal["failed"] = "failed"


# What is told of a model that is loaded.
ModelOrder = NewCache | Drop | Rewind | Run | OpenStore | Reach | Lookup | Insert | Flush
Order = ModelOrder | Hello | Join | Load | Unload | Probe | Beat
Answer = Facts | Found | Done | Failed | Beat

T = TypeVar("T")


def to_line(message: Order | Answer) -> str:
    """A message as a line of JSON, with its newline."""
    return json.dumps(vars(message), separators=(",", ":")) + "\n"


class Reader(Generic[T]):
    """Reads the messages of a union; pydantic checks every field, and is imported here."""

    def __init__(self, kinds: object) -> None:
        from pydantic import Field, TypeAdapter

        self._adapter: TypeAdapter[T] = TypeAdapter(Annotated[kinds, Field(discriminator="do")])  # type: ignore[arg-type]

    def read(self, line: str) -> T:
        """HostError for what is none of them."""
        try:
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{len(line)} characters")
            return self._adapter.validate_json(line, strict=True)
        except ValueError as error:
            found = str(error).splitlines()[0]
            raise HostError(f"a message from another host makes no sense ({found}): is it the same version?") from None


def kept_of(quantization: KVQuantization | None) -> Kept | None:
    """How keys and values are kept, as an order says it."""
    return None if quantization is None else (quantization.bits, quantization.group_size, quantization.start)


def quantization_of(kept: Kept | None) -> KVQuantization | None:
    """What an order says of how keys and values are kept."""
    return None if kept is None else KVQuantization(*kept)


def one_line(error: BaseException) -> str:
    """What an error says."""
    return " ".join(str(error).split()) or type(error).__name__


def orders() -> Reader[Order]:
    return Reader(Order)


def answers() -> Reader[Answer]:
    return Reader(Answer)
