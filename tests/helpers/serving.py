"""`afmoe-mlx serve` as a process, on a port of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Served:
    """A server that answers."""

    process: "subprocess.Popen[str]"
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def end(self) -> tuple[int, str, str]:
        """Its exit status, and what it wrote from now on to stdout and ever to stderr."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@contextmanager
def serve(model: str, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Start it and wait for its address; it is ended with the block, if it runs still."""
    command = [sys.executable, "-m", "afmoe_mlx", "serve", "--model", model, "--port", "0", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield Served(process, line.strip())
    finally:
        process.kill()
        process.communicate()
