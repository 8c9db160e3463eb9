"""What a user may type: the table of short names, whose sizes follow from the shapes, and what is on the disk."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint.hub import resolve
from afmoe_mlx.checkpoint.names import MODEL_NAMES, find, instead, published, repo_id, suggest
from afmoe_mlx.checkpoint.quantized import quantize_all
from afmoe_mlx.errors import CheckpointError, HubError
from afmoe_mlx.models import CausalLM, make_model, read_config
from afmoe_mlx.models.shapes import SHAPES, shape
from helpers import ROOT

KNOWN = [row for row in MODEL_NAMES if row.parameters is not None]


def made(row: Any) -> CausalLM:
    """The model of a short name as it is stored, in bfloat16; none of its weights is ever computed."""
    model = make_model(read_config(shape(row.name)))
    nn.Module.set_dtype(model, mx.bfloat16)
    return model


def arrays(model: CausalLM) -> list[mx.array]:
    return [array for _, array in tree_flatten(model.parameters())]


def test_every_name_is_unique_and_lower_case() -> None:
    names = [row.name for row in MODEL_NAMES]
    assert len(set(names)) == len(names)
    assert names == [name.casefold() for name in names]


def test_every_repo_is_owner_and_name() -> None:
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", row.repo) for row in MODEL_NAMES)


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.name)
def test_the_number_of_parameters_follows_from_the_shapes(row: Any) -> None:
    assert row.parameters == sum(array.size for array in arrays(made(row)))


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.name)
def test_the_download_follows_from_the_shapes(row: Any) -> None:
    model = made(row)
    full = sum(array.nbytes for array in arrays(model))
    quantize_all(model, {"bits": 4, "group_size": 64, "mode": "affine"})
    four_bits = sum(array.nbytes for array in arrays(model))
    if row.repo.endswith("4bit"):
        assert row.download_bytes == four_bits
    else:
        assert row.download_bytes == full
        assert f"4 bits: {four_bits / 1e9:.0f} GB" in row.note


def test_every_short_name_of_known_shape_has_it() -> None:
    assert [row.name for row in KNOWN] == list(SHAPES)


@pytest.mark.parametrize("row", MODEL_NAMES, ids=lambda row: row.name)
def test_a_name_is_found_in_any_case(row: Any) -> None:
    assert find(row.name.upper()) is row


def test_a_repo_id_is_not_a_short_name() -> None:
    assert find("mlx-community/Trinity-Mini-4bit") is None


@pytest.mark.parametrize(
    ("typo", "name"),
    [
        ("trinity-nan", "trinity-nano"),
        ("Trinity_Mini", "trinity-mini"),
        ("trinity-large-thinkin", "trinity-large-thinking"),
        ("lfm2.5-8b", "lfm2.5-8b-a1b"),
        ("lfm2.5-8b_a1b", "lfm2.5-8b-a1b"),
    ],
)
def test_a_typo_suggests_the_closest_name(typo: str, name: str) -> None:
    assert suggest(typo) == name


@pytest.mark.parametrize("word", ["zzzz", "lfm2", "trinity", "trinity-maxi", "lfm2-2.6b", "lfm2.5-1.2b", "lfm3-8b-a1b"])
def test_another_models_name_suggests_nothing(word: str) -> None:
    assert suggest(word) is None


@pytest.mark.parametrize("row", MODEL_NAMES, ids=lambda row: row.name)
def test_a_name_with_another_number_suggests_nothing(row: Any) -> None:
    for digit in re.finditer(r"\d", row.name):
        other = f"{row.name[: digit.start()]}7{row.name[digit.end() :]}"
        assert suggest(other) is None


@pytest.mark.parametrize("row", MODEL_NAMES, ids=lambda row: row.name)
@pytest.mark.parametrize("form", ["someone/{}-AWQ", "/models/{}-i1-GGUF", "models--bartowski--{}-GGUF/snapshots/abc"])
def test_what_to_take_instead_is_the_same_model(row: Any, form: str) -> None:
    assert instead(form.format(row.source.rpartition("/")[2])).startswith(f"take {row.name} (")


@pytest.mark.parametrize(
    "name", ["a/Trinity-Mini-Base-AWQ", "a/LFM2.5-8B-A1B-Base-GGUF", "a/Trinity-Large-TrueBase", "x"]
)
def test_a_base_model_is_not_replaced_by_the_one_tuned_from_it(name: str) -> None:
    assert not any(row.name in instead(name) for row in MODEL_NAMES)


def test_an_unknown_word_is_answered_with_the_names() -> None:
    with pytest.raises(CheckpointError, match="did you mean trinity-nano") as error:
        resolve("trinity-nanoo")
    assert all(row.name in str(error.value) for row in MODEL_NAMES)


def test_a_short_name_stands_for_its_repository() -> None:
    assert repo_id("Trinity-Mini") == "mlx-community/Trinity-Mini-4bit"


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == resolve(tmp_path) == tmp_path


def test_a_folder_comes_before_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trinity-nano").mkdir()
    assert resolve("trinity-nano") == Path("trinity-nano")


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


def test_a_local_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no revisions"):
        resolve(str(tmp_path), revision="main")


def test_a_file_is_refused_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="give the folder"):
        resolve(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("path", ["./no", "../no", "/no/such", "~/no", "a/b/c", "owner/name/", Path("owner/name")])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(path: str | Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(path)


@pytest.mark.parametrize("text", ["", "  "])
def test_nothing_is_not_the_current_folder(text: str) -> None:
    with pytest.raises(CheckpointError, match="no model given"):
        resolve(text)


def test_a_local_folder_needs_no_hub_library(tmp_path: Path) -> None:
    code = f"import sys; from afmoe_mlx.checkpoint.hub import resolve; resolve({str(tmp_path)!r}); "
    code += "sys.exit(any(name in sys.modules for name in ('huggingface_hub', 'httpx', 'httpx2', 'tqdm')))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=30)


def lm_studio(home: Path, root: str, *files: str) -> Path:
    folder = home / root / "someone" / "tiny"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("root", [".lmstudio/models", ".cache/lm-studio/models"])
def test_a_model_of_lm_studio_is_used_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = lm_studio(tmp_path, root, "config.json", "model.safetensors")
    assert resolve("someone/tiny") == folder


@pytest.mark.parametrize(
    ("files", "revision"),
    [(["tiny.gguf"], None), (["config.json"], None), (["config.json", "model.safetensors"], "main")],
    ids=["without a config", "half downloaded", "with a revision"],
)
def test_a_folder_of_lm_studio_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], revision: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lm_studio(tmp_path, ".lmstudio/models", *files)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        resolve("someone/tiny", revision=revision)


def test_a_short_name_stands_for_what_was_published_under_it_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert published("Trinity-Mini") == "arcee-ai/Trinity-Mini"
    assert published("mlx-community/Trinity-Mini-4bit") == "mlx-community/Trinity-Mini-4bit"
    assert published(tmp_path) == tmp_path
    (tmp_path / "Trinity-Mini").mkdir()
    assert published("Trinity-Mini") == "Trinity-Mini"
