"""Whatever ends a call, the leader and its followers have seen the same tokens."""

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
import pytest

import afmoe_mlx
from afmoe_mlx import load_model
from afmoe_mlx.errors import CacheError, InputError
from afmoe_mlx.generation.loop import prefill
from afmoe_mlx.models import CausalLM, ExpertPlacement
from helpers.experts import WIDE, wide_folder
from helpers.hosts import LocalCrew, split
from helpers.tiny import tokens

IDS = tokens(1, 24)
POINTS = 60
OURS = str(Path(afmoe_mlx.__file__).parent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_folder(tmp_path_factory.mktemp("hosts") / "model", "afmoe", dtype=mx.float32)


def pair(folder: Path, *, reads: bool = False) -> tuple[CausalLM, LocalCrew]:
    few = ExpertPlacement(WIDE["num_experts"] // 2)
    count = len(load_model(folder)[0].layers)
    return split(folder, [count - 1], places=[lambda *_: few] if reads else [])


def lines_of(call: Callable[[], Any], stop_at: int = -1) -> int:
    """How many lines of ours a call runs; before the one of that number there is a Ctrl-C."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            seen += 1
            if seen == stop_at:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return seen


def offsets(crew: LocalCrew, cache: Any) -> set[int]:
    """What the leader's and the followers' caches have seen."""
    crew.run()
    return {cache.offset, *(follower._caches[cache.number].offset for follower in crew.followers)}


@pytest.mark.parametrize("reads", [False, True], ids=["in memory", "from the SSD"])
def test_ctrl_c_between_any_two_lines_leaves_all_in_step(folder: Path, reads: bool) -> None:
    led, crew = pair(folder, reads=reads)

    def call(cache: Any) -> None:
        mx.eval(prefill(led, IDS[0].tolist(), cache, step_size=9))  # type: ignore[arg-type]
        mx.eval(led(IDS[:, :1], cache=cache))
        cache.rewind(1)

    call(led.make_cache())  # experts are in their pools from now on
    count = lines_of(partial(call, led.make_cache()))
    seen = set()
    for point in range(1, count, max(count // POINTS, 1)):
        cache = led.make_cache()
        with suppress(KeyboardInterrupt):  # the last is not reached where there is no dropped cache to tell of
            lines_of(partial(call, cache), point)
        here = offsets(crew, cache)
        assert len(here) == 1, point
        seen |= here
    assert len(seen) > 2


@pytest.mark.parametrize("kept", [99, True])
def test_more_columns_than_there_are_is_all_of_them(folder: Path, kept: int) -> None:
    whole, (led, _) = load_model(folder)[0], pair(folder)
    caches = whole.make_cache(), led.make_cache()
    for ids in (IDS[:, :12], IDS[:, 12:20], IDS[:, 20:21]):
        try:
            expected = whole(ids, cache=caches[0], logits_to_keep=kept)
        except InputError:
            with pytest.raises(InputError):
                led(ids, cache=caches[1], logits_to_keep=kept)
        else:
            found = led(ids, cache=caches[1], logits_to_keep=kept)
            assert found.shape == expected.shape
            assert mx.abs(found - expected).max().item() < 1e-5


def test_a_cache_of_another_model_is_refused_before_anything_is_run(folder: Path) -> None:
    (led, crew), (other, other_crew) = pair(folder), pair(folder)
    cache, own = other.make_cache(), led.make_cache()
    mx.eval(led(IDS[:, :3], cache=own), other(IDS[:, :8], cache=cache))
    with pytest.raises(CacheError, match="not one of this model"):
        led(IDS[:, 8:12], cache=cache)
    assert offsets(other_crew, cache) == {8}
    assert offsets(crew, own) == {3}


def test_the_dtype_of_one_host_is_not_changed_alone(folder: Path) -> None:
    led, _ = pair(folder)
    with pytest.raises(InputError, match="several hosts"):
        led.set_dtype(mx.bfloat16)
