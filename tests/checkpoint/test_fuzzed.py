"""Any value in a config and any bytes in a header work, or are refused in one line."""

import json
import struct
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afmoe_mlx import load_model
from afmoe_mlx.errors import AfmoeError
from helpers.checkpoints import write_golden
from helpers.damage import (
    WEIGHTS,
)

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2, 7, 33, 2**24, 2**31 - 1, 2**31, 2**63, 10**12, 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["afmoe", "lfm2_moe", "full_attention", "yarn", "llama3", "linear", "affine", "mxfp4"]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
)
# Keys that the golden's config does not have.
MORE_KEYS = [
    "rope_scaling",
    "rope_theta",
    "quantization",
    "full_attn_idxs",
    "partial_rotary_factor",
    "n_group",
    "dtype",
]


@pytest.fixture(scope="module", params=["afmoe-yarn", "lfm2_moe-llama3"])
def valid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden(tmp_path_factory.mktemp("valid"), request.param)


def assert_loads_or_is_refused(folder: Path) -> None:
    mx.reset_peak_memory()
    try:
        model, _ = load_model(folder)
    except AfmoeError as error:
        message = str(error)
    else:
        message = ""
        mx.eval(model(mx.array([[1, 0, 1]]) % model.config.vocab_size))
    assert message.isprintable()
    assert mx.get_peak_memory() - mx.get_active_memory() < 50_000_000


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:config. unknown keys")
def test_any_value_in_a_config_works_or_is_refused(valid: Path, data: st.DataObject) -> None:
    original = (valid / "config.json").read_text()
    raw = json.loads(original)
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from([raw, raw["rope_parameters"]])) if "rope_parameters" in raw else raw
        if not isinstance(where, dict) or not where:
            where = raw
        key = data.draw(st.sampled_from([*where, *(MORE_KEYS if where is raw else [])]))
        where[key] = data.draw(JUNK)
    (valid / "config.json").write_text(json.dumps(raw))
    try:
        assert_loads_or_is_refused(valid)
    finally:
        (valid / "config.json").write_text(original)


@FUZZ
@given(data=st.data())
def test_any_bytes_in_a_header_work_or_are_refused(valid: Path, data: st.DataObject) -> None:
    path = valid / WEIGHTS
    original = path.read_bytes()
    (size,) = struct.unpack("<Q", original[:8])
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, 8 + size - 1) | st.integers(0, 10))
        changed[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789",:{}[]'))
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed))) :]
    path.write_bytes(changed)
    try:
        assert_loads_or_is_refused(valid)
    finally:
        path.write_bytes(original)
