"""The rotation kernel and its twin of plain operations agree."""

import mlx.core as mx
import pytest

from afmoe_mlx.models.rope import Rope, RopeParameters, rotate
from helpers.grid import LINEAR, LLAMA3, YARN

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("parameters", [DEFAULT, LINEAR, LLAMA3, YARN], ids=lambda p: p["rope_type"])
@pytest.mark.parametrize("offset", [0, 37, (5, 0, 300)])
def test_the_kernel_and_plain_operations_agree(parameters: dict, offset: int | tuple[int, ...]) -> None:
    rope = Rope(16, RopeParameters(**parameters))
    x = mx.random.normal((3, 2, 20, 16), key=mx.random.key(0))
    start = mx.array(offset)
    plain = rotate(x, *rope.tables(mx.arange(20) + start.reshape(-1, 1)))
    assert mx.allclose(rope(x, (start,)), plain, atol=1e-4)
