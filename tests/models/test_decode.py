"""The compiled decode step computes what the plain forward pass does, and holds on to nothing."""

import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from afmoe_mlx.cache import regroup
from afmoe_mlx.generation import SamplingOptions, make_logits_processors, make_sampler
from afmoe_mlx.models import CausalLM, fuse, rope
from afmoe_mlx.models.afmoe import DecoderLayer
from benchmarks.operations import operations
from helpers import TESTS
from helpers.tiny import ARCHITECTURES, tiny, tokens

TOLERANCE = 2e-5


def step_by_step(model: CausalLM, ids: mx.array, first: int = 5) -> mx.array:
    """Logits of all of `ids`, the first few in one chunk, then one at a time."""
    cache = model.make_cache()
    parts = [model(ids[:, :first], cache=cache)]
    parts += [model(ids[:, i : i + 1], cache=cache) for i in range(first, ids.shape[1])]
    return mx.concatenate(parts, axis=1)


def compiled(model_type: str, *, fused: bool, **changes: Any) -> CausalLM:
    model = tiny(model_type, **changes)
    model.compiles_decode = True
    return fuse(model) if fused else model


def check_all() -> None:
    """Every form of both architectures; for a process of its own, with a C++ compiler or without."""
    for model_type in ARCHITECTURES:
        for fused in (False, True):
            check_steps(model_type, fused=fused, rows=3)
        check_steps(model_type, fused=False, rows=1)
        check_groups(model_type)
    check_replayed()


def check_replayed() -> None:
    """What may differ where a graph is replayed. Every kernel is compiled, which takes its time: fused models do."""
    for model_type in ARCHITECTURES:
        check_steps(model_type, fused=True, rows=1)
        check_few_tokens(model_type)
        check_padded_rows(model_type)
        check_first_token(model_type)
    check_far_positions()
    check_replaced_weights()
    check_replaced_layers()
    check_replaced_modules()
    check_interrupted_trace()


def check_steps(model_type: str, *, fused: bool, rows: int) -> None:
    model, ids = compiled(model_type, fused=fused), tokens(rows, 25)
    found = step_by_step(model, ids)
    model.compiles_decode = False
    assert mx.abs(found - step_by_step(model, ids)).max() < TOLERANCE
    assert mx.abs(found - model(ids)).max() < TOLERANCE


def check_few_tokens(model_type: str) -> None:
    """Steps of several tokens, as a draft is verified in, past the window, and stepping back between them."""
    for length in (2, 3):
        model, ids = compiled(model_type, fused=True), tokens(1, 29)
        step, taken = model._compiled_step(), []
        model._compiled_step = lambda step=step, taken=taken: taken.append(step) or step  # type: ignore
        cache = model.make_cache()
        parts = [model(ids[:, :5], cache=cache, logits_to_keep=5)]
        for i in range(5, 29, length):
            parts.append(model(ids[:, i : i + length], cache=cache))
            cache.rewind(1)
            again = model(ids[:, i + length - 1 : i + length], cache=cache)
            assert mx.abs(again - parts[-1][:, -1:]).max() < TOLERANCE
        assert len(taken) == 2 * (24 // length)
        assert mx.abs(mx.concatenate(parts, axis=1) - model(ids)).max() < TOLERANCE


def check_padded_rows(model_type: str) -> None:
    model, ids = compiled(model_type, fused=True), tokens(2, 20)
    mask = mx.array([[0] * 3 + [1] * 2, [1] * 5])
    cache = model.make_cache()
    model(ids[:, :5], attention_mask=mask, cache=cache)
    padded = mx.concatenate([model(ids[:, i : i + 1], cache=cache) for i in range(5, 20)], axis=1)
    alone = step_by_step(model, ids[:1, 3:], first=2)[:, 2:]
    assert mx.abs(padded[:1] - alone).max() < TOLERANCE


def check_groups(model_type: str) -> None:
    """Rows in groups of several lengths, in one step."""
    model, ids, lengths = compiled(model_type, fused=True), tokens(3, 30), (1, 5, 12)
    caches = [model.make_cache() for _ in lengths]
    for row, (length, cache) in enumerate(zip(lengths, caches, strict=True)):
        model(ids[row : row + 1, :length], cache=cache)
    groups = regroup([[(caches[0], 0)], [(caches[1], 0), (caches[2], 0)]])
    for i in range(12):
        found = model.step(mx.array([ids[row, length + i].item() for row, length in enumerate(lengths)]), groups)
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, : length + i + 1])[0, -1]
            assert mx.abs(found[row] - alone).max() < TOLERANCE


