"""The prefix cache in memory: a tree of token blocks with their keys and values, and which of them are evicted.

Layers of two kinds: *whole* layers need every column before a token, *recent* layers the last `history` of them. At
the end of a block a sequence can be continued if it and all blocks before it hold the whole layers' columns, and the
last of them the recent layers' `history` columns.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .buffers import Arrays
from .cache import Cache

Columns = tuple[Arrays, ...]
"""The arrays of some layers, a tuple for each."""

# Tokens of the blocks that the first whole one is cut into, so that short prompts share their beginnings too.
SHORT = 32


@dataclass(eq=False)
class Block:
    """A node of the prefix cache: some tokens after those of its parent, and their keys and values (columns)."""

    key: bytes
    parent: "Block | None"
    tokens: bytes
    depth: int
    """Blocks from the first to this one."""
    end: int
    """Tokens from the first to its last."""
    whole: Columns | None = None
    """The columns of the whole layers; None while they are on disk alone."""
    recent: Columns = ()
    held: int = 0
    """How many of its last columns `recent` has."""
    stored: int | None = None
    """How many of them its file has; None without a file."""
    children: int = 0
    """How many blocks in memory follow it."""
    is_held: bool = False
    """Whether it is in memory, for sequences to come."""
    is_marked: bool = False
    """Whether a turn or the system prompt ends within the block after it."""

    @property
    def size(self) -> int:
        """How many tokens it has."""
        return self.end - (self.parent.end if self.parent else 0)

    @property
    def available(self) -> int:
        return max(self.held, self.stored or 0)

    @property
    def nbytes(self) -> int:
        return nbytes(self.whole or ()) + nbytes(self.recent)

    def upward(self) -> Iterator["Block"]:
        """This block, its parent and so on."""
        block: Block | None = self
        while block is not None:
            yield block
            block = block.parent


def nbytes(columns: Columns) -> int:
    return sum(array.nbytes for arrays in columns for array in arrays)


def last_columns(columns: Columns, count: int) -> Columns:
    """Copies of the last `count` columns."""
    if not count:
        return ()
    kept = tuple(tuple(mx.contiguous(array[..., -count:, :]) for array in arrays) for arrays in columns)
    mx.async_eval(kept)
    return kept


def block_ends(length: int, size: int) -> Iterator[int]:
    """Where the blocks of `length` tokens end: every SHORT tokens within the first `size`, then every `size`."""
    yield from range(SHORT, min(size, length + 1), SHORT)
    yield from range(size, length + 1, size)


def block_key(parent: bytes, tokens: bytes) -> bytes:
    return hashlib.sha256(parent + tokens).digest()


class Layout:
    """Which columns of each layer a block holds, and copying them from a model's cache to blocks and back."""

    def __init__(self, cache: Cache) -> None:
        self.whole = [i for i, layer in enumerate(cache.layers) if layer.history is None]
        self.recent = [i for i, layer in enumerate(cache.layers) if layer.history is not None]
        # at least one, so that a layer that needs none still learns the shape of its arrays
        self.history = max((cache.layers[i].history or 1 for i in self.recent), default=0)
        self.layers = [(layer.layout, layer.history) for layer in cache.layers]
        self._empty = cache.layers

    def needs(self, end: Block) -> Iterator[tuple[Block, int]]:
        """The blocks whose recent columns a continuation after `end` needs, and how many of the last of each."""
        missing = min(self.history, end.end)
        for block in end.upward():
            if missing <= 0:
                return
            yield block, min(missing, block.size)
            missing -= block.size

    def is_resumable(self, end: Block) -> bool:
        """Whether a sequence can be continued after `end`, with what memory and disk hold."""
        return all(block.available >= columns for block, columns in self.needs(end))

    def fits(self, cache: Cache) -> bool:
        """Whether a cache has this layout."""
        return [(layer.layout, layer.history) for layer in cache.layers] == self.layers

    def recent_start(self, cache: Cache) -> int:
        """The position of the first column that all recent layers of a cache hold."""
        return max((cache.layers[i].start for i in self.recent), default=0)

    def recent_columns(self, block: Block, start: int) -> int:
        """How many recent columns a block takes of a cache that holds those from position `start` on."""
        return max(0, min(block.end - start, block.size, self.history))

    def read_whole(self, cache: Cache, block: Block) -> Columns:
        return tuple(cache.layers[i].copy(block.end - block.size, block.end) for i in self.whole)

    def read_recent(self, cache: Cache, block: Block, columns: int) -> Columns:
        end = block.end
        return tuple(cache.layers[i].copy(end - columns, end) for i in self.recent) if columns else ()

    def accepts(self, header: Mapping[str, Any], block: Block) -> bool:
        """Whether a file's header describes this block of this model."""
        held = header.get("held")
        return (
            isinstance(held, int)
            and self._accepts(header["whole"], self.whole, block.size)
            and self._accepts(header["recent"], self.recent if held else [], held)
        )

    def _accepts(self, described: list[Any], layers: list[int], columns: int) -> bool:
        shapes = [[shape for _, shape in arrays] for arrays in described]
        return len(shapes) == len(layers) and all(
            self._empty[i].accepts(tuple(map(len, arrays))) and all(s[0] == 1 and s[-2] == columns for s in arrays)
            for i, arrays in zip(layers, shapes, strict=True)
        )

    def fill(self, cache: Cache, chain: Sequence[Block]) -> None:
        """Make an empty cache hold what the blocks of `chain` do, all the recent columns that it keeps included."""
        end = chain[-1].end
        for n, i in enumerate(self.whole):
            cache.layers[i].fill([block.whole[n] for block in chain if block.whole], end)
        last: list[Block] = []
        for block in reversed(chain):
            if block.held:
                last.insert(0, block)
            if block.held < block.size:
                break
        for n, i in enumerate(self.recent):
            cache.layers[i].fill([block.recent[n] for block in last], end)


