"""What the documents show is what the scripts make, and what they name is there."""

import ast
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from itertools import dropwhile, groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

import afmoe_mlx
from afmoe_mlx import cli, commands, load
from afmoe_mlx.checkpoint.names import MODEL_NAMES
from afmoe_mlx.messages.tool_formats import FORMATS, ToolFormat
from afmoe_mlx.models import make_model, read_config
from afmoe_mlx.models.shapes import shape
from afmoe_mlx.tokenizer.recommended import RECOMMENDED
from helpers import ROOT
from helpers.command_line import invoke
from helpers.imports import file_graph, imports_of, package_modules, part_of
from helpers.scripted import scripted_folder


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("docs/models.md", "make_mac_table.py"),
        ("docs/convert.md", "make_convert_table.py"),
        ("docs/convert.md", "make_convert_table.py mixed_3_6"),
        ("docs/experts.md", "make_experts_table.py"),
        ("docs/hosts.md", "make_hosts_table.py"),
    ],
)
def test_a_table_is_what_its_script_prints(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")  # as if the script were run
    monkeypatch.setattr(sys, "argv", command.split())
    runpy.run_path(str(ROOT / "docs" / sys.argv[0]), run_name="__main__")
    assert capsys.readouterr().out.strip() in (ROOT / page).read_text(encoding="utf-8")


def test_the_conversion_guides_recipe_is_the_file_beside_it() -> None:
    recipe = (ROOT / "docs" / "trinity-mini-16gb.toml").read_text(encoding="utf-8")
    assert f"```toml\n{recipe}```" in (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("trinity-nano", "Trinity Nano"),
        ("trinity-mini", "Trinity Mini"),
        ("trinity-large", "Trinity Large"),
        ("lfm2-8b-a1b", "LFM2-8B-A1B"),
    ],
)
def test_the_prompt_caches_table_of_bytes_follows_from_the_shapes(name: str, title: str) -> None:
    config = read_config(shape(name))
    histories = [layer.history for layer in make_model(config).make_cache().layers]
    bounded = max(history for history in histories if history is not None)
    keys = 2 * config.num_key_value_heads * config.head_dim * 2
    column = 2 * config.hidden_size if name.startswith("lfm2") else keys
    full, recent = histories.count(None) * keys, (len(histories) - histories.count(None)) * column
    block = 256 * full + min(256, bounded) * recent
    most, least = 10_000 / 256 * block, 10_000 * full + bounded * recent
    row = f"| {title} | {block / 1e6:.1f} MB | {256 * full / 1e6:.1f} MB | {most / 1e9:.2g} GB | {least / 1e9:.2g} GB |"
    assert row in (ROOT / "docs" / "prompt-cache.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", MODEL_NAMES, ids=lambda row: row.name)
def test_the_page_on_models_has_every_short_name_with_what_it_runs(row: Any) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert f"| `{row.name}` | {row.repo} | {row.source} |" in page


@pytest.mark.parametrize("values", RECOMMENDED.values(), ids=str)
def test_the_page_on_models_has_every_recommended_sampling(values: dict[str, float]) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    columns = [str(values.get(key, "")) for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")]
    assert f"{' | '.join(columns)} |".replace("|  |", "| |").replace("|  |", "| |") in page


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MENTIONED = sorted(set(re.findall(r"`([\w/]+[./][\w./]*)`", ARCHITECTURE)))


@pytest.mark.parametrize("name", MENTIONED)
def test_every_name_on_the_page_of_the_architecture_exists(name: str) -> None:
    name = name.removeprefix("afmoe_mlx.")
    if name.endswith((".py", "/")):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "afmoe_mlx", ROOT / "chat")), name
        return
    parts = f"afmoe_mlx.{name}".split(".")
    modules = {module.name for module in package_modules()}
    depth = max(i for i in range(1, len(parts) + 1) if ".".join(parts[:i]) in modules)
    found = importlib.import_module(".".join(parts[:depth]))
    for part in parts[depth:]:
        found = getattr(found, part)


