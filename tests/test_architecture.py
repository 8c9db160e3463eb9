"""Imports in the package go one way, without circles, and only device.py asks which device this is."""

import ast
import itertools

import pytest

from helpers.imports import Import, Module, circle, dotted, file_graph, imports_of, package_modules, part_of

# What each part of the package imports of the others. A new part is refused until it has its line here, and so is an
# arrow that nobody uses.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "values": set(),
    "keywords": {"errors"},
    "durable": set(),
    "interrupts": set(),
    "terminal": {"errors"},
    "device": set(),
    "cache": {"errors", "device"},
    "models": {"cache", "errors", "device", "values"},
    "checkpoint": {"models", "errors", "device", "interrupts", "values"},
    "tokenizer": {"errors", "interrupts"},
    "messages": {"cache", "tokenizer", "errors"},
    "generation": {"models", "cache", "tokenizer", "messages", "errors", "device", "keywords", "terminal"},
    "conversion": {"checkpoint", "durable", "models", "errors", "device", "terminal", "values"},
    "calibration": {"conversion", "durable", "models", "tokenizer", "errors"},
    "footprint": {"checkpoint", "models", "cache", "errors", "device", "terminal"},
    "api": {
        "cache",
        "calibration",
        "checkpoint",
        "conversion",
        "footprint",
        "hosts",
        "keywords",
        "models",
        "tokenizer",
        "errors",
        "training",
    },
    "hosts": {"models", "cache", "checkpoint", "footprint", "errors", "device", "interrupts", "terminal"},
    "training": {
        "models",
        "checkpoint",
        "conversion",
        "tokenizer",
        "messages",
        "durable",
        "interrupts",
        "errors",
        "device",
        "terminal",
        "values",
    },
    "evaluation": {
        "api",
        "checkpoint",
        "conversion",
        "footprint",
        "models",
        "tokenizer",
        "errors",
        "device",
        "terminal",
        "values",
    },
    "selftest": {"cache", "checkpoint", "generation", "models", "errors", "device", "interrupts", "terminal"},
    "demo": {"api", "generation"},
}
# Inside the chat, from the program down. Its parts may import all of ARROWS, and what the commands share.
CHAT_ARROWS: dict[str, set[str]] = {
    "chat.paths": set(),
    "chat.screen": set(),
    "chat.conversation": set(),
    "chat.tools": {"chat.conversation"},
    "chat.keyboard": {"chat.paths"},
    "chat.sessions": {"chat.paths", "chat.conversation"},
    "chat.person": {"chat.keyboard", "chat.screen", "chat.tools"},
    "chat.loop": {"chat.person", "chat.keyboard", "chat.sessions", "chat.screen", "chat.tools", "chat.conversation"},
    "chat.one_shot": {"chat.loop", "chat.person", "chat.keyboard", "chat.screen", "chat.tools", "chat.conversation"},
    "chat.commands": {"chat.loop", "chat.keyboard", "chat.sessions", "chat.screen", "chat.tools", "chat.conversation"},
    "chat.app": set(),
    "chat": set(),
}
# What stands in front of a person may import all of ARROWS, and of the others here these; "" is afmoe_mlx/__init__.py.
FRONT: dict[str, set[str]] = {
    "command_line": set(),
    "chat": {"command_line"},
    "server": {"command_line"},
    "commands": {"command_line", "chat", "server"},
    "cli": {"command_line", "commands", ""},
    "__main__": {"cli"},
    "": set(),
}
INTERFACES = FRONT.keys() - {"", "__main__"}
INTERFACE_LIBRARIES = {"typer", "rich", "fastapi", "starlette", "uvicorn", "pydantic", "textual", "prompt_toolkit"}
# Where else pydantic reads what comes from outside.
READERS = {"hosts"}
SLOW_LIBRARIES = {"mlx_lm", "transformers", "torch"}
# Modules whose functions may import mlx_lm, for what it does and we do not.
MLX_LM_USERS: frozenset[str] = frozenset()
# Run by hand to make the demo model, never imported by the program.
SCRIPTS = {"afmoe_mlx.demo.train", "afmoe_mlx.demo.quantize"}
DEVICE_QUESTIONS = {
    "cuda",
    "default_device",
    "device_info",
    "is_available",
    "metal",
    "set_cache_limit",
    "set_default_device",
    "set_memory_limit",
    "set_wired_limit",
}


def wing_of(name: str) -> str:
    """The part that an absolute name lies in, and if that is the chat, its wing."""
    parts = name.split(".")[1:]
    wing = ".".join(parts[:2])
    return wing if wing in CHAT_ARROWS else part_of(name)


