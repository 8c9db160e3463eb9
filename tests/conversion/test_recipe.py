"""Recipes give every module of both architectures the format they say, and say so in mlx-lm's terms."""

import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint.quantized import MODES, is_quantizable, parameters
from afmoe_mlx.conversion.recipe import Recipe, Rule, quantization_of
from afmoe_mlx.conversion.recipes import BUILT_IN, MIXED, UNIFORM, read_recipe
from afmoe_mlx.errors import ConversionError
from afmoe_mlx.models import CausalLM, make_model, read_config
from afmoe_mlx.models.moe import ExpertLinear
from afmoe_mlx.models.shapes import SHAPES, shape
from helpers.tiny import ARCHITECTURES, tiny

FOUR_BITS = {"group_size": 64, "bits": 4, "mode": "affine"}
ROUTERS = ("router.gate", "feed_forward.gate")


def weights(model: CausalLM) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape, those called `weight` under the path of their module."""
    return {name.removesuffix(".weight"): array.shape for name, array in tree_flatten(model.parameters())}


@pytest.fixture(scope="module", params=SHAPES)
def published(request: pytest.FixtureRequest) -> CausalLM:
    """A published model, none of whose weights is made."""
    return make_model(read_config(shape(request.param)))


def written(folder: Path, text: str) -> Recipe:
    path = folder / "mine.toml"
    path.write_text(text)
    return read_recipe(str(path))


@pytest.mark.parametrize("name", UNIFORM)
def test_a_uniform_recipe_quantizes_what_the_bits_alone_would(published: CausalLM, name: str) -> None:
    chosen = parameters(UNIFORM[name])
    formats = read_recipe(name).formats(weights(published))
    expected = {
        path: chosen for path, module in published.named_modules() if is_quantizable(path, module, chosen["group_size"])
    }
    assert {path: found for path, found in formats.items() if found is not None} == expected
    assert quantization_of(formats) == chosen


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_built_in_recipe_touches_routers_biases_norms_or_convolutions(published: CausalLM, name: str) -> None:
    formats = read_recipe(name).formats(weights(published))
    kept = {path for path, found in formats.items() if found is None}
    parts = ("router.gate", "feed_forward.gate", "expert_bias", "norm", "conv.conv")
    assert kept == {path for path in formats if path.endswith(parts)}
    assert any(path.endswith(ROUTERS) for path in kept)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_recipes_spend_more_on_all_that_every_token_takes(published: CausalLM, name: str) -> None:
    experts, others = MIXED[name]
    formats = read_recipe(name).formats(weights(published))
    bits = {path: chosen["bits"] for path, chosen in formats.items() if chosen}
    routed = {path for path, module in published.named_modules() if isinstance(module, ExpertLinear)}
    assert {bits[path] for path in routed} == {experts}
    assert {found for path, found in bits.items() if path not in routed} == {others}
    assert {"model.embed_tokens", *routed} < bits.keys()


def test_what_a_formats_groups_do_not_divide_is_kept() -> None:
    recipe = read_recipe("4bit")
    assert recipe.format_of("lm_head", (40, 96)) is None
    assert recipe.format_of("lm_head", (40, 128)) == FOUR_BITS


def test_the_last_rule_that_matches_decides(tmp_path: Path) -> None:
    recipe = written(
        tmp_path,
        """
        [default]
        bits = 3
        [[rules]]
        modules = ["*.down_proj", "lm_head"]
        bits = 6
        [[rules]]
        modules = "model.layers.0.*"
        keep = true
        [[rules]]
        modules = "model.layers.0.mlp.down_proj"
        mode = "mxfp4"
        """,
    )

    def found(path: str) -> Any:
        chosen = recipe.format_of(path, (128, 128))
        return chosen and (chosen["mode"], chosen["bits"], chosen["group_size"])

    assert recipe.name == "mine"
    assert found("model.embed_tokens") == found("model.layers.1.mlp.up_proj") == ("affine", 3, 64)
    assert found("lm_head") == found("model.layers.1.mlp.down_proj") == ("affine", 6, 64)
    assert found("model.layers.0.mlp.up_proj") is None
    assert found("model.layers.0.mlp.down_proj") == ("mxfp4", 4, 32)


def test_a_rule_takes_from_the_default_what_it_leaves_out(tmp_path: Path) -> None:
    text = '[default]\nbits = 5\ngroup_size = 128\n[[rules]]\nmodules = "lm_head"\n'
    assert written(tmp_path, text + "group_size = 32").rules[0].format == FOUR_BITS | {"bits": 5, "group_size": 32}
    assert written(tmp_path, text + "bits = 8").rules[0].format == FOUR_BITS | {"bits": 8, "group_size": 128}
    assert written(tmp_path, text + "mode = 'nvfp4'").rules[0].format == parameters({"mode": "nvfp4"})


def test_a_default_of_keep_leaves_all_but_the_rules_plain(tmp_path: Path) -> None:
    recipe = written(tmp_path, '[default]\nkeep = true\n[[rules]]\nmodules = "*.experts.*"\nbits = 2')
    formats = recipe.formats(weights(tiny(moe_intermediate_size=64, hidden_size=64)))
    assert {path.split(".")[4] for path, found in formats.items() if found} == {"experts"}
    assert quantization_of(formats) == FOUR_BITS | {"bits": 2}


RULE = "[default]\nbits = 4\n[[rules]]\nmodules = {}\n{}"


@pytest.mark.parametrize(
    ("patterns", "format_", "words"),
    [
        ('"*.experts.*"', "bits = 3", None),
        ('"*.router.gate"', "keep = true", None),
        ('"*norm*"', "keep = true", None),
        ('"*.expert.*"', "bits = 3", r"rule 1: '\*\.expert\.\*' matches no module: see --dry-run"),
        ('["lm_head", "head"]', "bits = 3", "'head' matches no module"),
        ('"*norm*"', "bits = 3", r"cannot be quantized: norms, biases and convolutions stay"),
        ('"*.expert_bias"', "bits = 3", r"model.layers.1.mlp.expert_bias.* cannot be quantized"),
        ('"*.router.gate"', "bits = 8", r"quantizes routers \(model.layers.1.mlp.router.gate.*keep = true is better"),
        ('"*g[a]te"', "bits = 8", "matches routers alone: they stay as they are"),
    ],
)
def test_a_rule_that_does_not_do_what_it_says_is_warned_of(
    tmp_path: Path, patterns: str, format_: str, words: str | None
) -> None:
    recipe = written(tmp_path, RULE.format(patterns, format_))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe.formats(weights(tiny(hidden_size=64)))
    if words is None:
        assert not caught
    else:
        assert len(caught) == 1
        assert str(tmp_path / "mine.toml") in str(caught[0].message)
        with pytest.warns(UserWarning, match=words):
            recipe.formats(weights(tiny(hidden_size=64)))


@pytest.mark.parametrize("pattern", ["*.router.gate", "*.feed_forward.gate", "*router*", "model.layers.1.mlp.router.*"])
def test_a_router_is_quantized_only_by_a_pattern_that_names_it(pattern: str) -> None:
    path = "model.layers.1.feed_forward.gate" if "feed" in pattern else "model.layers.1.mlp.router.gate"
    eight = parameters({"bits": 8})
    for reaching in ("*", "model.layers.1.*", "*gate*", "*.gat?"):
        assert Recipe("r", eight, (Rule((reaching,), eight),)).format_of(path, (8, 64)) is None
    assert Recipe("r", None, (Rule((pattern,), eight), Rule(("*",), None))).format_of(path, (8, 64)) == eight


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "default is missing: expected a table with bits, or with keep = true"),
        ("bits = 4", "the file has bits: expected default, rules"),
        ("default = 4", "default is 4: expected a table"),
        ("[default]", "default gives no format"),
        ("[default]\nkeep = false", "default gives no format"),
        ("[default]\nbits = 7", "default.bits is 7: expected 2, 3, 4, 5, 6, 8 with mode affine"),
        ("[default]\nbits = '4'", "default.bits is '4': expected 2"),
        ("[default]\nbits = true", "default.bits is True: expected 2"),
        ("[default]\nbits = []", r"default.bits is \[\]: expected 2"),
        ("[default]\nmode = 'q4_k'", "default.mode is 'q4_k': expected one of affine, mxfp4"),
        ("[default]\nmode = 3", "default.mode is 3: expected one of affine"),
        ("[default]\nbit = 4", "default has bit: expected bits, group_size, mode, keep"),
        ("[default]\nkeep = 1", "default.keep is 1: expected true or false"),
        ("[default]\nkeep = true\nbits = 4", "default has keep = true and bits too"),
        ("[default]\nbits = 4\n[rules]", r"rules is \{\}: expected a list of tables, each under \[\[rules\]\]"),
        ("rules = [3]\n[default]\nbits = 4", "rule 1 is 3: expected a table"),
        ("[default]\nbits = 4\n[[rules]]\nbits = 3", "rule 1.modules is None: expected a pattern such as"),
        (RULE.format("[]", "bits = 3"), r"rule 1.modules is \[\]: expected a pattern"),
        (RULE.format("[3]", "bits = 3"), r"rule 1.modules is \[3\]: expected a pattern"),
        (RULE.format("''", "bits = 3"), "rule 1.modules is '': expected a pattern"),
        (RULE.format("'*'", ""), "rule 1 gives no format: expected bits"),
        (RULE.format("'*'", "bits = 9"), "rule 1.bits is 9"),
        (RULE.format("'*'", "bit = 3"), "rule 1 has bit: expected modules, bits"),
        ("[default", "not valid TOML"),
        ("\x1b", "not valid TOML"),
        ("a = " + "[" * 3000, "not valid TOML"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConversionError, match=words) as raised:
        written(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'mine.toml'}: ")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConversionError, match=r"binary.toml: not valid TOML"):
        read_recipe(str(tmp_path / "binary.toml"))
    with pytest.raises(ConversionError, match="cannot be read: Is a directory"):
        read_recipe(str(tmp_path))


@pytest.mark.parametrize("name", ["", "~nobody-of-this-name/a.toml", "x" * 5000])
def test_what_can_be_no_file_is_an_unknown_name(name: str) -> None:
    with pytest.raises(ConversionError, match="expected one of 4bit"):
        read_recipe(name)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConversionError, match=r"recipe is '5bit': expected one of 4bit, 3bit, .*, or an existing TOML"):
        read_recipe("5bit")


FORMATS = st.sampled_from([None, *(parameters({"mode": mode}) for mode in MODES), *map(dict, [FOUR_BITS])])


@given(st.dictionaries(st.from_regex(r"model\.layers\.[0-9]\.[a-z_]{1,5}", fullmatch=True), FORMATS))
def test_quantization_says_of_every_module_what_was_chosen(formats: dict[str, Any]) -> None:
    found = quantization_of(formats)
    if found is None:
        assert not any(formats.values())
        return
    default = {key: found[key] for key in ("group_size", "bits", "mode")}
    assert all(found.get(path, default) == chosen for path, chosen in formats.items() if chosen)
    assert found.keys() - default.keys() <= {path for path, chosen in formats.items() if chosen}
    used = [chosen for chosen in formats.values() if chosen]
    assert len(found) - len(default) == len(used) - max(used.count(chosen) for chosen in used)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_mlx_quantizes_every_module_to_its_format(model_type: str, name: str) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "num_hidden_layers": 4}
    model = tiny(model_type, **sizes)
    for path, chosen in read_recipe(name).formats(weights(model)).items():
        if chosen is not None:
            module = dict(model.named_modules())[path]
            assert mx.quantize(module.weight, **chosen)[0].shape[-1] * 32 // chosen["bits"] == module.weight.shape[-1]


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[default]\r\nbits = 3\r\n")
    with_mark = read_recipe(str(path))
    path.write_bytes(b"[default]\nbits = 3\n")
    assert with_mark == read_recipe(str(path))
