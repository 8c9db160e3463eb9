"""Imports in the package go one way, and only device.py asks which device this is.

The sources are parsed, never run: imports inside functions and `import_module("…")` with a constant name count too.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each part of the package may import of the others. A new part is refused until it has its line here.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "values": set(),
    "durable": set(),
    "device": {"errors"},
    "cache": {"errors", "device"},
    "models": {"cache", "errors", "device", "values"},
    "checkpoint": {"models", "errors", "device", "values"},
    "tokenizer": {"errors"},
    "generation": {"models", "cache", "tokenizer", "errors", "device"},
    "conversion": {
        "calibration",
        "checkpoint",
        "durable",
        "models",
        "tokenizer",
        "errors",
        "device",
        "terminal",
        "values",
    },
    "calibration": {"checkpoint", "conversion", "durable", "models", "tokenizer", "errors", "device", "values"},
    "footprint": {"checkpoint", "conversion", "models", "cache", "errors", "device", "terminal"},
    "api": {"cache", "checkpoint", "footprint", "models", "tokenizer", "errors", "device"},
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
    "terminal": {"errors"},
    "demo": {"api", "generation", "errors"},
}
# These may import every part; "" is afmoe_mlx/__init__.py.
TOP = {"", "__main__", "cli", "commands", "chat", "server"}
INTERFACES = {"cli", "commands", "chat", "server"}
INTERFACE_LIBRARIES = {"typer", "rich", "fastapi", "starlette", "uvicorn", "textual", "prompt_toolkit"}
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


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """Every rule that the source of a module such as `afmoe_mlx.models.afmoe` breaks, a line each."""
    checker = Checker(module, module if is_package else module.rpartition(".")[0])
    if checker.part not in ARROWS.keys() | TOP:
        return [f"{module}: the part {checker.part} has no line in ARROWS"]
    checker.visit(ast.parse(source))
    return checker.problems + checker.device_problems()


def part_of(name: str) -> str:
    """The part of the package that an absolute name lies in; what __init__.py exports lies in ""."""
    part = [*name.split("."), ""][1]
    return part if part in ARROWS.keys() | TOP else ""


def dotted(node: ast.AST) -> str:
    """`a.b.c` for such an expression, else ""."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return base and f"{base}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