def allowed(part: str) -> set[str]:
    """The other parts that a part may import."""
    return ARROWS[part] if part in ARROWS else ARROWS.keys() | FRONT[part]


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """Every rule that the source of a module such as `afmoe_mlx.models.afmoe` breaks, a line each."""
    part = [*module.split("."), ""][1]
    if part not in ARROWS.keys() | FRONT.keys():
        return [f"{module}: the part {part} has no line in ARROWS"]
    if part == "chat" and not is_package and wing_of(module) == "chat":
        return [f"{module}: it has no line in CHAT_ARROWS"]
    tree = ast.parse(source)
    imports = imports_of(module, tree, is_package=is_package)
    problems = [(found.line, problem) for found in imports if (problem := _problem(module, part, found))]
    return [f"{module}:{line}: {problem}" for line, problem in problems + _device_problems(part, tree, imports)]


def _problem(module: str, part: str, found: Import) -> str | None:
    name, root = found.name, found.name.split(".")[0]
    if root == "afmoe_mlx":
        return _arrow_problem(module, part, name)
    if root == "chat":
        return "chat is afmoe_mlx.chat"
    if root in INTERFACE_LIBRARIES and part not in INTERFACES | (READERS if root == "pydantic" else set()):
        return f"{root} belongs to {', '.join(sorted(INTERFACES))}"
    if root in SLOW_LIBRARIES and not _may_import(module, found):
        return f"{root} takes seconds to import"
    if name.startswith("mlx.core.") and name.split(".")[2] in DEVICE_QUESTIONS and part != "device":
        return f"only device.py uses {name}"
    return None


def _arrow_problem(module: str, part: str, name: str) -> str | None:
    target = part_of(name)
    if target != part and target not in allowed(part):
        return f"{part} imports {name}"
    wing, other = wing_of(module), wing_of(name)
    if part == target == "chat" and other != wing and wing not in ("chat.app", "chat"):
        return f"{wing} imports {name}" if other not in CHAT_ARROWS[wing] else None
    return None


def _may_import(module: str, found: Import) -> bool:
    listed = found.name.split(".")[0] == "mlx_lm" and module in MLX_LM_USERS and found.in_function
    return listed or module in SCRIPTS


def _device_problems(part: str, tree: ast.AST, imports: list[Import]) -> list[tuple[int, str]]:
    if part == "device":
        return []
    names_of_core = {"mlx.core", *(found.local for found in imports if found.name == "mlx.core" and found.local)}
    return [
        (node.lineno, f"only device.py uses mlx.core.{node.attr}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in DEVICE_QUESTIONS and dotted(node.value) in names_of_core
    ]


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    found = package_modules()
    assert {"afmoe_mlx.errors", "afmoe_mlx.chat"} <= {module.name for module in found}
    return found


@pytest.fixture(scope="module")
def graph(modules: list[Module]) -> dict[str, set[str]]:
    return file_graph(modules)


def test_the_package_keeps_its_layers(modules: list[Module]) -> None:
    found = [problem for m in modules for problem in violations(m.name, m.source, m.is_package)]
    assert not found, "\n".join(found)


def test_no_files_import_each_other(graph: dict[str, set[str]]) -> None:
    assert not circle(graph), " -> ".join(circle(graph))


@pytest.mark.parametrize("part", [part_of, wing_of])
def test_no_parts_import_each_other(graph: dict[str, set[str]], part) -> None:
    parts: dict[str, set[str]] = {}
    for name, targets in graph.items():
        parts.setdefault(part(name), set()).update(map(part, targets))
    for name, targets in parts.items():
        targets.discard(name)
    # __init__.py of the chat and of the package are doors: what lies behind them does not come back through them
    assert not circle(parts), " -> ".join(circle(parts))


def test_every_arrow_is_used(graph: dict[str, set[str]]) -> None:
    used = {(wing_of(name), wing_of(target)) for name, targets in graph.items() for target in targets}
    drawn = {(part, target) for part, targets in (ARROWS | CHAT_ARROWS).items() for target in targets}
    assert not drawn - used


@pytest.mark.parametrize(
    "imports",
    [
        {"a": {"b"}, "b": {"a"}},
        {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}},
    ],
)
def test_a_circle_is_found_whole(imports: dict[str, set[str]]) -> None:
    found = circle(imports)
    assert found[0] == found[-1]
    assert all(target in imports[name] for name, target in itertools.pairwise(found))


