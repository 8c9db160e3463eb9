"""The processes that train together, one or those that `mlx.launch` has begun."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map


class Group:
    """This process and the others, of which each has its share of a batch."""

    def __init__(self) -> None:
        self._world = mx.distributed.init()

    @property
    def rank(self) -> int:
        return self._world.rank()

    @property
    def size(self) -> int:
        return self._world.size()

    def sum(self, array: mx.array) -> mx.array:
        """Of each process's array."""
        return array if self.size == 1 else mx.distributed.all_sum(array, stream=mx.cpu)

    def agrees(self, number: int) -> bool:
        """Whether the number is the same in each process."""
        return self.sum(mx.array(number)).item() == number * self.size

    def sum_gradients(self, gradients: dict) -> dict:
        """Of each process's gradients, of which small ones travel together."""
        if self.size == 1:
            return gradients
        return tree_map(lambda g: g * self.size, nn.average_gradients(gradients))
