"""Do editors' and terminals' agents work with `afmoe-mlx serve`? `PATH=… python benchmarks/clients.py [NAME…]`

Each of `agents.py` that is on the PATH writes a file by a tool call and says that it is done, in an empty folder, with
an empty home and no network but loopback. The model is scripted: it says what the task needs, whatever the prompt. What
counts is that the file is there and the client ends well, and how many tokens of its first turn the second had to read
again. Tokens are those of a vocabulary of 4,096; a real model's are about 4 characters each.

Installing: `npm install opencode-ai @openai/codex @anthropic-ai/claude-code @qwen-code/qwen-code cline
@continuedev/cli`, with Node 24 or later; `pip install llm`, `pip install aider-chat`, each in its own environment.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from agents import AGENTS, TASK, WRITTEN, Agent
from http_client import HOST
from servers import ours
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.scripted import scripted_folder  # noqa: E402
from helpers.tiny_tokenizers import SPECIAL_TOKENS  # noqa: E402

KEY, MODEL = "dummy", "scripted"
CONTEXT = 131072
MAX_SECONDS = 120


class Row(NamedTuple):
    completed: str
    """"yes", or what went wrong."""
    requests: int
    tokens: int
    """Of the first turn's prompt."""
    reused: int
    """Of those, by the last turn."""
    seconds: float

    def told(self) -> str:
        counts = f"{self.requests} | {self.tokens:,} | {self.reused:,}"
        return f"{self.completed} | {counts} | {self.seconds:.1f}"


def prose_tokenizer() -> Tokenizer:
    """Byte-level BPE of 4,096 tokens, made of this project's texts: as many a prompt as a small model's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    texts = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "afmoe_mlx").rglob("*.py"))]
    tokenizer.train([str(path) for path in texts], trainer)
    return tokenizer


def filled(text: str, values: Mapping[str, str]) -> str:
    return Template(text).substitute(values)


def run(agent: Agent, tokenizer: Tokenizer, place: Path) -> Row:
    """The task, by one client. place: a folder for all that it leaves."""
    home, folder, log, told = (place / name for name in ("home", "work", "log", "told"))
    folder.mkdir(parents=True)
    values = {"home": str(home), "folder": str(folder), "key": KEY, "model": MODEL, "task": TASK}
    said = [filled(text, values) for text in agent.says]
    # what asks for a title offers no tools
    scripted_folder(place / MODEL, said, without_tools=said[-1], tokenizer=tokenizer, context=CONTEXT)
    with ours(place / MODEL, "--api-key", KEY, "--log-json", log=log) as server:
        values["url"] = f"http://{HOST}:{server.port}"
        for name, text in agent.files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(filled(text, values), encoding="utf-8")
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb", "NO_COLOR": "1"}
        environment |= {name: filled(value, values) for name, value in agent.environment.items()}
        began = time.perf_counter()
        ended = ending([filled(part, values) for part in agent.command], folder, environment, told)
        seconds = time.perf_counter() - began
    if ended == "yes" and not is_done(folder):
        ended = "no file"
    lines = map(read_line, log.read_text(encoding="utf-8").splitlines())
    requests = [line for line in lines if line.get("prompt_tokens")]
    first, *_, last = [*sorted(requests, key=lambda line: line["prompt_tokens"])[-2:], {}, {}][:2]
    return Row(ended, len(requests), first.get("prompt_tokens", 0), last.get("cached_tokens", 0), seconds)


def ending(command: Sequence[str], folder: Path, environment: Mapping[str, str], told: Path) -> str:
    """Run a client to its end, or to that of our patience: "yes", or what went wrong."""
    with told.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(MAX_SECONDS)
        except subprocess.TimeoutExpired:
            return f"no end within {MAX_SECONDS} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
            process.wait()
    return "yes" if status == 0 else f"status {status}"


def is_done(folder: Path) -> bool:
    path = folder / WRITTEN
    return path.is_file() and path.read_text(encoding="utf-8") == "hi\n"


def read_line(line: str) -> dict[str, Any]:
    return json.loads(line) if line.startswith("{") else {}


def version_of(program: str) -> str | None:
    """What a client calls itself; None if it is not here."""
    if shutil.which(program) is None:
        return None
    with TemporaryDirectory() as home:
        environment = {"HOME": home, "PATH": os.environ["PATH"]}
        told = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True, timeout=60)
    found = re.search(r"\d+(\.\d+)+", told.stdout)
    return found[0] if found else "?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="clients to try; all, if none is named")
    parser.add_argument("--keep", type=Path, help="a new folder for what each leaves: its log, its words, its home")
    arguments = parser.parse_args()
    print("| client | version | protocol | completed | requests | first turn | of it reused by the next | seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    tokenizer = prose_tokenizer()
    with TemporaryDirectory() as temporary:
        base = arguments.keep or Path(temporary).resolve()
        for agent in AGENTS:
            if arguments.names and agent.name not in arguments.names:
                continue
            version = version_of(agent.program)
            if version is None:
                print(f"| {agent.name} | not on the PATH: {agent.package} | {agent.protocol} | | | | | |")
                continue
            row = run(agent, tokenizer, base / f"{agent.name}-{agent.protocol}")
            print(f"| {agent.name} | {version} | {agent.protocol} | {row.told()} |", flush=True)


if __name__ == "__main__":
    main()
