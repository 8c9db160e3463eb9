"""Second moments of the inputs of linear maps."""

import mlx.core as mx

# Tokens whose inputs are computed with at a time.
PIECE = 2048


class Moments:
    """Σ w x xᵀ of inputs x (in,) that count w: the matrix (in, in) float32, or its diagonal (in,) alone."""

    def __init__(self, width: int, *, is_full: bool) -> None:
        self._is_full = is_full
        self.sum = mx.zeros((width, width) if is_full else (width,))

    def add(self, x: mx.array, counts: mx.array | None = None) -> None:
        """x (N, in); counts (N,), None for 1 each."""
        x = x.astype(mx.float32)
        weighted = x if counts is None else x * counts[:, None]
        self.sum = self.sum + (weighted.T @ x if self._is_full else (weighted * x).sum(axis=0))
        mx.eval(self.sum)


class Inputs:
    """An `Observer` for `calibrating` that keeps the inputs of one map, and what they count."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: list[mx.array] = []
        self._counts: list[mx.array] = []

    def __call__(self, path: str, expert: int | None, x: mx.array, counts: mx.array | None) -> None:
        if path != self._path:
            return
        if not expert:  # all experts have the same inputs
            self._seen.append(x)
        if counts is not None:
            self._counts.append(counts)

    def take(self) -> tuple[mx.array, mx.array | None]:
        """The inputs (N, in) of one run, and what they count for each expert, (N, E), None where there are none."""
        (x,), counts = self._seen, self._counts
        self._seen, self._counts = [], []
        return x, mx.stack(counts, axis=-1) if counts else None