class BlocksInMemory:
    """The blocks in memory, in at most `max_bytes`: the least recently used are evicted, no parent before its children.

    When room is needed, recent columns go first, except where a mark or the end of a sequence needs them; then blocks
    that none follows; then what the marks of the sequence in use protect.
    """

    def __init__(self, layout: Layout, max_bytes: int) -> None:
        self.layout, self.max_bytes = layout, max_bytes
        self.nbytes = 0
        self._blocks: dict[bytes, Block] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, key: bytes, parent: Block | None, tokens: bytes) -> Block | None:
        """The block with these tokens after `parent`; a hash alone is not believed."""
        block = self._blocks.get(key)
        return block if block and block.parent is parent and block.tokens == tokens else None

    def keep(self, chain: Sequence[Block]) -> None:
        """Hold a sequence's blocks, as far as there is room for them, as the most recently used."""
        for block in chain:
            held = self._blocks.pop(block.key, block)
            self._blocks[block.key] = held
            if held is not block:
                break  # another block with the same hash: it stays
            if not block.is_held:
                block.is_held = True
                self.nbytes += block.nbytes
                if block.parent is not None:
                    block.parent.children += 1
        self._make_room([block for block in chain if block.is_held])

    def set_recent(self, block: Block, recent: Columns, held: int) -> None:
        """Give a block, in memory or not, other recent columns."""
        before = block.nbytes
        block.recent, block.held = recent, held
        if block.is_held:
            self.nbytes += block.nbytes - before

    def _make_room(self, chain: Sequence[Block]) -> None:
        """Come down to `max_bytes`; `chain` is the sequence in use."""
        if self.nbytes <= self.max_bytes:
            return
        chain = self._cut(chain)
        ends = [block for block in self._blocks.values() if block.is_marked or not block.children]
        self._trim([*ends, *chain[-1:]])
        self._evict(set(chain))
        self._trim(chain[-1:])
        self._evict(set())

    def _cut(self, chain: Sequence[Block]) -> Sequence[Block]:
        """What there could be room for of a sequence, alone and as lean as can be, up to a place to continue from."""
        column = max((nbytes(block.recent) // block.held for block in chain if block.held), default=0)
        whole = sum(nbytes(block.whole or ()) for block in chain)
        history = self.layout.history
        fitting = len(chain)
        while fitting and whole + min(chain[fitting - 1].end, history) * column > self.max_bytes:
            fitting -= 1
            whole -= nbytes(chain[fitting].whole or ())
        if fitting == len(chain):
            return chain
        while fitting and not self.layout.is_resumable(chain[fitting - 1]):
            fitting -= 1
        for block in reversed(chain[fitting:]):
            if not block.children:
                self._drop(block)
        return chain[:fitting]

    def _trim(self, ends: Iterable[Block]) -> None:
        """Let go of recent columns that no continuation after one of `ends` needs, while there is too much."""
        needed: dict[Block, int] = {}
        for end in ends:
            if self.layout.is_resumable(end):
                for block, columns in self.layout.needs(end):
                    needed[block] = max(columns, needed.get(block, 0))
        for block in list(self._blocks.values()):
            if self.nbytes <= self.max_bytes:
                return
            kept = needed.get(block, 0)
            if block.held > kept:
                self.set_recent(block, last_columns(block.recent, kept), kept)

    def _evict(self, spared: set[Block]) -> None:
        """Drop blocks that none follows, while there is too much: first those that lead nowhere."""
        while self.nbytes > self.max_bytes:
            leaves = [block for block in self._blocks.values() if not block.children and block not in spared]
            if not leaves:
                return
            self._drop(next((block for block in leaves if not self.layout.is_resumable(block)), leaves[0]))

    def _drop(self, block: Block) -> None:
        del self._blocks[block.key]
        block.is_held = False
        self.nbytes -= block.nbytes
        if block.parent is not None:
            block.parent.children -= 1
