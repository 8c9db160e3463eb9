"""Sampling filters as mlx-lm does, draws with its own key, and never touches the host or the global random state."""

import json
import math

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import sampling
from afmoe_mlx.generation.processors import make_logits_processors
from afmoe_mlx.generation.sampling import SamplingOptions, make_sampler

VOCABULARY = 97


def normalized(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def random_logprobs(seed: int = 0, rows: int = 3, size: int = VOCABULARY, scale: float = 3.0) -> mx.array:
    return normalized(scale * mx.random.normal((rows, size), key=mx.random.key(seed)))


def survivors(logprobs: mx.array) -> list[set[int]]:
    return [{i for i, x in enumerate(row) if x > -math.inf} for row in logprobs.tolist()]


def draws(options: SamplingOptions, logprobs: mx.array, count: int) -> list[list[int]]:
    sampler = make_sampler(options)
    return mx.stack([sampler(logprobs) for _ in range(count)]).tolist()


@pytest.fixture(scope="module")
def peer():
    module = pytest.importorskip("mlx_lm.sample_utils")
    mx.disable_compile()  # compiling each of its filters takes a C++ compiler half a second
    yield module
    mx.enable_compile()


# The same filtering as mlx_lm's own functions


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.75, 0.95, 0.999])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_top_p_keeps_what_mlx_lm_keeps(peer, top_p, scale):
    logprobs = random_logprobs(scale=scale)
    assert mx.array_equal(sampling.apply_top_p(logprobs, top_p), peer.apply_top_p(logprobs, top_p))


@pytest.mark.parametrize("min_p", [0.001, 0.06, 0.5, 1.0])
@pytest.mark.parametrize("keep", [1, 2, 40])
def test_min_p_keeps_what_mlx_lm_keeps(peer, min_p, keep):
    logprobs = random_logprobs(1)
    assert mx.array_equal(sampling.apply_min_p(logprobs, min_p, keep), peer.apply_min_p(logprobs, min_p, keep))


@pytest.mark.parametrize("top_k", [1, 2, 50, VOCABULARY - 1])
def test_top_k_keeps_what_mlx_lm_keeps(peer, top_k):
    logprobs = random_logprobs(2)
    assert mx.array_equal(sampling.apply_top_k(logprobs, top_k), peer.apply_top_k(logprobs, top_k))


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("special", [[], [0, 5]])
def test_xtc_excludes_what_mlx_lm_excludes(peer, threshold, special):
    logprobs = random_logprobs(3)
    theirs = peer.apply_xtc(logprobs, 1.0, threshold, special)
    assert mx.array_equal(sampling.apply_xtc(logprobs, threshold, special), theirs)


def test_the_whole_chain_draws_what_mlx_lms_chain_can_draw(peer):
    logprobs = random_logprobs(4, rows=1, scale=1.0)
    chain = peer.apply_xtc(peer.apply_min_p(peer.apply_top_p(logprobs, 0.9), 0.05, 3), 1.0, 0.02, [])
    (possible,) = survivors(peer.apply_top_k(chain, 6))
    options = SamplingOptions(1.5, 0.9, 0.05, 3, 6, xtc_probability=1.0, xtc_threshold=0.02, seed=1)
    assert {row[0] for row in draws(options, logprobs, 400)} == possible


def test_repetition_penalty_gives_mlx_lms_logits(peer):
    logits = 4 * mx.random.normal((1, VOCABULARY), key=mx.random.key(5))
    tokens = mx.array([9, 3, 3, 7, 11, 3])
    (processor,) = make_logits_processors(SamplingOptions(repetition_penalty=1.3, repetition_context_size=4))
    theirs = peer.make_repetition_penalty(1.3, 4)(tokens, mx.array(logits))
    assert mx.array_equal(processor(tokens, logits), theirs)


# What any options hold to


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.0, 0.01, 1.0, 30.0]),
    temperature=st.sampled_from([1e-40, 1e-3, 0.7, 1.0, 1e6, 1e30]),
    top_p=st.sampled_from([0.0, 5e-324, 1e-8, 0.3, 1.0]),
    min_p=st.sampled_from([0.0, 1e-300, 0.06, 1.0]),
    keep=st.sampled_from([1, 5, 10**9]),
    top_k=st.sampled_from([0, 1, 7, VOCABULARY, 10**9]),
    xtc=st.sampled_from([0.0, 0.5, 1.0]),
    threshold=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_only_tokens_that_were_possible_are_drawn(seed, scale, temperature, top_p, min_p, keep, top_k, xtc, threshold):
    logits = scale * mx.random.normal((2, VOCABULARY), key=mx.random.key(seed))
    possible = mx.arange(VOCABULARY) % 3 == 1
    logprobs = normalized(mx.where(possible, logits, -mx.inf))
    options = SamplingOptions(temperature, top_p, min_p, keep, top_k, xtc, threshold, seed=seed)
    tokens = draws(options, logprobs, 3)
    assert all(token % 3 == 1 for row in tokens for token in row)


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"top_p": 1e-9}, {"top_p": 5e-324}, {"min_p": 1.0}, {"temperature": 1e-40}]
)
def test_the_narrowest_filters_leave_the_most_likely_token(options):
    logprobs = random_logprobs(6)
    best = mx.argmax(logprobs, axis=-1).tolist()
    assert draws(SamplingOptions(**{"temperature": 1.0, "seed": 0, **options}), logprobs, 5) == [best] * 5


