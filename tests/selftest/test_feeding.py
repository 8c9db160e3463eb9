"""Each way of feeding a model does what it is there for: else it would check nothing that one shot does not."""

from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx.cache import Cache, QuantizedKVCache
from afmoe_mlx.models import CausalLM
from afmoe_mlx.models.chunk import block_size
from afmoe_mlx.selftest import feeding
from afmoe_mlx.selftest.limits import difference
from afmoe_mlx.selftest.models import TinyModel, text


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return TinyModel("Trinity Nano").loaded(mx.float32)


@pytest.fixture(scope="module")
def logits(model: CausalLM) -> mx.array:
    return feeding.one_shot(model, text())[0][1]


def assert_every_token_has_its_logits(parts: list[feeding.Part], logits: mx.array) -> None:
    assert {first + i for first, part in parts for i in range(len(part))} == set(range(len(text())))
    wanted = mx.concatenate([logits[first : first + len(part)] for first, part in parts])
    assert difference(mx.concatenate([part for _, part in parts]), wanted) < 2e-5


class Watched:
    """What is asked of models and caches: chunks' shapes, steps back, and the cache last used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.rewound: list[int] = []
        self.cache: Cache | None = None
        call, rewind = CausalLM.__call__, Cache.rewind

        def called(model: CausalLM, ids: mx.array, **options: Any) -> mx.array:
            self.shapes.append(ids.shape)
            self.cache = options.get("cache")
            return call(model, ids, **options)

        monkeypatch.setattr(CausalLM, "__call__", called)
        monkeypatch.setattr(Cache, "rewind", lambda cache, n: self.rewound.append(n) or rewind(cache, n))

    @property
    def steps(self) -> int:
        return sum(shape[1] == 1 for shape in self.shapes)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_chunks_leave_the_window_and_its_blocks_and_buffer_behind(model: CausalLM, watched: Watched) -> None:
    feeding.chunks_and_steps(model, text())
    window = model.config.sliding_window
    assert max(length for _, length in watched.shapes) > max(window, block_size(window))
    assert watched.steps > feeding.SLACK // 4
    assert watched.cache.layers[0].start > 0


def test_a_wrong_turn_is_taken_back_and_some_of_the_prompt_as_well(
    model: CausalLM, watched: Watched, logits: mx.array
) -> None:
    parts = feeding.rewound(model, text())
    assert watched.rewound == [13]
    assert {feeding.PROMPT - 3, feeding.PROMPT} < {first for first, _ in parts}
    assert_every_token_has_its_logits(parts, logits)


def test_what_a_store_knows_is_not_computed_again(model: CausalLM, watched: Watched, logits: mx.array) -> None:
    parts = feeding.from_store(model, text())
    assert_every_token_has_its_logits(parts, logits)
    assert sum(length for _, length in watched.shapes) < len(text()) + 16


def test_a_batch_has_rows_of_different_lengths(model: CausalLM, watched: Watched, logits: mx.array) -> None:
    assert_every_token_has_its_logits(feeding.padded_batch(model, text()), logits)
    assert {batch for batch, _ in watched.shapes} == {3}
    assert len(set(watched.cache.offsets.tolist())) == 3


def test_guesses_are_verified_together_and_wrong_ones_taken_back(
    model: CausalLM, watched: Watched, logits: mx.array
) -> None:
    assert_every_token_has_its_logits(feeding.speculated(model, text()), logits)
    assert (1, 4) in watched.shapes
    assert watched.rewound
    assert set(watched.rewound) == {1}


@pytest.mark.parametrize("bits", [8, 4])
def test_keys_are_quantized_and_the_model_is_as_before(model: CausalLM, watched: Watched, bits: int) -> None:
    feeding.quantized_keys(bits)(model, text())
    full = [layer for layer in watched.cache.layers if isinstance(layer, QuantizedKVCache)]
    assert full
    assert all(layer.quantization.bits == bits for layer in full)
    assert model.kv_quantization is None
