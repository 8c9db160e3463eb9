"""The protocols that are spoken: all `Endpoint`s."""

from collections.abc import Sequence

from .endpoint import Endpoint

ENDPOINTS: Sequence[Endpoint] = ()
