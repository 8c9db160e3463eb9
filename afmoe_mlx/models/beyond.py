"""`Beyond`: the layers of a model that follow those in this process, wherever they are."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import mlx.core as mx

from ..cache import Cache, Elsewhere, KVCache, KVQuantization
from .chunk import Chunk


class Beyond(Protocol):
    """What a model whose `part` ends before its last layer goes on with."""

    @property
    def parts(self) -> Sequence[tuple[str, range]]:
        """Where all layers are, these here first: names of hosts."""
        ...

    def make_cache(self, layers: Sequence[KVCache], slack: int | None, kv_quantization: KVQuantization | None) -> Cache:
        """An empty cache, of which `layers` are here; the arguments of `CausalLM.make_cache` make the others."""
        ...

    def open_store(
        self, *, block_size: int, max_bytes: int | None, on_disk: bool, max_disk_bytes: int | None
    ) -> Elsewhere:
        """Where the columns of other layers are kept beside a prefix store here, made with these arguments."""
        ...

    def check(self, cache: Cache) -> None:
        """Refuse a cache that `make_cache` has not made, with a CacheError."""
        ...

    def at_once(self) -> AbstractContextManager[None]:
        """In which the layers here and those beyond take the same tokens, whatever signal comes."""
        ...

    def __call__(self, h: Sequence[mx.array], chunks: Sequence[Chunk], wanted: int | None) -> mx.array | None:
        """The last layer's output of the last `wanted` tokens of the last chunk (0: all); None if None are wanted.

        h: hidden states (B, L, D), in the aligned columns, of chunks that follow one another.
        """
        ...
