"""What a command does not need is not imported on its way: modules are counted, never seconds."""

import subprocess
import sys

import pytest

CONSTRAINTS = {"llguidance", "jsonschema"}
FRAMEWORKS = {"mlx_lm", "transformers", "torch"}
REQUESTS = ("answering", "conversion", "machine", "serving", "tuning", "loading")
WEB = {"pydantic", "starlette", "uvicorn", "prometheus_client", "h11"}
HUB = {"huggingface_hub", "httpx", "httpx2", "requests", "tqdm"}


def modules_after(code: str) -> set[str]:
    """Every module that a fresh process has imported once it has run `code`, by its full name."""
    code += "\nimport sys; print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def modules_of(*arguments: str) -> set[str]:
    code = f"""from afmoe_mlx.cli import app
try: app({list(arguments)})
except SystemExit as e: assert not e.code, e.code"""
    return modules_after(code)


def test_importing_the_package_imports_no_other() -> None:
    found = modules_after("import afmoe_mlx")
    assert found & {"mlx.core", "mlx.nn", "numpy", "typer", "rich", "tokenizers", "jinja2"} | found & HUB == set()
    assert {name for name in found if name.startswith("afmoe_mlx.")} == {"afmoe_mlx.device"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],  # what is imported does not depend on the command
    ],
    ids=" ".join,
)
def test_help_needs_no_model_code(arguments: list[str]) -> None:
    found = modules_of(*arguments)
    assert found & FRAMEWORKS == found & HUB == set()
    assert found & {"mlx.core", "numpy", "tokenizers", "jinja2", "safetensors"} | found & WEB == set()
    ours = {name.removeprefix("afmoe_mlx.") for name in found if name.startswith("afmoe_mlx.")}
    files = ("options", "parsing", "request", "requests", *(f"requests.{name}" for name in REQUESTS))
    read = {"command_line", *(f"command_line.{name}" for name in files)}
    assert ours == {"cli", "device", "errors", "terminal"} | read


def test_an_answer_from_a_folder_needs_no_hub_no_numpy_and_off_a_terminal_no_rich(model: str) -> None:
    found = modules_of("generate", "--model", model, "--prompt", "hello", "-m", "2")
    assert "mlx.core" in found
    assert found & FRAMEWORKS == found & HUB == found & {"numpy", "rich", "safetensors"} == set()
    assert found & WEB == set()
    assert found & CONSTRAINTS == set()
    assert not {name for name in found if name.startswith(("afmoe_mlx.chat", "afmoe_mlx.conversion"))}


def test_an_answer_held_to_a_schema_needs_llguidance_alone(model: str) -> None:
    found = modules_of("generate", "--model", model, "--prompt", "hello", "--json-schema", '{"enum": [1, 2]}')
    assert found & (CONSTRAINTS | FRAMEWORKS | HUB | {"numpy", "rich"}) == {"llguidance"}


def test_a_model_loads_from_python_without_the_command_line(model: str) -> None:
    found = modules_after(f"from afmoe_mlx import load; load({model!r})")
    assert found & FRAMEWORKS == found & HUB == found & {"numpy", "rich", "typer", "safetensors"} == set()


def test_a_model_without_its_tokenizer_needs_no_tokenizers(model: str) -> None:
    found = modules_after(f"from afmoe_mlx import load_model; load_model({model!r})")
    assert found & {"tokenizers", "jinja2"} == set()


def test_bench_needs_no_slow_framework(model: str) -> None:
    found = modules_of("bench", "--model", model, "-p", "4", "-g", "2", "-n", "1")
    assert found & FRAMEWORKS == found & HUB == found & {"rich"} == set()


def test_the_server_needs_no_slow_framework() -> None:
    found = modules_after(
        "from afmoe_mlx.commands import serve; from afmoe_mlx.server import protocols\n"
        "from afmoe_mlx.server.http import app, listener; from afmoe_mlx.server.engine import service"
    )
    assert found & FRAMEWORKS == found & HUB == found & {"numpy", "rich", "fastapi", "llguidance"} == set()


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback() -> None:
    code = (
        "import builtins; whole = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return whole(name, *rest)\n"
        "builtins.__import__ = interrupted\n"
        "from afmoe_mlx.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