class Checker(ast.NodeVisitor):
    """Collects the problems of one module."""

    def __init__(self, module: str, package: str) -> None:
        self.module, self.package = module, package
        self.part = [*module.split("."), ""][1]
        self.depth = 0
        self.problems: list[str] = []
        self.names_of_core = {"mlx.core"}
        self.attributes: list[ast.Attribute] = []

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.imported(node, alias.name, alias.asname)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self.absolute("." * node.level + (node.module or ""))
        for alias in node.names:
            self.imported(node, f"{base}.{alias.name}", alias.asname or alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if dotted(node.func).rpartition(".")[2] in {"import_module", "__import__"} and node.args:
            match node.args[0]:
                case ast.Constant(value=str(name)):
                    self.imported(node, self.absolute(name), None)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        self.attributes.append(node)

    def absolute(self, name: str) -> str:
        bare = name.lstrip(".")
        if bare == name:
            return name
        above = len(name) - len(bare) - 1
        parents = self.package.split(".")
        return ".".join(filter(None, [*parents[: len(parents) - above], bare]))

    def imported(self, node: ast.stmt | ast.expr, name: str, local: str | None) -> None:
        if name == "mlx.core" and local:
            self.names_of_core.add(local)
        root = name.split(".")[0]
        if root == "afmoe_mlx":
            target = part_of(name)
            if self.part not in TOP and target != self.part and target not in ARROWS[self.part]:
                self.report(node, f"{self.part} imports {name}")
        elif root == "chat":
            self.report(node, "chat is afmoe_mlx.chat")
        elif root in INTERFACE_LIBRARIES and self.part not in INTERFACES:
            self.report(node, f"{root} belongs to {', '.join(sorted(INTERFACES))}")
        elif root in SLOW_LIBRARIES and not self.may_import(root):
            self.report(node, f"{root} takes seconds to import")
        elif name.startswith("mlx.core.") and name.split(".")[2] in DEVICE_QUESTIONS and self.part != "device":
            self.report(node, f"only device.py uses {name}")

    def may_import(self, slow_library: str) -> bool:
        listed = slow_library == "mlx_lm" and self.module in MLX_LM_USERS and self.depth > 0
        return listed or self.module in SCRIPTS

    def device_problems(self) -> list[str]:
        return [
            f"{self.module}:{node.lineno}: only device.py uses mlx.core.{node.attr}"
            for node in self.attributes
            if node.attr in DEVICE_QUESTIONS and dotted(node.value) in self.names_of_core and self.part != "device"
        ]

    def report(self, node: ast.stmt | ast.expr, problem: str) -> None:
        self.problems.append(f"{self.module}:{node.lineno}: {problem}")


def package_modules() -> list[tuple[str, Path]]:
    """Every module of the package under the name it is installed as."""
    modules = []
    for folder, package in (("afmoe_mlx", "afmoe_mlx"), ("chat", "afmoe_mlx.chat")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            modules.append((".".join([package, *(part for part in parts if part != "__init__")]), path))
    return modules


def test_the_package_keeps_its_layers():
    modules = package_modules()
    assert {"afmoe_mlx.errors", "afmoe_mlx.chat"} <= {name for name, _ in modules}
    found = [
        problem
        for name, path in modules
        for problem in violations(name, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


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
        ("afmoe_mlx.errors", "from .device import dtype"),
        ("afmoe_mlx.generation.loop", "from ..cli import app"),
        ("afmoe_mlx.generation.loop", "from ..terminal import note"),
        ("afmoe_mlx.generation.loop", "def f():\n    from rich.progress import Progress"),
        ("afmoe_mlx.checkpoint.hub", "import typer"),
        ("afmoe_mlx", "import rich"),
        ("afmoe_mlx.cli", "def f():\n    import mlx_lm.utils"),
        ("afmoe_mlx.chat.app", "from transformers import AutoTokenizer"),
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
def test_a_broken_rule_is_found_once(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("afmoe_mlx.models.afmoe", "from ..cache import KVCache\nfrom . import moe\nfrom .rope import Rope"),
        ("afmoe_mlx.generation.loop", "import afmoe_mlx.models.afmoe\nfrom ..device import default_device"),
        ("afmoe_mlx.device", "import mlx.core as mx\nmx.set_wired_limit(1)\nmx.metal.is_available()"),
        ("afmoe_mlx.models.moe", "from .. import device\ndevice.device_info()"),
        ("afmoe_mlx.models.moe", "import mlx.core as mx\nmx.get_peak_memory()"),
        ("afmoe_mlx.cli", "import typer\nfrom .generation import generate\nfrom .chat.app import run"),
        ("afmoe_mlx.chat.app", "from rich.live import Live\nfrom afmoe_mlx import load"),
        ("afmoe_mlx", "from .generation import generate"),
    ],
)
def test_what_the_rules_allow_passes(module, source):
    assert violations(module, source) == []


def test_relative_imports_of_a_package_start_at_itself():
    assert violations("afmoe_mlx.models", "from . import moe\nfrom ..cache import KVCache", is_package=True) == []
    assert len(violations("afmoe_mlx.models", "from ..generation import generate", is_package=True)) == 1


def test_mlx_lm_is_allowed_in_functions_of_listed_modules_alone(monkeypatch):
    monkeypatch.setitem(globals(), "MLX_LM_USERS", frozenset({"afmoe_mlx.conversion.tune"}))
    assert violations("afmoe_mlx.conversion.tune", "def f():\n    import mlx_lm") == []
    assert len(violations("afmoe_mlx.conversion.tune", "import mlx_lm")) == 1
    assert len(violations("afmoe_mlx.conversion.tune", "def f():\n    import torch")) == 1