def test_temperature_zero_is_argmax_whatever_the_rest():
    logprobs = random_logprobs(7)
    sampler = make_sampler(SamplingOptions(0.0, 0.1, 0.5, 1, 1, xtc_probability=1.0, xtc_threshold=0.0, seed=3))
    assert mx.array_equal(sampler(logprobs), mx.argmax(logprobs, axis=-1))


def test_a_top_k_of_the_vocabulary_or_more_keeps_everything():
    logprobs = random_logprobs(8)
    for top_k in (VOCABULARY, VOCABULARY + 1):
        assert mx.array_equal(sampling.apply_top_k(logprobs, top_k), logprobs)


def test_top_k_keeps_exactly_k_of_equals():
    assert [len(row) for row in survivors(sampling.apply_top_k(mx.zeros((2, 10)), 4))] == [4, 4]


def test_frequencies_follow_the_tempered_probabilities():
    logprobs = normalized(mx.array([[0.0, 1.0, 2.0, -mx.inf]]))
    rows = mx.broadcast_to(logprobs, (20_000, 4))
    tokens = make_sampler(SamplingOptions(temperature=2.0, seed=11))(rows).tolist()
    wanted = mx.softmax(logprobs[0] / 2, axis=-1).tolist()
    assert [tokens.count(i) / len(tokens) for i in range(4)] == pytest.approx(wanted, abs=0.02)


def test_xtc_is_drawn_for_each_row():
    rows = mx.broadcast_to(mx.log(mx.array([[0.6, 0.39, 0.01]])), (2_000, 3))
    options = SamplingOptions(temperature=1e-3, xtc_probability=0.25, xtc_threshold=0.1, seed=5)
    tokens = make_sampler(options)(rows).tolist()
    assert tokens.count(1) / len(tokens) == pytest.approx(0.25, abs=0.05)
    assert tokens.count(2) == 0


def test_xtc_spares_special_tokens_and_ignores_those_outside_the_vocabulary():
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.2]]))
    assert survivors(sampling.apply_xtc(logprobs, 0.1, [0, 10**6])) == [{0, 2}]
    with pytest.raises(InputError, match="xtc_special_tokens"):
        make_sampler(SamplingOptions(), xtc_special_tokens=[-1])


def test_filters_work_in_float32_on_any_input_dtype():
    logprobs = random_logprobs(9).astype(mx.bfloat16)
    options = SamplingOptions(0.8, 0.9, 0.01, 2, 20, seed=1)
    assert draws(options, logprobs, 4) == draws(options, logprobs.astype(mx.float32), 4)


# Randomness


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    logprobs = random_logprobs(10)
    first, again, other = (draws(SamplingOptions(1.0, seed=seed), logprobs, 20) for seed in (42, 42, 43))
    assert first == again != other


def test_without_a_seed_samplers_differ():
    logprobs = random_logprobs(11)
    assert draws(SamplingOptions(1.0), logprobs, 20) != draws(SamplingOptions(1.0), logprobs, 20)


def test_successive_draws_differ():
    assert len({tuple(row) for row in draws(SamplingOptions(1.0, seed=0), random_logprobs(12), 20)}) > 1


def test_the_global_random_state_is_neither_used_nor_changed():
    logprobs = random_logprobs(13)
    options = SamplingOptions(1.0, 0.9, 0.01, 1, 20, 0.5, 0.1, seed=7)
    mx.random.seed(1)
    first, state = draws(options, logprobs, 10), mx.random.state[0].tolist()
    mx.random.seed(1)
    assert state == mx.random.state[0].tolist()
    mx.random.seed(2)
    assert first == draws(options, logprobs, 10)


def test_a_sampler_never_waits_for_the_device(monkeypatch):
    def wait(*_args):
        raise AssertionError("waited for the device")

    penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    others = {"no_repeat_ngram_size": 2, "logit_bias": {3: -1.0}}
    options = SamplingOptions(1.0, 0.9, 0.01, 2, 20, 0.5, 0.1, seed=7, **penalties, **others)
    sampler, processors = make_sampler(options), make_logits_processors(options)
    assert len(processors) == 5
    logprobs, tokens = random_logprobs(14), mx.array([1, 2, 1])
    for name in ("eval", "async_eval", "synchronize"):
        monkeypatch.setattr(mx, name, wait)
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__array__"):
        if hasattr(mx.array, name):
            monkeypatch.setattr(mx.array, name, wait)
    for processor in processors:
        logprobs = processor(tokens, logprobs)
    token = sampler(logprobs)
    monkeypatch.undo()
    assert token.shape == (3,)


