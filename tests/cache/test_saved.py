"""A cache saved in a file continues where it stood, with its own model alone."""

import stat
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx.cache import load_cache, save_cache
from afmoe_mlx.errors import CacheError
from helpers.prefix_files import files
from helpers.stores import ids, run, seen
from helpers.tiny import tiny, two_layers


def test_a_saved_cache_continues_where_it_stood_and_is_private(tmp_path: Path) -> None:
    model, path = two_layers("afmoe", 5), tmp_path / "saved"
    save_cache(path, model, seen(model, ids(30)), ids(30), note="a note")
    saved = load_cache(path, model)
    assert (saved.tokens, saved.note, stat.S_IMODE(path.stat().st_mode)) == (ids(30), "a note", 0o600)
    assert np.abs(run(model, ids(5, seed=1), saved.cache) - run(model, ids(30) + ids(5, seed=1))[30:]).max() < 2e-5
    assert files(tmp_path) == [path]


def test_a_saved_caches_path_may_be_a_string_and_its_tokens_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_layers("afmoe", 5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save_cache("x.cache", model, seen(model, ids(30)), np.array(ids(30)))
    assert load_cache("x.cache", model).tokens == load_cache("~/x.cache", model).tokens == ids(30)
    with pytest.raises(CacheError, match=r"missing\.cache: not a file"):
        load_cache("missing.cache", model)


def test_a_saved_cache_of_another_model_or_none_is_refused_in_a_line(tmp_path: Path) -> None:
    model, path = two_layers("afmoe", 5), tmp_path / "saved"
    save_cache(path, model, seen(model, ids(30)), ids(30))
    with pytest.raises(CacheError, match="another model"):
        load_cache(path, two_layers("afmoe", 6))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CacheError, match="damaged or something else"):
        load_cache(path, model)
    with pytest.raises(CacheError, match="30 tokens for a cache that has seen 29"):
        save_cache(path, model, seen(model, ids(29)), ids(30))


def test_a_saved_cache_with_one_changed_byte_is_refused(tmp_path: Path) -> None:
    net = tiny("afmoe")
    cache = net.make_cache()
    net(mx.array([list(range(20))]), cache=cache)
    save_cache(tmp_path / "saved", net, cache, list(range(20)))
    content = bytearray((tmp_path / "saved").read_bytes())
    content[-9] ^= 1
    (tmp_path / "saved").write_bytes(content)
    with pytest.raises(CacheError, match="damaged"):
        load_cache(tmp_path / "saved", net)
