"""A model whose later layers are followers' gives what the whole model gives."""

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx.models import fuse
from helpers.hosts import split
from helpers.tiny import tiny

IDS = mx.array(np.random.default_rng(0).integers(0, 40, (1, 40)))


@pytest.mark.parametrize("model_type", ["afmoe", "lfm2_moe"])
@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_steps_and_rewinds_give_the_logits_of_the_whole_model(model_type: str, compiled: bool) -> None:
    model = tiny(model_type)
    led, crew = split(lambda: tiny(model_type), [len(model.layers) - 1])
    fuse(model)
    for made in (model, led, *(follower.model for follower in crew.followers)):
        made.compiles_decode = compiled
    caches = [made.make_cache(8) for made in (model, led)]
    for start, end in ((0, 12), (12, 13), (13, 17)):
        found = [made(IDS[:, start:end], cache=c) for made, c in zip((model, led), caches, strict=True)]
        assert mx.abs(found[0] - found[1]).max().item() < 1e-5
    for cache in caches:
        cache.rewind(3)
    for start, end in ((14, 30), (30, 31), (31, 40)):
        found = [made(IDS[:, start:end], cache=c) for made, c in zip((model, led), caches, strict=True)]
        assert mx.abs(found[0] - found[1]).max().item() < 1e-5
    assert mx.abs(model(IDS) - led(IDS)).max().item() < 1e-5