# Repetition penalty


def test_repetition_penalty_moves_recent_tokens_away_once_and_leaves_the_input_alone():
    logits = mx.array([[2.0, -2.0, 4.0, 1.0], [1.0, 1.0, -1.0, 3.0]])
    before = logits.tolist()
    (processor,) = make_logits_processors(SamplingOptions(repetition_penalty=2.0, repetition_context_size=3))
    assert processor(mx.array([3, 1, 0, 0]), logits).tolist() == [[1.0, -4.0, 4.0, 1.0], [0.5, 0.5, -1.0, 3.0]]
    assert logits.tolist() == before
    assert processor(mx.array([], dtype=mx.int32), logits).tolist() == before


def test_a_penalty_of_one_needs_no_processor():
    assert make_logits_processors(SamplingOptions()) == []


# Validation


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf, True, "1", None, 10**400]),
        ("top_p", [-0.1, 1.1, math.nan, False, "0.9", None]),
        ("min_p", [-0.1, 1.1, math.nan, True, None]),
        ("min_tokens_to_keep", [0, -1, 1.0, True, "2"]),
        ("top_k", [-1, 2.0, True, "5", None]),
        ("xtc_probability", [-0.1, 1.1, math.nan]),
        ("xtc_threshold", [-0.1, 0.51, math.nan]),
        ("repetition_penalty", [0, -1.0, 1e-308, 1e4, math.nan, math.inf, True]),
        ("repetition_context_size", [-1, 2.5, True]),
        ("presence_penalty", [math.nan, -math.inf, 1e31, True, "1", None]),
        ("presence_context_size", [-2, 2.5, True, None]),
        ("frequency_penalty", [math.nan, math.inf, True]),
        ("frequency_context_size", [-2, 2.5, True]),
        ("no_repeat_ngram_size", [-1, 2.0, True, None]),
        ("seed", [-1, 2**64, 1.0, True, "7"]),
    ],
)
def test_senseless_values_are_refused_in_one_line_naming_the_option(name, values):
    for value in values:
        with pytest.raises(InputError) as error:
            SamplingOptions(**{name: value})
        assert str(error.value).startswith(f"{name} is ")
        assert "expected" in str(error.value)
        assert "\n" not in str(error.value)


def test_the_ends_of_every_range_are_accepted():
    SamplingOptions(0, 0, 0, 1, 0, 0, 0, 1e-3, 0, -9, 0, -9, 0, 0, {}, 0)
    SamplingOptions(100.0, 1, 1, 10**6, 10**6, 1, 0.5, 10, 10**6, 9, 10**6, 9, 10**6, 10**6, {0: -math.inf}, 2**64 - 1)


# generation_config.json


@pytest.mark.parametrize(
    ("config", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": None}, 1.0),
        ({"do_sample": True, "temperature": 0.15}, 0.15),
        ({"do_sample": None, "temperature": 0.3}, 0.3),
        ({"temperature": 0.3}, 0.3),
    ],
)
def test_generation_config_decides_the_temperature_unless_told_otherwise(config, temperature):
    assert SamplingOptions.from_generation_config(config).temperature == temperature
    assert SamplingOptions.from_generation_config(config, temperature=None).temperature == temperature
    assert SamplingOptions.from_generation_config(config, temperature=0.9).temperature == 0.9
    assert SamplingOptions.from_generation_config(config, temperature=0.0).temperature == 0.0


def test_generation_config_gives_the_defaults_and_overrides_win():
    config = json.loads(
        '{"do_sample": true, "temperature": 0.15, "top_k": 50, "top_p": 0.75, "min_p": 0.06,'
        ' "repetition_penalty": null, "eos_token_id": [1, 2], "transformers_version": "5.0"}'
    )
    options = SamplingOptions.from_generation_config(config, top_k=None, top_p=0.9, seed=4)
    assert options == SamplingOptions(0.15, 0.9, 0.06, top_k=50, seed=4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("top_p", 3), ("top_k", -1), ("min_p", "x"), ("temperature", -1), ("repetition_penalty", 0), ("do_sample", "yes")],
)
def test_senseless_values_in_the_file_name_the_file_and_the_key(key, value):
    with pytest.raises(InputError, match=rf"^generation_config\.json: {key} is .*expected"):
        SamplingOptions.from_generation_config({key: value})


def test_an_override_stands_in_for_a_senseless_value_in_the_file():
    assert SamplingOptions.from_generation_config({"top_p": 3}, top_p=0.5).top_p == 0.5