def check_first_token(model_type: str) -> None:
    """A cache that begins with a single token."""
    model, ids = compiled(model_type, fused=True), tokens(1, 6)
    assert mx.abs(step_by_step(model, ids, first=1) - model(ids)).max() < TOLERANCE


def check_far_positions() -> None:
    """Whether the rotary kernel may be used is asked at each step, not when it is traced."""
    model, ids, asked = compiled("afmoe", fused=True), tokens(1, 20), []
    expected, by_kernel = model(ids), rope.rotates_by_kernel
    rope.rotates_by_kernel = lambda positions: asked.append(positions) or positions <= 16  # type: ignore
    try:
        found = step_by_step(model, ids, first=12)
    finally:
        rope.rotates_by_kernel = by_kernel
    assert asked == list(range(12, 21))
    assert mx.abs(found - expected).max() < TOLERANCE


def check_replaced_layers() -> None:
    model, ids = compiled("afmoe", fused=True), tokens(1, 8)
    step_by_step(model, ids)
    model.model.layers[1] = compiled("afmoe", fused=True, route_scale=0.5).model.layers[1]
    assert mx.abs(step_by_step(model, ids) - model(ids)).max() < TOLERANCE
    head = model.lm_head
    model.lm_head = type(head)(*reversed(head.weight.shape), bias=False)
    assert mx.abs(step_by_step(model, ids) - model(ids)).max() < TOLERANCE


class Scaled(nn.Module):
    """A map with a number of its own, as a LoRA has."""

    def __init__(self, linear: nn.Module, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) * self.scale


def check_replaced_modules() -> None:
    """Modules within layers, alike in all arrays' shapes, and a number that only the model is told of."""
    model, ids = compiled("afmoe", fused=True), tokens(1, 8)
    step_by_step(model, ids)
    layers = model.model.layers
    layers[1].mlp = compiled("afmoe", fused=True, route_scale=0.5).model.layers[1].mlp
    assert mx.abs(step_by_step(model, ids) - model(ids)).max() < TOLERANCE
    for scale, layer in enumerate(layers, 1):
        layer.self_attn.o_proj = Scaled(layer.self_attn.o_proj, scale)
    assert mx.abs(step_by_step(model, ids) - model(ids)).max() < TOLERANCE
    layers[0].self_attn.o_proj.scale = 0.0
    model.drop_compiled()
    assert mx.abs(step_by_step(model, ids) - model(ids)).max() < TOLERANCE
    model.set_dtype(mx.float16)
    cache = model.make_cache()
    assert [model(ids[:, :1], cache=cache).dtype for _ in range(2)] == 2 * [mx.float16]


def check_interrupted_trace() -> None:
    """While a step is traced the model holds its own arrays, whoever looks and whatever happens."""
    model, ids, held = compiled("afmoe", fused=True), tokens(1, 8), []
    arrays = [array for _, array in tree_flatten(model.parameters())]
    finish = DecoderLayer.finish

    def interrupted(*_: Any) -> Any:
        held.extend(array for _, array in tree_flatten(model.parameters()))
        raise KeyboardInterrupt

    DecoderLayer.finish = interrupted  # type: ignore[method-assign]
    try:
        model(ids[:, :1], cache=model.make_cache())
    except KeyboardInterrupt:
        pass
    finally:
        DecoderLayer.finish = finish  # type: ignore[method-assign]
    assert len(held) == len(arrays)
    assert all(one is other for one, other in zip(held, arrays, strict=True))
    assert mx.abs(step_by_step(model, ids) - model(ids)).max() < TOLERANCE


def check_replaced_weights() -> None:
    model, ids = compiled("afmoe", fused=True), tokens(1, 8)
    step_by_step(model, ids)
    model.update(tree_map(lambda array: array * 1.25, model.parameters()))
    assert mx.abs(step_by_step(model, ids) - model(ids)).max() < TOLERANCE
    unfused = compiled("afmoe", fused=False)
    step_by_step(unfused, ids)
    assert mx.abs(step_by_step(fuse(unfused), ids) - unfused(ids)).max() < TOLERANCE


