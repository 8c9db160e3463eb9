"""Do editors' and terminals' agents work with `afmoe-mlx serve`? `PATH=… python benchmarks/clients.py [NAME…]`

Each of `agents.py` that is on the PATH writes a file by a tool call and says that it is done, in an empty folder, with
a home of its own, then again in a second session. The model is scripted: it says what the task needs, whatever the
prompt. What counts is that the file is there, that the client ends well and no request has failed; and how many tokens
of the first turn's prompt the second turn and the next session do not read again. Tokens are those of a vocabulary of
4,096, of about 3 characters each. Without a network it also shows that none needs another server.

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

from agents import AGENTS, WRITTEN, Agent
from http_client import HOST
from servers import ours
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.scripted import scripted_folder  # noqa: E402
from helpers.tiny_tokenizers import byte_level  # noqa: E402

KEY, MODEL = "dummy", "scripted"
CONTEXT = 131072
TASKS = ("Write hi into hello.txt, then say done.", "Put the word hi into the file hello.txt.")
REASONS = ("stop", "tool_calls")
MAX_SECONDS = 120
SETTLED_SECONDS = 0.2  # until the log has the last request


class Session(NamedTuple):
    """A client's task, from its start to its end."""

    completed: str
    """"yes", or what went wrong."""
    requests: Sequence[Mapping[str, Any]]
    """Lines of the server's log, of which those with few tokens are for a title."""
    seconds: float

    @property
    def turns(self) -> Sequence[Mapping[str, Any]]:
        """The last two: a client that has asked for a title asks for it first, and its prompt is the shortest."""
        return sorted(self.requests, key=lambda line: line["prompt_tokens"])[-2:]


def prose_tokenizer() -> Tokenizer:
    """Byte-level BPE of 4,096 tokens, made of this project's texts: as many a prompt as a small model's."""
    texts = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "afmoe_mlx").rglob("*.py"))]
    lines = (line for path in texts for line in path.read_text(encoding="utf-8").splitlines(keepends=True))
    return byte_level(lines, vocab_size=4096)


def filled(text: str, values: Mapping[str, str]) -> str:
    return Template(text).substitute(values)


def sessions(agent: Agent, tokenizer: Tokenizer, place: Path) -> list[Session]:
    """The tasks, one after the other, by one client. place: a folder for all that it leaves."""
    home, folder, log = (place / name for name in ("home", "work", "log"))
    folder.mkdir(parents=True)
    values = {"home": str(home), "folder": str(folder), "key": KEY, "model": MODEL}
    said = [filled(text, values) for text in agent.says]
    # what asks for a title offers no tools
    scripted_folder(place / MODEL, said, without_tools=said[-1], tokenizer=tokenizer, context=CONTEXT)
    with ours(place / MODEL, "--api-key", KEY, "--log-json", log=log) as server:
        values["url"] = f"http://{HOST}:{server.port}"
        for name, text in agent.files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(filled(text, values), encoding="utf-8")
        return [session(agent, values | {"task": task}, log, place / f"told-{i}") for i, task in enumerate(TASKS)]


def session(agent: Agent, values: Mapping[str, str], log: Path, told: Path) -> Session:
    """One task. log: the server's; told: where the client's own words go."""
    written = Path(values["folder"]) / WRITTEN
    written.unlink(missing_ok=True)
    before = log.stat().st_size
    environment = {"HOME": values["home"], "PATH": os.environ["PATH"], "TERM": "dumb", "NO_COLOR": "1"}
    environment |= {name: filled(value, values) for name, value in agent.environment.items()}
    began = time.perf_counter()
    command = [filled(part, values) for part in agent.command]
    completed = ending(command, Path(values["folder"]), environment, told)
    seconds = time.perf_counter() - began
    time.sleep(SETTLED_SECONDS)
    lines = log.read_bytes()[before:].decode().splitlines()
    requests = [json.loads(line) for line in lines if line.startswith("{")]
    if completed == "yes" and not (written.is_file() and written.read_text(encoding="utf-8") == "hi\n"):
        completed = "no file"
    if completed == "yes" and any(request["reason"] not in REASONS for request in requests):
        completed = "after errors"
    return Session(completed, requests, seconds)


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


def version_of(program: str) -> str | None:
    """What a client calls itself; None if it is not here."""
    if shutil.which(program) is None:
        return None
    with TemporaryDirectory() as home:
        environment = {"HOME": home, "PATH": os.environ["PATH"]}
        told = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True)
    found = re.search(r"\d+(\.\d+)+", told.stdout)
    return found[0] if found else "?"


def row(first: Session, second: Session) -> str:
    """What is told of a client: of its first session all, of the second what it knew already."""
    if first.completed != "yes" or second.completed != "yes" or not first.turns:
        return f"{first.completed}, {second.completed} | {len(first.requests)} | | | | {first.seconds:.1f}"
    prompt, *next_turn = first.turns
    counts = [prompt["prompt_tokens"], *(turn["cached_tokens"] for turn in next_turn)]
    known = [f"{count:,}" for count in counts] + ["–"] * (2 - len(counts)) + [f"{second.turns[0]['cached_tokens']:,}"]
    return f"yes | {len(first.requests)} | {' | '.join(known)} | {first.seconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="clients to try; all, if none is named")
    parser.add_argument("--keep", type=Path, help="a new folder for what each leaves: its words, its home, the log")
    arguments = parser.parse_args()
    print(
        "| client | version | protocol | completed | requests | first turn | second reuses | next session | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    tokenizer = prose_tokenizer()
    with TemporaryDirectory() as temporary:
        base = (arguments.keep or Path(temporary)).resolve()
        for agent in AGENTS:
            if arguments.names and agent.name not in arguments.names:
                continue
            version = version_of(agent.program)
            if version is None:
                print(f"| {agent.name} | not on the PATH ({agent.package}) | {agent.protocol} | no | | | | | |")
                continue
            both = sessions(agent, tokenizer, base / f"{agent.name}-{agent.protocol}")
            print(f"| {agent.name} | {version} | {agent.protocol} | {row(*both)} |", flush=True)


if __name__ == "__main__":
    main()
