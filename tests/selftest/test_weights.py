"""The self-test's models: the same numbers in every dtype, and no choice of experts that a rounding could turn."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx.models import Trace
from afmoe_mlx.selftest.limits import DTYPES
from afmoe_mlx.selftest.models import CONFIGS, TinyModel, text
from afmoe_mlx.selftest.twin import ALL_WAYS

# Scores are between 0 and 1; a bfloat16 that was rounded a hundred times is off by 0.04.
MARGIN = 0.1


def router_margin(tiny: TinyModel, mode: str | None) -> float:
    """How far the last expert chosen for any token, in any layer, is before the first that is not."""
    model, trace = tiny.plain(mode), Trace()
    model(mx.array([text()]), trace=trace)
    sparse = [layer.mlp if "mlp" in layer else layer.feed_forward for layer in model.model.layers[1:]]
    ranked = [
        mx.sort(mx.sigmoid(logits) + mlp.expert_bias, axis=-1)
        for mlp, logits in zip(sparse, trace.router_logits, strict=True)
    ]
    k = tiny.config.num_experts_per_tok
    return min(float((scores[:, -k] - scores[:, -k - 1]).min()) for scores in ranked)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_expert_is_chosen_by_a_hair(name: str) -> None:
    tiny = TinyModel(name)
    for mode in (None, "affine") if name in ALL_WAYS else (None,):
        assert router_margin(tiny, mode) > MARGIN


def test_tokens_choose_every_expert_and_many_pairs_of_them() -> None:
    model, trace = TinyModel("LFM2").plain(), Trace()
    model(mx.array([text()]), trace=trace)
    for chosen in trace.selected_experts:
        pairs = {tuple(sorted(pair)) for pair in chosen.tolist()}
        assert len(pairs) > 15
        assert {expert for pair in pairs for expert in pair} == set(range(model.config.num_experts))


@pytest.mark.parametrize("name", ALL_WAYS)
@pytest.mark.parametrize("mode", [None, "affine"])
def test_every_dtype_holds_the_same_weights(name: str, mode: str | None) -> None:
    tiny = TinyModel(name)
    exact = dict(tree_flatten(tiny.loaded(mx.float32, mode, fused=False).parameters()))
    for dtype in DTYPES.values():
        found = dict(tree_flatten(tiny.loaded(dtype, mode, fused=False).parameters()))
        assert found.keys() == exact.keys()
        assert {a.dtype for path, a in found.items() if path.endswith("norm.weight")} == {dtype}
        for path, array in found.items():
            assert mx.array_equal(array.astype(exact[path].dtype), exact[path]), path


def test_weights_are_what_they_have_always_been() -> None:
    """Of the same bytes on every machine: else the goldens mean nothing there."""
    model = TinyModel("Trinity Nano").plain()
    assert text(6) == [14, 29, 4, 31, 61, 37]
    assert (model.model.layers[1].self_attn.q_proj.weight[0, :4] * 2048).tolist() == [-181, 255, -221, 77]
    assert (model.model.embed_tokens.weight[5, :4] * 512).tolist() == [160, -25, 31, -152]