def quick_compiler(folder: Path) -> str:
    """A `PATH` with a `g++` that finds the kernels' header precompiled, and does not optimize: these take longest."""
    compiler, header = shutil.which("g++"), "mlx/backend/cpu/compiled_preamble.h"
    if compiler is None:
        pytest.skip("there is no g++")
    include, precompiled = str(Path(mx.__file__).parent / "include"), folder / f"{header}.gch"
    precompiled.parent.mkdir(parents=True)
    options = ["-std=c++17", "-O0", "-fPIC", "-w", "-I", include]
    subprocess.run([compiler, *options, "-x", "c++-header", f"{include}/{header}", "-o", precompiled], check=True)
    (folder / "g++").write_text(f'#!/bin/sh\nexec {compiler} -I {folder} "$@" -O0\n')
    (folder / "g++").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


@pytest.mark.parametrize("compiler", [False, True])
def test_compiled_steps_equal_plain_ones(tmp_path: Path, compiler: bool) -> None:
    """Without a C++ compiler MLX runs a function again at each call: only with one are there graphs to be replayed."""
    folders, check = [str(TESTS), str(TESTS / "models")], "check_replayed" if compiler else "check_all"
    code = f"import sys; sys.path[:0] = {folders}; import test_decode; test_decode.{check}()"
    path = quick_compiler(tmp_path / "compiler") if compiler else ""
    environment = os.environ | {"PATH": path, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_cpu_runs_plain_operations_unless_told_otherwise() -> None:
    assert not tiny("afmoe").compiles_decode


def test_a_dropped_model_is_freed_at_once() -> None:
    model = compiled("afmoe", fused=True)
    model._compiled_step()
    gone = weakref.ref(model)
    assert tree_flatten(model.parameters())
    del model
    assert gone() is None


# Operations of a layer that are no views, of MLX's own graph for the CPU; a GPU's has fewer, and compiling joins more.
MOST_OPERATIONS = {"afmoe": 71, "lfm2_moe": 44.5}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_step_has_no_more_operations_than_it_had(model_type: str) -> None:
    def count(layers: int) -> int:
        kinds = {"afmoe": ["sliding_attention"], "lfm2_moe": ["conv", "full_attention"]}[model_type]
        types = [kinds[i % len(kinds)] for i in range(layers)]
        model = fuse(tiny(model_type, num_hidden_layers=layers, layer_types=types))
        cache = model.make_cache()
        mx.eval(model(tokens(1, 4), cache=cache), model(tokens(1, 1), cache=cache))
        return operations(model(tokens(1, 1), cache=cache)).total()

    assert (count(6) - count(2)) / 4 <= MOST_OPERATIONS[model_type]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_step_and_the_choice_after_it_ask_the_device_for_nothing(model_type: str) -> None:
    """Within a trace every host read of an array is an error."""
    model, ids = fuse(tiny(model_type)), tokens(1, 7)
    cache = model.make_cache()
    mx.eval(model(ids, cache=cache))
    everything = {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05, "top_k": 20, "xtc_probability": 0.5}
    options = SamplingOptions(**everything, repetition_penalty=1.1, seed=1)
    sampler, (penalty,) = make_sampler(options, xtc_special_tokens=[1]), make_logits_processors(options)

    def two_steps(token: mx.array) -> mx.array:
        for _ in range(2):
            logits = penalty(ids[0], model(token[:, None], cache=cache)[:, -1])
            token = sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        return token

    assert mx.compile(two_steps)(ids[0, :1]).shape == (1,)


def test_a_step_writes_into_the_buffers_that_are_there() -> None:
    model = fuse(tiny("afmoe"))
    cache = model.make_cache()
    token = mx.argmax(model(tokens(1, 7), cache=cache)[:, -1], axis=-1)
    places = set()
    for _ in range(5):
        token = mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(token)  # the next step is built while this one runs
        places.add(tuple(np.array(array, copy=False).__array_interface__["data"][0] for array in cache.arrays))
    assert len(places) == 1
