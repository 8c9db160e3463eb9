"""What the package's files import of each other, read from their sources; nothing is run.

Imports inside functions, under `TYPE_CHECKING` and by `import_module("…")` with a constant name count too.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from helpers import ROOT


@dataclass(frozen=True)
class Module:
    """A file of the package, by the name it is installed under."""

    name: str
    path: Path
    is_package: bool

    @property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Import:
    """One name that a file imports: absolute, `mlx.core.metal` for `from mlx.core import metal`."""

    name: str
    line: int
    local: str | None
    """What it is called in the file."""
    in_function: bool


@cache
def package_modules() -> tuple[Module, ...]:
    """Every module of the package."""
    modules = []
    for folder, package in (("afmoe_mlx", "afmoe_mlx"), ("chat", "afmoe_mlx.chat")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            modules.append(Module(name, path, parts[-1] == "__init__"))
    return tuple(modules)


def part_of(name: str) -> str:
    """The part of the package that an absolute name lies in; what __init__.py exports lies in ""."""
    part = [*name.split("."), ""][1]
    return part if part in _parts() else ""


@cache
def _parts() -> frozenset[str]:
    return frozenset([*module.name.split("."), ""][1] for module in package_modules())


def dotted(node: ast.AST) -> str:
    """`a.b.c` for such an expression, else ""."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return base and f"{base}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports_of(name: str, tree: ast.AST, *, is_package: bool = False) -> list[Import]:
    """All that the module of a name imports, in order."""
    reader = _Reader(name if is_package else name.rpartition(".")[0])
    reader.visit(tree)
    return reader.found


class _Reader(ast.NodeVisitor):
    def __init__(self, package: str) -> None:
        self.package = package
        self.depth = 0
        self.found: list[Import] = []

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._imported(node, alias.name, alias.asname)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._absolute("." * node.level + (node.module or ""))
        for alias in node.names:
            self._imported(node, f"{base}.{alias.name}", alias.asname or alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if dotted(node.func).rpartition(".")[2] in {"import_module", "__import__"} and node.args:
            match node.args[0]:
                case ast.Constant(value=str(name)):
                    self._imported(node, self._absolute(name), None)

    def _absolute(self, name: str) -> str:
        bare = name.lstrip(".")
        if bare == name:
            return name
        above = len(name) - len(bare) - 1
        parents = self.package.split(".")
        return ".".join(filter(None, [*parents[: len(parents) - above], bare]))

    def _imported(self, node: ast.stmt | ast.expr, name: str, local: str | None) -> None:
        self.found.append(Import(name, node.lineno, local, self.depth > 0))


def file_graph(modules: Iterable[Module]) -> dict[str, set[str]]:
    """Of each module, the others that it imports."""
    modules = list(modules)
    names = {module.name for module in modules}
    return {
        module.name: {
            target
            for imported in imports_of(module.name, ast.parse(module.source), is_package=module.is_package)
            if (target := _nearest(imported.name, names)) and target != module.name
        }
        for module in modules
    }


def _nearest(name: str, names: set[str]) -> str:
    """The module that an imported name is, or is of; "" for another package's."""
    return next((parent for parent in _and_parents(name) if parent in names), "")


def _and_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Names that import each other in a circle, its first name again at the end; empty if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []
