"""A model that reads its experts has the bits of the one that holds them all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import device, load_model
from afmoe_mlx.cache import Cache, KVQuantization, PrefixStore
from afmoe_mlx.errors import CheckpointError
from afmoe_mlx.generation.loop import prefill
from afmoe_mlx.models import CausalLM, fuse, sweep
from afmoe_mlx.models.moe import Experts
from helpers.experts import WIDE, streamed, wide_folder
from helpers.tiny import ARCHITECTURES, tokens

EXPERTS, LENGTH = WIDE["num_experts"], 40
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": mx.float32},
    "bfloat16": {},
    "float16": {"dtype": mx.float16},
    **{f"{bits} bits": {"bits": bits, "group_size": 32} for bits in (2, 3, 4, 5, 6, 8)},
    "4 bits, float32": {"bits": 4, "group_size": 32, "dtype": mx.float32},
    "mxfp4": {"mode": "mxfp4", "group_size": 32, "bits": 4},
    "mxfp8": {"mode": "mxfp8", "group_size": 32, "bits": 8},
    "nvfp4": {"mode": "nvfp4", "group_size": 16, "bits": 4},
    "nvfp4, scaled": {"mode": "nvfp4", "group_size": 16, "bits": 4, "global_scale": True},
}


def run(model: CausalLM, ids: mx.array, chunks: list[int], back: int = 0) -> tuple[list[mx.array], Cache]:
    """Logits of the tokens, in chunks and once more from `back` tokens before the end, and the cache after them."""
    cache, start, made = model.make_cache(), 0, []
    for length in chunks:
        made.append(model(ids[:, start : start + length], cache=cache))
        start += length
    cache.rewind(back)
    made += [model(ids[:, i : i + 1], cache=cache) for i in range(start - back, start)]
    return made, cache


def assert_same(found: tuple[list[mx.array], Cache], expected: tuple[list[mx.array], Cache]) -> None:
    for a, b in zip([*found[0], *found[1].arrays], [*expected[0], *expected[1].arrays], strict=True):
        assert a.dtype == b.dtype
        assert mx.array_equal(a, b).item()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CausalLM]:
    """A model's folder, in 4 bits with scales that the CPU casts, and the model with all experts in memory."""
    folder = wide_folder(tmp_path_factory.mktemp("wide") / "model", request.param, bits=4, group_size=32)
    return folder, load_model(folder)[0]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_same_bits(tmp_path: Path, name: str, model_type: str) -> None:
    folder = wide_folder(tmp_path / "model", model_type, **FORMATS[name])
    ids = tokens(1, LENGTH)
    expected = run(load_model(folder)[0], ids, [30, 3, 1, 6])
    model = streamed(folder, 3)
    assert_same(run(model, ids, [30, 3, 1, 6]), expected)
    assert model.expert_reads.misses > 0


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_every_number_of_slots_and_every_chunking_has_the_same_bits(pair: tuple[Path, CausalLM], data: Any) -> None:
    folder, plain = pair
    ends = data.draw(st.sets(st.integers(1, LENGTH - 1), max_size=4).map(sorted))
    chunks = [b - a for a, b in zip([0, *ends], [*ends, LENGTH], strict=True)]
    slots, whole = data.draw(st.tuples(st.integers(2, EXPERTS), st.integers(0, 1)))
    back, ids = data.draw(st.integers(0, 5)), tokens(1, LENGTH, seed=1)
    assert_same(run(streamed(folder, slots, whole), ids, chunks, back), run(plain, ids, chunks, back))


def test_the_split_decode_step_has_the_same_bits(pair: tuple[Path, CausalLM]) -> None:
    """Uncompiled: that compiled parts compute what they are made of is tested elsewhere."""
    folder, plain = pair
    model, ids = streamed(folder, 3, 1), tokens(1, LENGTH)
    expected = run(plain, ids, [30, *[1] * 10])
    model.compiles_decode = True
    mx.disable_compile()
    try:
        assert_same(run(model, ids, [30, *[1] * 10]), expected)
    finally:
        mx.enable_compile()


def test_unfused_models_and_rows_of_a_batch_have_the_same_bits(pair: tuple[Path, CausalLM]) -> None:
    folder, _ = pair
    plain, ids = load_model(folder, fuse=False)[0], tokens(3, 20)
    model = streamed(folder, 2, fuse=False)
    assert_same(run(model, ids, [15, 5]), run(plain, ids, [15, 5]))
    fuse(model)  # all but the slots
    logits = run(model, ids, [15, 5])[0][-1]
    assert mx.abs(logits - run(plain, ids, [15, 5])[0][-1]).max().item() < 2e-5


@pytest.mark.parametrize("kept", [None, KVQuantization(8, 32)])
def test_a_prompt_reads_each_expert_once_with_the_bits_of_its_chunks(
    pair: tuple[Path, CausalLM], kept: KVQuantization | None
) -> None:
    folder, plain = pair
    model, ids = streamed(folder, 2), tokens(1, LENGTH)
    expected, found = plain.make_cache(kv_quantization=kept), model.make_cache(kv_quantization=kept)
    logits = [prefill(m, ids[0].tolist(), c, step_size=7) for m, c in ((plain, expected), (model, found))]
    assert mx.array_equal(*logits).item()
    assert all(mx.array_equal(a, b).item() for a, b in zip(found.arrays, expected.arrays, strict=True))
    layers = model.config.num_hidden_layers - model.config.num_dense_layers
    assert model.expert_reads.misses <= layers * EXPERTS
    # and what was read last is what the last tokens need
    before = model.expert_reads.misses
    assert model.expert_reads.hits == 0
    model(ids[:, -1:], cache=found)
    assert model.expert_reads.misses - before < layers * model.config.num_experts_per_tok


