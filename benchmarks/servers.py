"""Servers to be asked: ours and mlx-lm's as processes, on the same checkpoint in the same precision."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from checkpoints import DEMO_VOCABULARY, TOKENIZER, tiny_checkpoint
from http_client import HOST

from afmoe_mlx.api import DEMO
from afmoe_mlx.checkpoint.random import save_random
from afmoe_mlx.models.shapes import shape

NEVER = 0  # the demo's <|endoftext|>, which no answer has
# As most models of today: tools in the system message, calls as JSON.
TEMPLATE = """\
{%- if tools or messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content }}{% endif %}
    {%- if tools %}
        {{- '\\n# Tools\\nCalls are made as <tool_call>{"name": …, "arguments": …}</tool_call>\\n<tools>' }}
        {%- for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{% endfor %}
        {{- '\\n</tools>' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ (message.content or '') }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function or tool_call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


def demo_with_tools(folder: Path) -> Path:
    """The built-in model with a chat template that shows tools."""
    shutil.copytree(DEMO, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def endless_demo(folder: Path) -> Path:
    """The built-in model in 4 bits with scales in float32, whose answers end by their limit alone."""
    from mlx.core import float32
    from mlx_lm.utils import load_model, save_model

    demo_with_tools(folder)
    model = load_model(DEMO)[0]
    model.set_dtype(float32)
    for path in folder.glob("model*"):
        path.unlink()
    save_model(folder, model)
    _change(folder / "config.json", torch_dtype="float32")
    return _endless(folder)


def endless_narrow(folder: Path) -> Path:
    """Eight narrow layers in float32, whose answers end by their limit alone."""
    return _with_template(tiny_checkpoint(folder))


def endless_wide(folder: Path) -> Path:
    """Eight layers of Trinity Nano's width in 4 bits with scales in float32, whose answers end by their limit alone."""
    from mlx.core import float32

    save_random(folder, shape("trinity-nano", layers=8) | {"vocab_size": DEMO_VOCABULARY}, bits=4, dtype=float32)
    for name in TOKENIZER:
        shutil.copyfile(DEMO / name, folder / name)
    return _with_template(folder)


def _with_template(folder: Path) -> Path:
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    shutil.copyfile(DEMO / "generation_config.json", folder / "generation_config.json")
    return _endless(folder)


def _endless(folder: Path) -> Path:
    for name in ("config.json", "generation_config.json"):
        _change(folder / name, eos_token_id=NEVER)
    _change(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    return folder


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


class Server:
    """A server's process, that listens.

    port: where, if it does not tell on its stdout. log: where its stderr goes.
    """

    def __init__(self, command: Sequence[str], *, port: int | None = None, log: Path | None = None) -> None:
        self.began = time.perf_counter()
        with (log or Path(os.devnull)).open("ab") as errors:
            told = subprocess.PIPE if port is None else subprocess.DEVNULL
            self.process = subprocess.Popen(command, stdout=told, stderr=errors)
        self.port = self._told_port() if port is None else port
        if port is not None:
            self._await()

    def _told_port(self) -> int:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        if not line:
            raise SystemExit(f"the server ended with {self.process.wait()} before it listened")
        return int(line.rsplit(":", 1)[1])

    def _await(self) -> None:
        while True:
            try:
                urllib.request.urlopen(f"http://{HOST}:{self.port}/health").close()
                return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    raise SystemExit(f"the server ended with {self.process.returncode}") from None
                time.sleep(0.01)

    @property
    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm")
        if pages.exists():  # where it is, ps may not be
            return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True, check=True)
        return int(told.stdout) * 1024

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def ours(model: Path, *options: str, log: Path | None = None) -> Iterator[Server]:
    """`afmoe-mlx serve` on a free port."""
    command = [sys.executable, "-m", "afmoe_mlx", "serve", "--model", str(model), "--port", "0", *options]
    with _running(Server(command, log=log)) as server:
        yield server


@contextmanager
def theirs(model: Path, *, log: Path | None = None) -> Iterator[Server]:
    """`mlx_lm.server`, with the fast BLAS that ours has."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    program = "import afmoe_mlx, mlx_lm.server; mlx_lm.server.main()"
    command = [sys.executable, "-c", program, "--model", str(model), "--port", str(port), "--log-level", "ERROR"]
    with _running(Server(command, port=port, log=log)) as server:
        yield server


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
