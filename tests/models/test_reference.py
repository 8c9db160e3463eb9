"""Logits equal those of Transformers, for every configuration of grid.py, however the tokens are fed."""

from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx import load_model
from afmoe_mlx.errors import InputError
from afmoe_mlx.models import CausalLM, Trace
from helpers.checkpoints import golden, write_golden
from helpers.grid import GRID, TRACED

TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=list(GRID))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def forms(name: str, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, CausalLM]:
    """The model fused and not."""
    folder = write_golden(tmp_path_factory.mktemp("m"), name)
    return {fuse: load_model(folder, fuse=fuse)[0] for fuse in (False, True)}


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def model(request: pytest.FixtureRequest, forms: dict[bool, CausalLM]) -> CausalLM:
    return forms[request.param]


def distance(ours: mx.array, theirs: np.ndarray) -> float:
    return float(np.abs(np.array(ours) - theirs).max())


def test_one_shot(model: CausalLM, name: str) -> None:
    arrays = golden(name).arrays
    assert distance(model(mx.array(arrays["ids"])), arrays["logits"]) < TOLERANCE


def test_chunks_then_single_tokens(model: CausalLM, name: str, request: pytest.FixtureRequest) -> None:
    """With the least slack where it is fused, with the default where not; tests/cache tries every slack."""
    slack = 0 if request.node.callspec.params["model"] else None
    arrays = golden(name).arrays
    ids, cache = mx.array(arrays["ids"]), model.make_cache(slack)
    edges = [0, 7, 14, 27, *range(28, ids.shape[1] + 1)]
    parts = [model(ids[:, a:b], cache=cache) for a, b in pairwise(edges)]
    assert distance(mx.concatenate(parts, axis=1), arrays["logits"]) < TOLERANCE
    assert cache.offset == ids.shape[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_in_one_shot(model: CausalLM, name: str, side: str) -> None:
    arrays = golden(name).arrays
    mask = arrays[f"mask_{side}"]
    logits = np.array(model(mx.array(arrays["padded_ids"]), attention_mask=mx.array(mask)))
    assert np.isfinite(logits).all()
    assert np.abs(logits - arrays[f"logits_{side}"])[mask == 1].max() < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_first_chunk_then_single_tokens_equal_each_row_alone(
    forms: dict[bool, CausalLM], name: str, side: str
) -> None:
    model = forms[True]
    arrays = golden(name).arrays
    mask, ids = arrays[f"mask_{side}"], arrays["padded_ids"]
    if side == "left" and getattr(model.config, "conv_bias", False):
        with pytest.raises(InputError, match="conv_bias"):
            model(mx.array(ids), attention_mask=mx.array(mask), cache=model.make_cache())
        return
    later = arrays["ids"][:1, :4].repeat(3, axis=0)
    cache = model.make_cache(2)
    first = np.array(model(mx.array(ids), attention_mask=mx.array(mask), cache=cache))
    steps = [model(mx.array(later[:, i : i + 1]), cache=cache) for i in range(later.shape[1])]
    rest = np.array(mx.concatenate(steps, axis=1))
    assert np.isfinite(first).all()
    assert cache.offsets.tolist() == (mask.sum(axis=1) + later.shape[1]).tolist()
    for row in range(3):
        real = ids[row][mask[row] == 1]
        alone = np.array(model(mx.array(np.concatenate([real, later[row]])[None])))[0]
        together = np.concatenate([first[row][mask[row] == 1], rest[row]])
        assert np.abs(together - alone).max() < TOLERANCE


@pytest.fixture(scope="module", params=TRACED)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, CausalLM]:
    folder: Path = write_golden(tmp_path_factory.mktemp("m"), request.param)
    return request.param, load_model(folder)[0]


def test_longer_text(traced: tuple[str, CausalLM]) -> None:
    name, model = traced
    arrays = golden(name).arrays
    assert distance(model(mx.array(arrays["long_ids"])), arrays["long_logits"]) < TOLERANCE


def test_loss_over_labels(traced: tuple[str, CausalLM]) -> None:
    name, model = traced
    arrays = golden(name).arrays
    loss, logits = model(mx.array(arrays["ids"]), labels=mx.array(arrays["labels"]))
    assert distance(loss, arrays["loss"]) < TOLERANCE
    assert distance(logits, arrays["logits"]) < TOLERANCE


def test_position_ids(traced: tuple[str, CausalLM]) -> None:
    name, model = traced
    arrays = golden(name).arrays
    logits = model(mx.array(arrays["ids"]), position_ids=mx.array(arrays["position_ids"]))
    assert distance(logits, arrays["positioned"]) < TOLERANCE


def test_inputs_embeds(traced: tuple[str, CausalLM]) -> None:
    name, model = traced
    arrays = golden(name).arrays
    embeddings = model.embed(mx.array(arrays["ids"]))
    assert distance(model(inputs_embeds=embeddings), arrays["logits"]) < TOLERANCE


def test_logits_to_keep(traced: tuple[str, CausalLM]) -> None:
    name, model = traced
    arrays = golden(name).arrays
    ids = mx.array(arrays["ids"])
    assert distance(model(ids, logits_to_keep=1), arrays["logits"][:, -1:]) < TOLERANCE
    assert distance(model(ids, logits_to_keep=mx.array([3, 30])), arrays["logits"][:, [3, 30]]) < TOLERANCE


def test_trace(traced: tuple[str, CausalLM]) -> None:
    name, model = traced
    arrays, trace = golden(name).arrays, Trace()
    model(mx.array(arrays["ids"]), trace=trace)
    for key in ("hidden_states", "attentions", "router_logits"):
        collected = getattr(trace, key)
        assert len(collected) == sum(other.startswith(key) for other in arrays)
        for i, value in enumerate(collected):
            assert distance(value, arrays[f"{key}_{i}"]) < TOLERANCE
    for logits, chosen in zip(trace.router_logits, trace.selected_experts, strict=True):
        assert chosen.shape == (logits.shape[0], model.config.num_experts_per_tok)