def test_a_prefix_that_a_store_knows_is_continued_with_the_same_bits(pair: tuple[Path, CausalLM]) -> None:
    folder, plain = pair
    ids = tokens(1, 100)
    logits = []
    for model in (plain, streamed(folder, 3)):
        store, cache = PrefixStore(model, max_bytes=1 << 20, block_size=32), model.make_cache()
        prefill(model, ids[0, :64].tolist(), cache)
        store.insert(ids[0, :64].tolist(), cache)
        cache, known = store.lookup(ids[0].tolist())
        assert known == 64
        logits.append(prefill(model, ids[0, known:].tolist(), cache))
    assert mx.array_equal(*logits).item()


@pytest.mark.parametrize("seen", [0, 90])
def test_a_prompt_that_fails_leaves_the_cache_as_it_was(pair: tuple[Path, CausalLM], seen: int) -> None:
    """Even where the window has wrapped, and layers could not step back as far."""
    folder, _ = pair
    model = streamed(folder, 2)
    ids = tokens(1, seen + 60)[0].tolist()
    cache, expected = model.make_cache(32), model.make_cache(32)
    for c in (cache, expected):
        if seen:
            prefill(model, ids[:seen], c, step_size=16)
    state = {name: mx.array(array) for name, array in cache.state.items()}
    wanted = 2

    def fail_later(done: int) -> None:
        if done == wanted:
            raise CheckpointError("unplugged")

    with pytest.raises(CheckpointError):
        sweep(model, ids[seen:], cache, step_size=16, on_layer=fail_later)
    assert cache.offset == seen
    assert all(mx.array_equal(array, cache.state[name]).item() for name, array in state.items())
    found = prefill(model, ids[seen:], cache, step_size=16)
    assert mx.array_equal(found, prefill(model, ids[seen:], expected, step_size=16)).item()


def test_a_step_that_is_interrupted_while_it_reads_is_taken_again(pair: tuple[Path, CausalLM]) -> None:
    folder, plain = pair
    model, ids = streamed(folder, 4), tokens(1, 20)
    expected = run(plain, ids, [10, *[1] * 10])
    cache = model.make_cache()
    found = [model(ids[:, :10], cache=cache)]
    pool = model.expert_pools[-1]
    whole = pool._source.read

    def interrupt(wanted: Any) -> Any:
        pool._source.read = whole
        reading = whole(wanted)
        wait = lambda: reading.wait() if interrupted else interrupted.append(True) or _stop()  # noqa: E731
        return SimpleNamespace(begin=reading.begin, wait=wait)

    for i in range(10, 20):
        interrupted: list[bool] = []
        pool._source.read = interrupt
        try:
            found.append(model(ids[:, i : i + 1], cache=cache))
        except KeyboardInterrupt:
            found.append(model(ids[:, i : i + 1], cache=cache))
    assert_same((found, cache), expected)


def test_threads_that_share_a_model_take_turns(pair: tuple[Path, CausalLM]) -> None:
    folder, plain = pair

    def spoken(model: CausalLM, seed: int) -> tuple[list[mx.array], Cache]:
        found = run(model, tokens(1, 30, seed=seed), [1] * 30)
        mx.eval(found[0], found[1].arrays)  # another thread could not
        return found

    model = streamed(folder, 2)
    with ThreadPoolExecutor(2) as threads:
        for seed, found in enumerate(threads.map(lambda seed: spoken(model, seed), range(2))):
            assert_same(found, spoken(plain, seed))


def _stop() -> None:
    raise KeyboardInterrupt


def test_shared_experts_that_stay_apart_have_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a large model do on the CPU."""
    monkeypatch.setattr(device, "FUSE_EXPERTS_UP_TO", 0)
    folder, ids = wide_folder(tmp_path / "model", "afmoe", bits=4, group_size=32), tokens(1, LENGTH)
    plain, model = load_model(folder)[0], streamed(folder, 3)
    assert "shared_experts" in model.layers[1].mlp
    assert_same(run(model, ids, [30, 1, 9]), run(plain, ids, [30, 1, 9]))
    prompts = [prefill(m, ids[0].tolist(), m.make_cache(), step_size=7) for m in (plain, model)]
    assert mx.array_equal(*prompts).item()


def test_on_a_gpu_sorted_rows_are_as_many_as_the_kernel_for_them_takes(
    pair: tuple[Path, CausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = pair
    model, ids, rows = streamed(folder, 2), tokens(1, LENGTH), []
    outputs = Experts.outputs

    def counted(self: Experts, x: mx.array, experts: mx.array, *rest: Any, ordered: bool = False) -> mx.array:
        if ordered:
            rows.append(experts.size / self.down_proj.weight.shape[0])
        return outputs(self, x, experts, *rest, ordered=ordered)

    monkeypatch.setattr("afmoe_mlx.models.streamed.is_cpu", lambda: False)
    monkeypatch.setattr(Experts, "outputs", counted)
    assert mx.abs(model(ids) - plain(ids)).max().item() < 2e-5
    assert min(rows) >= 4


def test_the_weights_that_change_are_no_parameters(pair: tuple[Path, CausalLM]) -> None:
    model = streamed(pair[0], 2)
    before = {name: mx.array(array) for name, array in _flat(model)}
    model(tokens(1, 9), cache=model.make_cache())
    assert all(mx.array_equal(array, before[name]).item() for name, array in _flat(model))
    assert not any(".experts." in name or "switch_mlp" in name for name in before)


def _flat(model: CausalLM) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())  # type: ignore[return-value]