def test_the_rooms_of_the_architecture_are_all_there_and_import_those_above_alone() -> None:
    table = ARCHITECTURE.partition("| room |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1]) for line in table]
    place = {room: i for i, row in enumerate(rows) for room in row}
    assert place.keys() == {part_of(module.name) for module in package_modules()} - {"", "__main__"}
    for name, targets in file_graph(package_modules()).items():
        room = part_of(name)
        later = {part_of(target) for target in targets if place.get(part_of(target), -1) > place.get(room, len(rows))}
        assert not later, f"{name} imports {later}"


SCRIPTS = [path for folder in ("docs", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_of_ours_is_there(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    for found in imports_of(script.stem, tree):
        module, _, name = found.name.rpartition(".")
        if found.name.startswith(("afmoe_mlx.", "helpers.")):
            assert hasattr(importlib.import_module(module), name) or importlib.util.find_spec(found.name), found


def test_the_agents_loop_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = page.partition("## An agent's loop\n```python\n")[2].partition("```")[0]
    arguments = '{"city": "Zürich", "days": 2}'
    call = f'<think>\nhm\n</think>\n\n<tool_call>\n{{"name": "weather", "arguments": {arguments}}}\n</tool_call>'
    folder = scripted_folder(tmp_path / "m", [call.replace("2}", '"2"}'), call, "It will."])
    monkeypatch.setattr(afmoe_mlx, "load", lambda name: load(folder))
    names: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert capsys.readouterr().out == "It will.\n"
    results = [message["content"] for message in names["messages"] if message["role"] == "tool"]
    assert results[0].startswith("error: can't multiply")
    assert json.loads(results[1]) == {"city": "Zürich", "sun": [True, True]}


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
def test_the_page_on_tools_has_every_format(form: ToolFormat) -> None:
    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8").replace("\\|", "|")
    assert re.search(rf"\| `{form.name}` \| `{re.escape(form.begin)}.*{re.escape(form.end)}` \|", page)


PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / name for name in ("afmoe_mlx/demo/README.md", "benchmarks/README.md", "benchmarks/LOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def without_code(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "`code`", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page may be, by GitHub's rule."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    titles = [
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    ]
    return {f"{title}-{n}" if (n := titles[:i].count(title)) else title for i, title in enumerate(titles)}


@each_page
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        path, _, anchor = target.partition("#")
        if not re.match(r"https?:", path):
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


@each_page
def test_every_file_of_the_repository_that_is_named_is_there(page: Path) -> None:
    named = re.findall(r"(?<![\w/.~-])(?:docs|tests|benchmarks|afmoe_mlx|chat)/[\w/.-]*\.\w+", page.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", index.read_text("utf-8"))
    assert sorted(listed) == sorted(path.name for path in index.parent.glob("*.md") if path != index)


@each_page
def test_every_command_that_is_shown_is_one_of_the_program(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(page, "bash"):
        for line in commands_of(block):
            assert refused(line, monkeypatch) is None, line


def commands_of(script: str) -> Iterator[list[str]]:
    """The arguments of each call of the program, whatever it is piped from or into."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        words.whitespace_split = True
        for is_mark, command in groupby(words, lambda word: not set(word) - set("|&;<>")):
            rest = list(dropwhile(lambda word: re.match(r"\w+=", word), [] if is_mark else command))
            if rest[:1] == ["afmoe-mlx"]:
                yield rest[1:]


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the command line says against arguments, None if nothing; nothing is run."""
    with monkeypatch.context() as patch:
        patch.setattr(cli, "import_module", lambda *_: SimpleNamespace(run=lambda _: 0))
        for group in ("models", "cache"):
            patch.setattr(commands, group, MagicMock(), raising=False)
        found = invoke(arguments)
    return found.stderr if found.exit_code else None


@pytest.mark.parametrize("script", ["ls | afmoe-mlx generate --promt -", "A=1 afmoe-mlx models pul trinity-nano"])
def test_a_command_that_is_none_is_found(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = commands_of(script)
    assert "did you mean" in str(refused(line, monkeypatch))


@each_page
def test_every_piece_of_python_that_is_shown_parses_and_imports_what_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("afmoe_mlx"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []
