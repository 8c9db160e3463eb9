"""What mlx-lm's calls take, ours take too, or say what to do instead: none is unknown."""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import afmoe_mlx
from afmoe_mlx import generate, load, stream_generate
from afmoe_mlx.cache import PrefixStore, QuantizedKVCache
from afmoe_mlx.checkpoint.files import read_config_json
from afmoe_mlx.errors import CacheError, ConversionError, InputError, OptionError
from afmoe_mlx.generation import BatchResponse, BatchStats, GenerationChunk, SamplingOptions
from afmoe_mlx.keywords import BATCH_GENERATE, CONVERT, GENERATE, LOAD, Keywords, Refused, Renamed, takes
from helpers.tiny import ARCHITECTURES, tiny, tiny_folder, tokens

SAMPLING = set(SamplingOptions.__dataclass_fields__)
TABLES: dict[str, tuple[Callable[..., Any], Keywords, set[str]]] = {
    "load": (afmoe_mlx.load, LOAD, set()),
    "convert": (afmoe_mlx.convert, CONVERT, set()),
    "generate": (afmoe_mlx.stream_generate, GENERATE, SAMPLING),
    "batch_generate": (afmoe_mlx.batch_generate, BATCH_GENERATE, SAMPLING | {"sampler", "logits_processors"}),
}
# Of mlx-lm's response: the draft's tokens are counted, as accepted_tokens, and not told apart.
NOT_IN_A_CHUNK = {"from_draft"}


def parameters(function: Callable[..., Any]) -> set[str]:
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return {name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in kinds}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_folder(tmp_path_factory.mktemp("keywords") / "m", max_position_embeddings=64))


@pytest.mark.parametrize("name", TABLES)
def test_every_keyword_of_mlx_lm_is_taken_or_refused_by_name(name: str) -> None:
    theirs = pytest.importorskip("mlx_lm")
    from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step

    ours, table, more = TABLES[name]
    calls = {
        "load": [theirs.load],
        "convert": [theirs.convert],
        "generate": [theirs.stream_generate, generate_step, speculative_generate_step],
        "batch_generate": [theirs.batch_generate, BatchGenerator],
    }
    wanted = set().union(*map(parameters, calls[name]))
    assert not wanted - (parameters(ours) | table.keys() | more)
    assert parameters(theirs.generate) <= parameters(afmoe_mlx.generate)


def test_every_field_of_mlx_lms_response_is_there() -> None:
    pytest.importorskip("mlx_lm")
    from mlx_lm.generate import GenerationResponse

    fields = set(GenerationResponse.__dataclass_fields__)
    assert fields - set(dir(GenerationChunk)) - GenerationChunk.__dataclass_fields__.keys() == NOT_IN_A_CHUNK


def test_every_field_of_mlx_lms_batch_response_and_its_statistics_is_there() -> None:
    theirs = pytest.importorskip("mlx_lm.generate")
    assert theirs.BatchResponse.__dataclass_fields__.keys() - BatchResponse.__dataclass_fields__.keys() == {"caches"}
    public = {name for name in {*dir(theirs.BatchStats), *theirs.BatchStats.__dataclass_fields__} if name[0] != "_"}
    assert public - {*dir(BatchStats), *BatchStats.__dataclass_fields__} == set()


@pytest.mark.parametrize("name", TABLES)
def test_what_a_table_says_is_ours_is_a_keyword_of_ours_and_hides_none(name: str) -> None:
    ours, table, more = TABLES[name]
    own = parameters(ours) | more
    assert not own & table.keys()
    assert {known.ours for known in table.values() if isinstance(known, Renamed)} <= own


REFUSED = [(name, keyword) for name, (_, table, _) in TABLES.items() for keyword in table]


@pytest.mark.parametrize(("name", "keyword"), [(n, k) for n, k in REFUSED if isinstance(TABLES[n][1][k], Refused)])
def test_what_is_not_here_is_refused_with_what_to_do_unless_it_asks_for_nothing(name: str, keyword: str) -> None:
    table = TABLES[name][1]

    @takes(table)
    def call(**given: Any) -> Mapping[str, Any]:
        return given

    for value in (None, False, {}):
        assert call(**{keyword: value}, stop=["a"]) == {"stop": ["a"]}
    for value in (True, "x", 8, mx.zeros((2, 3))):
        with pytest.raises(OptionError, match=re.escape(f"no option {keyword} here: {table[keyword].instead}")):
            call(**{keyword: value})


def test_a_keyword_by_both_names_is_refused() -> None:
    with pytest.raises(OptionError, match="q_bits is bits here, and both are given"):
        afmoe_mlx.convert("x", "y", q_bits=4, bits=4)
    with pytest.raises(OptionError, match="both are given"):
        afmoe_mlx.convert("x", "y", bits=4, q_bits=4)


def test_an_option_that_neither_has_is_refused_by_name(loaded: Any) -> None:
    with pytest.raises(TypeError, match="no option 'temprature'"):
        generate(*loaded, "hello", temprature=1.0)
    with pytest.raises(TypeError, match="dtyp"):
        load("demo", dtyp="float32")