@pytest.mark.parametrize(
    "statement",
    [
        "from .b import x",
        "from . import b",
        "import afmoe_mlx.models.b",
        "def f():\n    from .b import x",
        "if TYPE_CHECKING:\n    from .b import x",
        "import_module('.b', __package__)",
    ],
)
def test_every_way_to_import_counts(statement: str, tmp_path) -> None:
    (tmp_path / "a.py").write_text(statement)
    (tmp_path / "b.py").write_text("from .a import y")
    files = [Module(f"afmoe_mlx.models.{name}", tmp_path / f"{name}.py", False) for name in "ab"]
    assert len(circle(file_graph(files))) == 3


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("afmoe_mlx.models.afmoe", "from ..generation import generate"),
        ("afmoe_mlx.models.afmoe", "def f():\n    from ..generation.sampling import make_sampler"),
        ("afmoe_mlx.models.afmoe", "async def f():\n    import afmoe_mlx.checkpoint.weights"),
        ("afmoe_mlx.models.afmoe", "import importlib\nimportlib.import_module('..generation', __package__)"),
        ("afmoe_mlx.models.afmoe", "from importlib import import_module\nimport_module('afmoe_mlx.conversion')"),
        ("afmoe_mlx.models.afmoe", "import afmoe_mlx"),
        ("afmoe_mlx.models.afmoe", "from afmoe_mlx import load"),
        ("afmoe_mlx.models.afmoe", "from .. import load"),
        ("afmoe_mlx.cache.buffers", "from ..models import afmoe"),
        ("afmoe_mlx.checkpoint.weights", "from ..cache import KVCache"),
        ("afmoe_mlx.tokenizer.template", "from ..device import dtype"),
        ("afmoe_mlx.generation.loop", "from ..checkpoint import load"),
        ("afmoe_mlx.conversion.quantize", "from ..generation import generate"),
        ("afmoe_mlx.conversion.job", "def f():\n    from ..calibration import Calibration"),
        ("afmoe_mlx.errors", "from .device import dtype"),
        ("afmoe_mlx.generation.loop", "from ..cli import app"),
        ("afmoe_mlx.generation.loop", "from ..command_line.progress import progress_bar"),
        ("afmoe_mlx.generation.loop", "def f():\n    from rich.progress import Progress"),
        ("afmoe_mlx.checkpoint.hub", "import typer"),
        ("afmoe_mlx", "import rich"),
        ("afmoe_mlx.cli", "def f():\n    import mlx_lm.utils"),
        ("afmoe_mlx.command_line.draft", "from ..commands.generate import run"),
        ("afmoe_mlx.chat.app", "from transformers import AutoTokenizer"),
        ("afmoe_mlx.chat.app", "from afmoe_mlx.commands.generate import run"),
        ("afmoe_mlx.chat.loop", "from .commands.command import COMMANDS"),
        ("afmoe_mlx.chat.screen.display", "from ..conversation.settings import MEANINGS"),
        ("afmoe_mlx.chat.conversation.recall", "def f():\n    from ..screen import status"),
        ("afmoe_mlx.chat.keyboard.reader", "from ..app import make_reader"),
        ("afmoe_mlx.chat.paths", "from . import loop"),
        ("afmoe_mlx.chat.loose", "import os"),
        ("afmoe_mlx.conversion.quantize", "import torch"),
        ("afmoe_mlx.cli", "from chat import main"),
        ("afmoe_mlx.cli", "import chat.app"),
        ("afmoe_mlx.cli", "import mlx.core as mx\nmx.set_wired_limit(1)"),
        ("afmoe_mlx.models.moe", "def f():\n    return mx.metal.is_available()\nimport mlx.core as mx"),
        ("afmoe_mlx.models.moe", "import mlx.core\nmlx.core.default_device()"),
        ("afmoe_mlx.models.moe", "from mlx import core\ncore.cuda"),
        ("afmoe_mlx.models.moe", "from mlx.core import device_info"),
        ("afmoe_mlx.surprise.thing", "import os"),
    ],
)
def test_a_broken_rule_is_found_once(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("afmoe_mlx.models.afmoe", "from ..cache import KVCache\nfrom . import moe\nfrom .rope import Rope"),
        ("afmoe_mlx.generation.loop", "import afmoe_mlx.models.afmoe\nfrom ..device import default_device"),
        ("afmoe_mlx.device", "import mlx.core as mx\nmx.set_wired_limit(1)\nmx.metal.is_available()"),
        ("afmoe_mlx.models.moe", "from .. import device\ndevice.device_info()"),
        ("afmoe_mlx.models.moe", "import mlx.core as mx\nmx.get_peak_memory()"),
        ("afmoe_mlx.cli", "import typer\nfrom .generation import generate\nfrom .commands.chat import run"),
        ("afmoe_mlx.commands.chat", "from ..chat.app import run"),
        (
            "afmoe_mlx.chat.app",
            "from rich import live\nfrom afmoe_mlx.api import load\nfrom .commands import files",
        ),
        ("afmoe_mlx.chat.loop", "from .screen.display import AnswerDisplay\nfrom afmoe_mlx.messages import prompts"),
        ("afmoe_mlx", "from .generation import generate"),
    ],
)
def test_what_the_rules_allow_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_relative_imports_of_a_package_start_at_itself() -> None:
    assert violations("afmoe_mlx.models", "from . import moe\nfrom ..cache import KVCache", is_package=True) == []
    assert len(violations("afmoe_mlx.models", "from ..generation import generate", is_package=True)) == 1


def test_mlx_lm_is_allowed_in_functions_of_listed_modules_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MLX_LM_USERS", frozenset({"afmoe_mlx.conversion.tune"}))
    assert violations("afmoe_mlx.conversion.tune", "def f():\n    import mlx_lm") == []
    assert len(violations("afmoe_mlx.conversion.tune", "import mlx_lm")) == 1
    assert len(violations("afmoe_mlx.conversion.tune", "def f():\n    import torch")) == 1
