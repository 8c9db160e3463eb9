"""What is in the tree is in the wheel: setuptools' explicit list of packages would drop a new one silently."""

import fnmatch
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import afmoe_mlx
from helpers import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
SOURCES = {"afmoe_mlx": "afmoe_mlx", "chat": "afmoe_mlx/chat"}


def installed_files() -> dict[str, Path]:
    """Every file of the package by its path once installed."""
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}": path
        for folder, target in SOURCES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_every_folder_with_sources_is_a_listed_package_and_every_listed_package_exists():
    folders = {name.rpartition("/")[0] for name in installed_files() if name.endswith(".py")}
    assert sorted(folder.replace("/", ".") for folder in folders) == sorted(SETUPTOOLS["packages"])
    assert SETUPTOOLS["package-dir"] == {target.replace("/", "."): folder for folder, target in SOURCES.items()}


def test_every_data_file_is_package_data():
    patterns = SETUPTOOLS["package-data"]
    for name in installed_files():
        if name.endswith(".py"):
            continue
        package = max((p for p in SETUPTOOLS["packages"] if name.startswith(p.replace(".", "/") + "/")), key=len)
        file = name[len(package) + 1 :]
        wanted = [*patterns["*"], *patterns.get(package, [])]
        assert any(fnmatch.fnmatch(file, p) and file.count("/") == p.count("/") for p in wanted), name


def has_build_tools() -> bool:
    try:
        setuptools = int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return setuptools >= 77 and importlib.util.find_spec("build") is not None


@pytest.mark.skipif(not has_build_tools(), reason="needs build and setuptools>=77 (the dev extra)")
def test_the_wheel_holds_exactly_the_files_of_the_tree(tmp_path):
    source = tmp_path / "source"
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == installed_files().keys()
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@pytest.fixture
def installed_version() -> str:
    try:
        return importlib.metadata.version("afmoe-mlx")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("afmoe-mlx is not installed")


def test_the_version_is_the_one_in_pyproject(installed_version):
    assert afmoe_mlx.__version__ == installed_version == PYPROJECT["project"]["version"]


@pytest.mark.usefixtures("installed_version")
def test_chat_is_importable_as_part_of_the_package():
    assert importlib.util.find_spec("afmoe_mlx.chat") is not None
