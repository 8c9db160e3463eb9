"""A chat template from the user's own file."""

from pathlib import Path

import pytest

from afmoe_mlx.command_line.template import read_template
from afmoe_mlx.errors import InputError


def test_a_byte_order_mark_is_no_part_of_the_template(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}")
    assert read_template(str(path)) == "{{ messages[0].content }}"


def test_a_template_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, words in (("latin", "not UTF-8"), ("nothing", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(InputError, match=words) as caught:
            read_template(str(tmp_path / name))
        assert "\n" not in str(caught.value)
