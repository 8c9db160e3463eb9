"""The self-test finds nothing wrong where all is well, and names what is broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx import device
from afmoe_mlx.models import moe, read_config
from afmoe_mlx.models.shapes import shape
from afmoe_mlx.selftest import check, limits
from afmoe_mlx.selftest.anonymous import in_one_line
from afmoe_mlx.selftest.check import Check, Result
from afmoe_mlx.selftest.limits import difference
from afmoe_mlx.selftest.models import CONFIGS
from afmoe_mlx.selftest.operations import HEADS, operations
from afmoe_mlx.selftest.suite import GOLDEN_STEP, GOLDENS, checks
from afmoe_mlx.selftest.twin import Twin, from_child

OPERATIONS = {operation.name for operation in operations()}
ATTENTION = "mx.fast.scaled_dot_product_attention"
# These have more heads than the two others, and nothing else.
COSTLY = {f"{ATTENTION}, Trinity Mini", f"{ATTENTION}, Trinity Large"}


@pytest.fixture(scope="module")
def twin() -> Twin:
    """As the program has it, from a child process."""
    return from_child()


@pytest.fixture(scope="module")
def every() -> list[Check]:
    return list(checks())


def made(twin: Twin, chosen: list[Check]) -> dict[str, Result]:
    """Results by name and dtype."""
    assert chosen
    return {f"{check.name}, {check.dtype}": check.make(twin) for check in chosen}


def failed(results: dict[str, Result]) -> set[str]:
    return {name for name, result in results.items() if result.is_failed}


def worst(results: dict[str, Result]) -> float:
    return max(result.difference for result in results.values() if result.difference is not None)


def test_a_sound_device_passes_every_operation(twin: Twin, every: list[Check]) -> None:
    chosen = [c for c in every if c.name in OPERATIONS and c.dtype != "float16"]
    results = made(twin, chosen)
    assert failed(results) == set()
    assert {result.name for result in results.values() if result.difference is not None} == OPERATIONS


@pytest.mark.parametrize("name", CONFIGS)
def test_the_twin_computes_what_transformers_does(twin: Twin, every: list[Check], name: str) -> None:
    assert worst(made(twin, [c for c in every if c.name == f"{name}: the CPU and Transformers"])) < 1e-5


def test_a_text_gives_the_twins_logits_in_whatever_form_and_way(twin: Twin, every: list[Check]) -> None:
    chosen = [c for c in every if c.name.startswith("LFM2: ") and "fp" not in c.name and c.dtype == "float32"]
    results = made(twin, chosen)
    assert failed(results) == set()
    assert worst({name: result for name, result in results.items() if "keys in" not in name}) < 2e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_within_their_limits_and_use_some_of_them(twin: Twin, every: list[Check], dtype: str) -> None:
    name = "LFM2: unquantized, in chunks and steps"
    (result,) = made(twin, [c for c in every if c.name == name and c.dtype == dtype]).values()
    assert result.limit / 20 < result.difference < result.limit


def scaled(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return lambda *arguments, **options: function(*arguments, **options) * 1.02


def without_mask(attention: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return lambda *arguments, mask, **options: attention(*arguments, mask=None, **options)


def of_expert_0(product: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def broken(*arguments: Any, rhs_indices: mx.array, **options: Any) -> mx.array:
        return product(*arguments, rhs_indices=mx.zeros_like(rhs_indices), **options)

    return broken


def not_finite(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return lambda *arguments, **options: function(*arguments, **options) / 0


def refused(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def broken(*arguments: Any, **options: Any) -> mx.array:
        raise RuntimeError("[metal] a kernel\nthat cannot be loaded")

    return broken


@pytest.mark.parametrize(
    ("place", "function", "broken"),
    [
        (mx.fast, "rms_norm", scaled),
        (mx.fast, "rms_norm", refused),
        (mx.fast, "scaled_dot_product_attention", without_mask),
        (mx, "conv1d", not_finite),
        (mx, "gather_mm", of_expert_0),
        (mx, "gather_qmm", of_expert_0),
        (mx, "quantized_matmul", scaled),
    ],
)
def test_a_broken_kernel_is_named(
    twin: Twin,
    every: list[Check],
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    function: str,
    broken: Callable[..., Any],
) -> None:
    monkeypatch.setattr(place, function, broken(getattr(place, function)))
    results = made(twin, [c for c in every if c.name in OPERATIONS - COSTLY and c.dtype == "float32"])
    names = {name for name in OPERATIONS - COSTLY if f".{function}" in name}
    assert names
    assert {results[name].name for name in failed(results)} == names
    assert all(function in results[name].problem and "\n" not in results[name].problem for name in failed(results))


def test_a_wrong_choice_of_experts_shows_in_the_model_as_well(
    twin: Twin, every: list[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mx.argpartition
    monkeypatch.setattr(moe.mx, "argpartition", lambda x, kth, axis: whole(x, kth=kth, axis=axis)[..., ::-1])
    wanted = ("the choice of experts", "Trinity Nano: in one shot")
    results = made(twin, [c for c in every if c.name in wanted and c.dtype == "float32"])
    assert {results[name].name for name in failed(results)} == set(wanted)


@pytest.mark.parametrize(
    ("found", "is_right"),
    [([1.0, 2.0], True), ([1.0, 2.5], False), ([1.0, mx.nan], False), ([1.0, mx.inf], False), ([1.0], False)],
)
def test_what_is_not_a_number_or_not_there_is_infinitely_far(found: list[float], is_right: bool) -> None:
    assert (difference(mx.array(found), mx.array([1.0, 2.0])) == 0) == is_right
    assert difference(mx.array([mx.nan]), mx.array([1.0])) == mx.inf


@pytest.mark.parametrize(
    "words", ["[Quantize] mode not supported", "[GatherMM::eval] Currently only supports float32."]
)
def test_what_a_device_may_do_without_is_skipped_with_its_reason_and_else_wrong(words: str) -> None:
    def measure(twin: Twin) -> float:
        raise ValueError(words)

    result = Check("a kernel", "float16", 0.1, measure, is_optional=True).make({})
    assert (result.skipped, result.error, result.is_failed) == (words, None, False)
    result = Check("a kernel", "float16", 0.1, measure).make({})
    assert (result.skipped, result.error, result.is_failed) == (None, words, True)


def test_results_that_are_no_numbers_are_an_error_and_no_number_of_the_report() -> None:
    result = Check("a kernel", "float16", 0.1, lambda twin: difference(mx.array([mx.nan]), mx.array([1.0]))).make({})
    assert (result.difference, result.is_failed) == (None, True)
    assert "not finite" in result.problem


def test_a_gpu_may_do_without_number_formats_and_the_cpu_without_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.is_optional for check in checks() if check.name == "mx.gather_mm")
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    optional = {check.name for check in checks() if check.is_optional}
    assert {"mx.gather_qmm, nvfp4", "LFM2: mxfp8, in chunks and steps"} <= optional
    assert not [name for name in optional if "fp" not in name]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot load /Users/jane/venv/lib/mlx.metallib:\n gone", "cannot load mlx.metallib: gone"),
        ("dlopen('/opt/a/b.so', 6)", "dlopen('b.so', 6)"),
        ("1/2 of and/or float32/float16", "1/2 of and/or float32/float16"),
        (f"in {Path.home()}/My Folder", "in ~/My Folder"),
    ],
)
def test_a_reports_errors_have_files_names_and_no_folders(text: str, shown: str) -> None:
    assert in_one_line(text) == shown


def test_tf32_has_float16s_limits_and_is_named_in_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.model_limit("float32", is_tf32=True) == limits.model_limit("float16")
    problem = Result("mx.matmul", "float32", 1e-4, difference=2e-3).problem
    assert "MLX_ENABLE_TF32" not in problem
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    assert check.TF32 in Result("mx.matmul", "float32", 1e-4, difference=2e-3).problem
    assert check.TF32 not in Result("mx.matmul", "bfloat16", 1e-4, difference=2e-3).problem


def test_products_of_rounded_factors_are_known_for_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    assert not limits.multiplies_in_tf32()
    matmul = mx.array.__matmul__
    monkeypatch.setattr(mx.array, "__matmul__", lambda x, y: matmul(x.astype(mx.float16).astype(mx.float32), y))
    assert limits.multiplies_in_tf32()


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Trinity Nano", "trinity-nano"),
        ("Trinity Mini", "trinity-mini"),
        ("Trinity Large", "trinity-large"),
        ("LFM2", "lfm2-8b-a1b"),
    ],
)
def test_every_published_grouping_of_heads_is_checked(title: str, name: str) -> None:
    published, tiny = read_config(shape(name)), read_config(CONFIGS[title])
    heads = published.num_attention_heads, published.num_key_value_heads
    assert HEADS[title] == (*heads, published.head_dim)
    assert tiny.head_dim == published.head_dim
    assert heads[0] * tiny.num_key_value_heads == heads[1] * tiny.num_attention_heads


def test_the_goldens_are_small_and_of_all_models() -> None:
    assert GOLDENS.stat().st_size < 40_000
    assert mx.load(str(GOLDENS)).keys() == CONFIGS.keys()


@pytest.mark.reference
@pytest.mark.parametrize("name", ["Trinity Nano", "LFM2"])
def test_the_goldens_are_what_their_script_makes(name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from helpers.make_selftest_goldens import logits

    assert difference(mx.array(logits(name)[::GOLDEN_STEP]), mx.load(str(GOLDENS))[name]) < 1e-5
