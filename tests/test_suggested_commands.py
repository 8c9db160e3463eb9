"""Commands that are suggested can be pasted into a shell, whatever is in a name or a path."""

import ast
import re
from collections.abc import Iterator

import pytest

from helpers.imports import dotted, package_modules

BEGUN = re.compile(r"(?:afmoe-mlx|hf|iconv|pip) [a-z][^`]*\Z")


def unquoted(source: str) -> Iterator[int]:
    """Lines with an f-string in which a value stands inside a command and is not quoted for a shell."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                before += str(part.value)
            elif isinstance(part, ast.FormattedValue):
                is_quoted = isinstance(part.value, ast.Call) and dotted(part.value.func) == "shlex.quote"
                if BEGUN.search(before) and not is_quoted:
                    yield node.lineno
                before += "x"


def test_every_value_in_a_suggested_command_is_quoted() -> None:
    found = [f"{module.name}:{line}" for module in package_modules() for line in unquoted(module.source)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ('f"try: afmoe-mlx generate --model {target}"', True),
        ('f"`hf upload {shlex.quote(repo)} {folder} .`"', True),
        ('f"`afmoe-mlx chat --resume {shlex.quote(name)}` goes on with {name}"', False),
        ('f"afmoe-mlx {version}"', False),
    ],
)
def test_an_unquoted_value_is_found(source: str, is_found: bool) -> None:
    assert bool(list(unquoted(source))) == is_found
