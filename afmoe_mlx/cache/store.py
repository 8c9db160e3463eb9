"""`PrefixStore`, the prefix cache: sequences that begin with the same tokens share what was computed for them."""

import copy
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import device
from ..errors import CacheError, InputError
from .blocks import SHORT, Block, BlocksInMemory, Layout, block_ends, block_key
from .cache import Cache
from .disk import BlocksOnDisk
from .elsewhere import Elsewhere
from .fingerprint import fingerprint

Tokens = Sequence[int] | mx.array

# What part of the memory or disk that is free when a store is made it may take, unless told.
MEMORY_SHARE, DISK_SHARE = 4, 10
# Free memory to reckon with where the device does not tell.
UNTOLD_MEMORY = 4 << 30


class PrefixStore:
    """The prefix cache: keys and values of every sequence seen, in blocks of tokens that all sequences with the same
    beginning share.

    A block has `block_size` tokens, but the first is cut into blocks of 32, so that short prompts are found as well.
    `insert` keeps what a cache holds, `lookup` gives a cache of the longest beginning known. Memory holds at most
    `max_bytes` (a quarter of what is free, unless told); the least recently used goes first. With a `directory`, blocks
    are written there too, at most `max_disk_bytes` of all models together (a tenth of what is free), and found again by
    other stores and processes. A store is for one thread, and for a model that does not change.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_bytes: int | None = None,
        directory: str | Path | None = None,
        max_disk_bytes: int | None = None,
        block_size: int = 256,
    ) -> None:
        for name, value, least in (
            ("max_bytes", max_bytes, 0),
            ("max_disk_bytes", max_disk_bytes, 0),
            ("block_size", block_size, 1),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(f"{name} is {value!r}: expected an integer, {least} or more")
        self.model, self.block_size = model, block_size
        self.directory = None if directory is None else Path(directory).expanduser()
        self._max_disk_bytes = max_disk_bytes
        self._layout = Layout(model.make_cache())
        self._memory = BlocksInMemory(self._layout, _free_memory() if max_bytes is None else max_bytes)
        self._disk: BlocksOnDisk | None = None
        beyond, on_disk = getattr(model, "beyond", None), directory is not None
        self._elsewhere: Elsewhere | None = beyond and beyond.open_store(
            block_size=block_size, max_bytes=max_bytes, on_disk=on_disk, max_disk_bytes=max_disk_bytes
        )
        self._owner = ""
        self._root = b""  # the parent of first blocks, known once the weights have been read

    def for_owner(self, owner: str) -> "PrefixStore":
        """The same store for one of several owners: none finds, or can tell by the time it takes, what another keeps.

        Memory, disk and the order in which blocks are evicted are those of all; "" is the owner of this store's own.
        """
        self._open()
        other = copy.copy(self)
        if owner:
            other._root, other._owner = block_key(self._root, owner.encode()), owner
        return other

    @property
    def max_bytes(self) -> int:
        return self._memory.max_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of columns in memory."""
        return self._memory.nbytes

    @property
    def counters(self) -> dict[str, int]:
        """Blocks in memory; files written, not written for an error, and skipped because they are damaged."""
        disk = self._disk
        files = (disk.written, disk.failed, disk.damaged) if disk else (0, 0, 0)
        return {"blocks": len(self._memory)} | dict(zip(("written", "failed", "damaged"), files, strict=True))

    def lookup(self, tokens: Tokens, *, slack: int | None = None) -> tuple[Cache, int]:
        """A new cache that holds the first n of `tokens`, ready to continue, and n, which leaves one token at least.

        slack: as in `model.make_cache`. Raises InputError for no tokens.
        """
        ids = _ids(tokens)
        if not ids:
            raise InputError("no tokens to look up: expected one at least")
        cache = self.model.make_cache(slack)
        if self._elsewhere is None:
            return cache, self.fill(ids, cache)
        ids = ids[: self.reach(ids) + 1]
        if len(ids) > 1 and {self.fill(ids, cache), self._elsewhere.fill(self._owner, ids, cache)} != {len(ids) - 1}:
            cache = self.model.make_cache(slack)  # a file was damaged: they would not go on from the same token
        return cache, cache.offset

    def fill(self, tokens: Tokens, cache: Cache) -> int:
        """Fill an empty cache of the model with what is known of `tokens`, all but the last: how many that is."""
        chain = self._loaded(self._known(_ids(tokens)[:-1]))
        if chain:
            self._layout.fill(cache, chain)
            self._keep(chain)
        return cache.offset

    def reach(self, tokens: Tokens) -> int:
        """How many of `tokens` a cache from `lookup` would hold, should no file be damaged."""
        ids = _ids(tokens)
        while True:
            chain = self._resumable(self._known(ids[:-1]))
            found = chain[-1].end if chain else 0
            if self._elsewhere is None or not found:
                return found
            ids = ids[: found + 1]
            least = self._elsewhere.reach(self._owner, ids)
            if least == found:
                return found
            ids = ids[: least + 1]

    def insert(self, tokens: Tokens, cache: Cache, *, marks: Iterable[int] = ()) -> None:
        """Keep what `cache` holds of `tokens`, the first that it has seen, in whole blocks; costs little if known.

        marks: positions before which recent columns are kept as long as may be, the ends of turns and of the system
        prompt. Raises CacheError for a cache of several rows, with padding, of other layers or of fewer tokens.
        """
        ids, marks = _ids(tokens), tuple(marks)
        self._check(ids, cache)
        chain: list[Block] = []
        fresh: list[Any] = []
        start = self._layout.recent_start(cache)
        for block in self._blocks(ids):
            if block.whole is None:
                block.stored = self._disk.find(block) if self._disk else None
                block.whole = self._layout.read_whole(cache, block)
                fresh.append(block.whole)
            columns = self._layout.recent_columns(block, start)
            if columns > block.held:
                self._memory.set_recent(block, self._layout.read_recent(cache, block, columns), columns)
                fresh.append(block.recent)
            chain.append(block)
        mx.async_eval(fresh)
        for mark in marks:
            if before := [block for block in chain if block.end <= mark]:
                before[-1].is_marked = True
        if self._disk:
            for block in chain:
                if block.stored is None or block.held > block.stored:
                    self._disk.write(block)
        self._keep(chain)
        if self._elsewhere:
            self._elsewhere.insert(self._owner, ids, cache, marks)

    def flush(self) -> None:
        """Wait until the disk has all that it shall have."""
        if self._elsewhere:
            self._elsewhere.flush()
        if self._disk:
            self._disk.flush()

    def _check(self, ids: "array[int]", cache: Cache) -> None:
        if cache.batch_size not in (None, 1) or any(cache.left_padding):
            raise CacheError(f"the cache has {cache.batch_size} rows or padding: a prefix store takes one row without")
        if not self._layout.fits(cache):
            raise CacheError("the cache is of another model than the prefix store")
        if len(ids) > cache.offset:
            raise CacheError(f"the cache has seen {cache.offset} tokens, not the {len(ids)} given")

    def _open(self) -> None:
        """Read the weights' identity, when it is first needed; without a directory any will do."""
        if self._root:
            return
        identity = os.urandom(32) if self.directory is None else fingerprint(self.model)
        if self.directory is not None:
            budget = _free_disk(self.directory) if self._max_disk_bytes is None else self._max_disk_bytes
            self._disk = BlocksOnDisk(self.directory, budget, identity, self._layout)
        self._root = block_key(identity, self.block_size.to_bytes(8, "little") + SHORT.to_bytes(8, "little"))

    def _blocks(self, ids: "array[int]") -> Iterator[Block]:
        """The blocks of a sequence, as they are in memory, or new and empty."""
        self._open()
        parent: Block | None = None
        for depth, end in enumerate(block_ends(len(ids), self.block_size), 1):
            tokens = ids[parent.end if parent else 0 : end].tobytes()
            key = block_key(parent.key if parent else self._root, tokens)
            parent = self._memory.find(key, parent, tokens) or Block(key, parent, tokens, depth, end)
            yield parent

    def _known(self, ids: "array[int]") -> list[Block]:
        """The blocks of a sequence that are in memory or on disk, up to the first that is not."""
        chain = []
        for block in self._blocks(ids):
            if block.whole is None:
                block.stored = self._disk.find(block) if self._disk else None
                if block.stored is None:
                    break
            chain.append(block)
        return chain

    def _loaded(self, chain: list[Block]) -> list[Block]:
        """As much of a sequence as can be continued from, with the columns that takes in memory."""
        while True:
            chain = self._resumable(chain)
            lost = next((block for block in chain if not self._load_whole(block)), None)
            if lost is not None:
                del chain[lost.depth - 1 :]
            elif all(self._load_recent(*need) for need in (self._layout.needs(chain[-1]) if chain else ())):
                return chain

    def _resumable(self, chain: list[Block]) -> list[Block]:
        """A sequence's blocks up to the last that it can be continued after."""
        while chain and not self._layout.is_resumable(chain[-1]):
            chain.pop()
        return chain

    def _load_whole(self, block: Block) -> bool:
        if block.whole is None and self._disk:
            block.whole = self._disk.read(block, "whole")
        return block.whole is not None

    def _load_recent(self, block: Block, columns: int) -> bool:
        if block.held < columns and self._disk:
            recent = self._disk.read(block, "recent")
            held = recent[0][0].shape[-2] if recent else 0
            block.stored = None if recent is None else held
            if held > block.held:
                self._memory.set_recent(block, recent or (), held)
        return block.held >= columns

    def _keep(self, chain: list[Block]) -> None:
        self._memory.keep(chain)
        if self._disk:
            self._disk.touch(chain)


def _ids(tokens: Tokens) -> "array[int]":
    try:
        return array("i", tokens.tolist() if isinstance(tokens, mx.array) else tokens)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        raise InputError("the tokens are not a list of token ids") from None


def _free_memory() -> int:
    usable = device.memory().usable
    return (UNTOLD_MEMORY if usable is None else usable) // MEMORY_SHARE


def _free_disk(directory: Path) -> int:
    """A share of what is free on the disk of a directory, which may have to be made yet."""
    import shutil

    for folder in (directory, *directory.parents):
        try:
            return shutil.disk_usage(folder).free // DISK_SHARE
        except OSError:
            continue
    return 0
