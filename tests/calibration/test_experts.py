"""What calibration shows of a model: every expert's inputs, and the same output meanwhile."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx.calibration import calibrating
from afmoe_mlx.errors import InputError
from afmoe_mlx.models import CausalLM, fuse
from helpers.calibrated import CONFIGS
from helpers.grid import AFMOE_GRID, LFM2_GRID
from helpers.tiny import ARCHITECTURES, tiny, tokens


def model_of(model_type: str, name: str) -> CausalLM:
    return tiny(model_type, **{"afmoe": AFMOE_GRID, "lfm2_moe": LFM2_GRID}[model_type][name])


def difference(a: mx.array, b: mx.array) -> float:
    return mx.abs(a - b).max().item()


@pytest.mark.parametrize(("model_type", "name"), CONFIGS)
@pytest.mark.parametrize("all_experts", [True, False])
def test_the_output_is_the_same_while_all_experts_see_all_tokens(model_type: str, name: str, all_experts: bool) -> None:
    model, ids = model_of(model_type, name), tokens(2, 23)
    outside = model(ids)
    with calibrating(model, calibrate_all_experts=all_experts, observe=lambda *_: None):
        inside = model(ids)
    assert difference(inside, outside) < 2e-5
    assert mx.array_equal(model(ids), outside).item()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_leaving_restores_every_module_even_after_an_error(model_type: str) -> None:
    model = tiny(model_type)
    before = [(path, id(module)) for path, module in model.named_modules()]
    with pytest.raises(ZeroDivisionError), calibrating(model):
        raise ZeroDivisionError
    assert [(path, id(module)) for path, module in model.named_modules()] == before


def test_a_fused_model_is_refused_and_left_as_it_was() -> None:
    model, ids = fuse(tiny()), tokens(1, 5)
    before = model(ids)
    with pytest.raises(InputError, match="fuse=False"), calibrating(model, observe=lambda *_: None):
        pass
    assert mx.array_equal(model(ids), before).item()


class Shown:
    """What an observer is shown, by path and expert."""

    def __init__(self) -> None:
        self.x: dict[tuple[str, int | None], mx.array] = {}
        self.counts: dict[tuple[str, int | None], mx.array | None] = {}

    def __call__(self, path: str, expert: int | None, x: mx.array, counts: mx.array | None) -> None:
        self.x[path, expert], self.counts[path, expert] = x, counts


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_expert_and_every_linear_map_is_shown_every_token(model_type: str) -> None:
    model, shown = tiny(model_type), Shown()
    with calibrating(model, observe=shown):
        model(tokens(2, 23))
    paths = {path for path, _ in shown.x}
    expected = {
        name.removesuffix(".weight")
        for name, array in tree_flatten(model.parameters())
        if name.endswith("weight") and array.ndim in (2, 3) and not name.endswith("conv.conv.weight")
    }
    assert paths == expected - {"model.embed_tokens", "lm_head"} | ({"lm_head"} if "lm_head" in model else set())
    experts = [path for path in paths if ".experts." in path or ".switch_mlp." in path]
    assert len(experts) == 9  # three layers of three maps
    for path in experts:
        assert [shown.x[path, e].shape[0] for e in range(6)] == [46] * 6
        assert all((shown.counts[path, e] > 0).all().item() for e in range(6))
    assert all(x.shape[0] == 46 for x in shown.x.values())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_routed_only_counts_the_tokens_that_the_router_sent(model_type: str) -> None:
    model, everything, routed = tiny(model_type), Shown(), Shown()
    with calibrating(model, observe=everything):
        model(tokens(2, 23))
    with calibrating(model, calibrate_all_experts=False, observe=routed):
        model(tokens(2, 23))
    experts = [key for key in routed.counts if key[1] is not None and key[0].endswith("gate_proj")]
    assert sum((routed.counts[key] > 0).sum().item() for key in experts) == 3 * 46 * 2
    for key in experts:
        sent = routed.counts[key] > 0
        assert mx.array_equal(mx.where(sent, everything.counts[key], 0), routed.counts[key]).item()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_experts_inputs_are_those_of_its_own_weights(model_type: str) -> None:
    model, shown = tiny(model_type), Shown()
    with calibrating(model, observe=shown):
        model(tokens(1, 11))
    layer = model.model.layers[2]
    name, block = ("mlp", layer.mlp) if "mlp" in layer else ("feed_forward", layer.feed_forward)
    stack = "experts" if "experts" in block else "switch_mlp"
    path = f"model.layers.2.{name}.{stack}"
    for expert in range(6):
        x = shown.x[f"{path}.gate_proj", expert]
        gate, up = (x @ block[stack][part].weight[expert].T for part in ("gate_proj", "up_proj"))
        assert difference(shown.x[f"{path}.down_proj", expert], gate * mx.sigmoid(gate) * up) < 1e-5