def test_a_conversion_in_mlx_lms_words_is_the_same_in_ours(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "a", hidden_size=64, moe_intermediate_size=64, intermediate_size=64)
    theirs = afmoe_mlx.convert(
        hf_path=str(source), mlx_path=str(tmp_path / "b"), quantize=True, q_bits=3, q_group_size=32, upload_repo=None
    )
    ours = afmoe_mlx.convert(source, tmp_path / "c", bits=3, group_size=32)
    for path in ours.iterdir():
        assert (theirs / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(OptionError, match="quant_predicate: a function"):
        afmoe_mlx.convert(hf_path=str(source), mlx_path=str(tmp_path / "d"), quant_predicate=lambda *_: True)
    with pytest.raises(ConversionError, match="mixed_2_6"):
        afmoe_mlx.convert(hf_path=str(source), mlx_path=str(tmp_path / "d"), quant_predicate="mixed_1_2")


def test_the_config_comes_with_the_model_when_asked_for(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "a")
    loaded = load(path_or_hf_repo=folder, return_config=True, lazy=False, tokenizer_config={})  # type: ignore[call-overload]
    assert len(loaded) == 3
    assert loaded[2] == read_config_json(folder)


def test_an_answer_in_mlx_lms_words_is_the_same_in_ours(loaded: Any) -> None:
    model, done = loaded[0], []
    cache = model.make_cache()
    found = generate(
        *loaded,
        "hello",
        max_tokens=9,
        prompt_cache=cache,
        prompt_progress_callback=lambda *counts: done.append(counts),
        max_kv_size=None,
    )
    assert found == generate(*loaded, "hello", max_tokens=9)
    assert cache.offset > 0
    assert done[0][0] == 0
    assert done[-1][0] == done[-1][1]
    with pytest.raises(InputError, match="the cache is a list"):
        generate(*loaded, "hello", prompt_cache=[])


def test_minus_one_token_is_as_many_as_the_context_takes(loaded: Any) -> None:
    chunks = list(stream_generate(loaded[0], loaded[1].with_extra_eos([]), "hello", max_tokens=-1))
    last = chunks[-1]
    assert last.finish_reason == "stop" or last.prompt_tokens + last.generation_tokens == 64
    assert last.generation_tokens > 20
    for wrong in (0, -2, True, 1.5):
        with pytest.raises(InputError, match="or -1 for as many"):
            generate(*loaded, "hello", max_tokens=wrong)


def test_verbose_prints_the_answer_and_the_figures_and_returns_the_answer(
    loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = generate(*loaded, "hello", max_tokens=5, verbose=True)
    out = capsys.readouterr().out
    line = "=" * 10
    assert out.startswith(f"{line}\n{text}\n{line}\nPrompt: ")
    figures = [r"Prompt: \d+ tokens, [\d.]+ tokens-per-sec", r"Generation: 5 tokens, [\d.]+ tokens-per-sec"]
    expected = "\n".join([*figures, r"Peak memory: [\d.]+ GB\n"])
    assert re.fullmatch(expected, out.split(line + "\n")[-1])
    assert generate(*loaded, "hello", max_tokens=5) == text
    assert capsys.readouterr().out == ""


def test_peak_memory_has_both_names(loaded: Any) -> None:
    chunk = next(iter(stream_generate(*loaded, "hello", max_tokens=1)))
    assert chunk.peak_memory == chunk.peak_memory_gb


@pytest.mark.parametrize("prompts", [["hello", "world"], [[1, 2], [3]], ("hello",)])
def test_a_list_of_prompts_is_refused_as_what_it_is(loaded: Any, prompts: Any) -> None:
    with pytest.raises(InputError, match="a list of prompts: give them one at a time, or all to batch_generate"):
        generate(*loaded, prompts)


def test_keys_in_few_bits_may_be_asked_for_with_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "m", head_dim=32, hidden_size=64))
    made: list[Any] = []
    make = type(model).make_cache
    monkeypatch.setattr(type(model), "make_cache", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    generate(model, tokenizer, "hello", max_tokens=2, kv_bits=4, kv_group_size=32, quantized_kv_start=0)
    kept = [layer.quantization for layer in made[-1].layers if isinstance(layer, QuantizedKVCache)]
    assert {(how.bits, how.group_size, how.start) for how in kept} == {(4, 32, 0)}
    generate(model, tokenizer, "hello", max_tokens=2, kv_bits=None, kv_group_size=64, quantized_kv_start=5000)
    assert not any(isinstance(layer, QuantizedKVCache) for layer in made[-1].layers)
    for known in ({"cache": model.make_cache()}, {"store": PrefixStore(model)}):
        with pytest.raises(InputError, match=r"set model\.kv_quantization before"):
            generate(model, tokenizer, "hello", kv_bits=4, **known)
    with pytest.raises(InputError, match="kv_bits is 7"):
        generate(model, tokenizer, "hello", kv_bits=7)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_model_has_what_mlx_lms_have(model_type: str) -> None:
    model, ids = tiny(model_type), tokens(2, 9)
    assert model.layers is model.model.layers
    caches = [model.make_cache() for _ in range(2)]
    assert mx.array_equal(model(ids, caches[0]), model(ids, cache=caches[1]))
    with pytest.raises(InputError, match="last_hidden_state"):
        model.model(ids)
    with pytest.raises(CacheError, match=r"the cache is a list: expected what model\.make_cache\(\) returns"):
        model(ids, [])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("padding", [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], ids=["left", "right"])
def test_the_head_makes_the_logits_of_the_last_hidden_state(model_type: str, padding: list[int]) -> None:
    model, ids = tiny(model_type), tokens(2, 6)
    mask = mx.array([padding, [1] * 6])
    for more in ({}, {"attention_mask": mask}):
        caches: list[Any] = [None, model.make_cache()]
        for cache in caches:
            again = None if cache is None else model.make_cache()
            h = model.last_hidden_state(ids, cache, **more)
            assert h.shape == (2, 6, model.config.hidden_size)
            assert mx.allclose(model.logits(h), model(ids, cache=again, **more), atol=1e-5)
