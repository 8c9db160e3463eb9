"""What hosts say to one another is read as data, whatever it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.errors import HostError
from afmoe_mlx.hosts.orders import Answer, Order, answers, orders, to_line

ORDERS, ANSWERS = orders(), answers()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
KINDS = [kind for union in (Order, Answer) for kind in union.__args__]


@given(line=st.text() | st.dictionaries(st.text(max_size=6), VALUES).map(json.dumps))
def test_what_is_no_message_is_refused_in_a_line(line: str) -> None:
    for reader in (ORDERS, ANSWERS):
        with pytest.raises(HostError) as caught:
            reader.read(line)
        assert "\n" not in str(caught.value)


@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_a_message_is_read_as_it_was_written_or_refused(data: st.DataObject, kind: type) -> None:
    names = [name for name in kind.__dataclass_fields__ if name != "do"]
    told = {name: data.draw(VALUES) for name in names}
    told["do"] = kind.__dataclass_fields__["do"].default
    reader = ORDERS if kind in Order.__args__ else ANSWERS
    line = json.dumps(told)
    try:
        found = reader.read(line)
    except HostError:
        return
    assert isinstance(found, kind)
    assert reader.read(to_line(found)) == found


@pytest.mark.parametrize("change", [{"n": -1}, {"n": 1 << 40}, {"n": "1"}, {"n": 1.0}, {"cache": None}], ids=str)
def test_numbers_are_bounded_and_are_numbers(change: dict[str, object]) -> None:
    told = {"do": "rewind", "cache": 1, "n": 1}
    assert ORDERS.read(json.dumps(told))
    with pytest.raises(HostError):
        ORDERS.read(json.dumps(told | change))
