"""docs/server.md says what the server does: its paths, options, errors and metrics."""

import configparser
import plistlib
import re

import typer

from afmoe_mlx.cli import app
from afmoe_mlx.server.http.metrics import Metrics
from afmoe_mlx.server.protocols import ENDPOINTS
from afmoe_mlx.server.question import Call
from helpers import ROOT
from helpers.fake_app import HEALTHY

PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of a table, by the first of its head."""
    table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_every_path_is_on_the_page() -> None:
    told = set().union(*(named(row[0]) for row in rows("path")))
    own = {"GET /health", "GET /metrics", "GET /openapi.json", "GET /"}
    endpoints = {f"{one.method} {re.sub('{.*}', 'NAME', one.path)}" for one in ENDPOINTS}
    assert told == endpoints | own


def test_every_option_that_is_named_is_there() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {option for command in commands.values() for param in command.params for option in param.opts}
    others = {"--retry", "--retry-connrefused", "--user", "--now", "--only"}  # of other programs
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - others <= options
    serve = {option for param in commands["serve"].params for option in param.opts}
    assert {next(iter(named(row[0]))) for row in rows("option")} <= serve


def test_every_metric_is_on_the_page() -> None:
    metrics = Metrics(lambda: HEALTHY)
    metrics.count(Call("1", "/", reason="code"), 400)
    types = re.findall(r"# TYPE (\S+)", metrics.text().decode())
    assert set().union(*(named(row[0]) for row in rows("metric"))) == set(types)


def test_every_code_of_an_error_is_on_the_page() -> None:
    sources = [path.read_text() for path in (ROOT / "afmoe_mlx" / "server").rglob("*.py")]
    codes = {code for source in sources for code in re.findall(r'code="(\w+)"', source)}
    assert set().union(*(named(row[1]) for row in rows("status"))) >= codes - {"thread_unsupported_request"}


def test_the_units_can_be_read_and_run_what_is_there() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(PAGE.partition("```ini\n")[2].partition("```")[0])
    assert unit["Service"]["ExecStart"].split()[1] == "serve"
    agent = plistlib.loads(PAGE.partition("```xml\n")[2].partition("```")[0].encode())
    assert agent["ProgramArguments"][1] == "serve"
    assert agent["ExitTimeOut"] == int(unit["Service"]["TimeoutStopSec"]) > 30
