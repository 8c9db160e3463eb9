"""A budget for experts is kept, spent well, and refused where it is too small; "auto" leaves the system its part."""

from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from afmoe_mlx import device, load, load_model
from afmoe_mlx.errors import FitError, InputError
from afmoe_mlx.footprint import ExpertMemory, place_experts
from afmoe_mlx.models import CausalLM
from helpers.tiny import ARCHITECTURES, tiny_folder

MEMORY = ExpertMemory(16, 4, [100, 100, 300, 100], [60, 60, 200, 60])


def bytes_of_experts(model: CausalLM) -> int:
    """In memory: of the layers that hold all, and of the slots of the others."""
    pools = sum(pool.slots * pool.expert_bytes for pool in model.expert_pools)
    named = dict(tree_flatten(model.parameters()))
    return pools + sum(a.nbytes for name, a in named.items() if ".experts." in name or "switch_mlp" in name)


@given(st.integers(MEMORY.least, MEMORY.total - 1))
def test_a_placement_keeps_its_budget_and_more_memory_is_never_slower(budget: int) -> None:
    placed, more = MEMORY.within(budget), MEMORY.within(budget + 100)
    assert placed.resident <= budget
    assert placed.placement is not None
    assert 2 <= placed.placement.slots < 16
    assert more.seconds_per_token(3e9) <= placed.seconds_per_token(3e9)


def test_what_is_enough_for_all_has_no_pool_and_too_little_says_the_least() -> None:
    assert MEMORY.within(MEMORY.total).placement is None
    with pytest.raises(InputError, match=r"expected 0\.0 MB at least, 2 experts in each of 4 layers"):
        MEMORY.within(MEMORY.least - 1)


def test_whole_layers_are_held_where_nearly_all_fits_and_slots_in_all_where_half_does() -> None:
    large = ExpertMemory(128, 8, [3_540_000] * 30, [3_540_000] * 30)
    nearly, half = (large.within(int(share * large.total)).placement for share in (0.95, 0.5))
    assert nearly is not None
    assert half is not None
    assert nearly.whole_layers > 20
    assert half.whole_layers == 0


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_loaded_model_holds_what_its_budget_allows(tmp_path: Path, model_type: str) -> None:
    folder = tiny_folder(tmp_path / "model", model_type, num_shared_experts=0) if model_type == "afmoe" else None
    folder = folder or tiny_folder(tmp_path / "model", model_type)
    whole = bytes_of_experts(load(folder)[0])
    for share in (0.4, 0.7, 0.9):
        model, _ = load(folder, experts_in_memory=int(share * whole))
        assert model.reads_experts
        assert 0.2 * share * whole < bytes_of_experts(model) <= share * whole
    model, _ = load(folder, experts_in_memory=whole)
    assert not model.reads_experts
    assert bytes_of_experts(model) == whole


def test_auto_takes_no_pool_where_all_fits_and_else_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "model", num_experts=64, moe_intermediate_size=32)
    assert not load(folder, experts_in_memory="auto")[0].reads_experts
    whole = bytes_of_experts(load(folder)[0])

    def fitting(usable: int) -> CausalLM:
        monkeypatch.setattr(device, "memory", lambda: device.Memory(usable, usable))
        return load(folder, context=64, experts_in_memory="auto")[0]

    with pytest.raises(FitError):
        fitting(100_000)
    needs = 3_300_000
    monkeypatch.setattr(device, "memory", lambda: device.Memory(needs, needs))
    with pytest.raises(FitError, match=r"--experts-in-memory auto") as refused:
        load(folder, context=64)
    assert "tokens/s" in str(refused.value)
    model = fitting(needs)
    assert model.reads_experts
    assert bytes_of_experts(model) < whole


def test_auto_leaves_room_for_the_caches_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path / "model", num_experts=64, moe_intermediate_size=32)
    monkeypatch.setattr(device, "memory", lambda: device.Memory(3_300_000, 3_300_000))
    held = []
    for rows in (1, 3):
        place = place_experts("auto", context=64, rows=rows)
        assert place is not None
        held.append(bytes_of_experts(load_model(folder, place=place)[0]))
    assert held[0] > held[1]


@pytest.mark.parametrize("given", [0, -5, True, "2GB", 1.5])
def test_what_is_no_budget_is_refused(given: object) -> None:
    with pytest.raises(InputError, match='expected a number of bytes, "auto" or None'):
        load("demo", experts_in_memory=given)  # type: ignore[call-overload]


def test_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "writes_in_place", lambda: False)
    with pytest.raises(InputError, match="CUDA"):
        load("demo", experts_in_memory=1 << 20)


def test_nothing_asked_for_is_as_it_was() -> None:
    model, _ = load("demo")
    assert not model.reads_experts
    assert model.expert_reads.hits == model.expert_reads.misses == 0
    assert model(mx.array([[1, 2]])).shape[1] == 2
