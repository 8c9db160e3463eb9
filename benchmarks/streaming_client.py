"""A client of a chat server as a process of its own, which streams and takes the time of every piece.

`ask` starts it: what is asked is JSON on its stdin, what it saw is JSON on its stdout.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from http_client import request

ALONE = 50
"""Tokens that each of several answers has before another question arrives."""
ANY = "default_model"
"""What mlx-lm's server calls the one that it was started with."""


async def answered(port: int, body: dict[str, Any], times: list[float] | None = None) -> dict[str, Any]:
    """When a streamed answer's pieces came, its text and its usage. times: where those go as they come."""
    began, text, usage = time.perf_counter(), "", {}
    times = [] if times is None else times
    body = {"model": ANY, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}} | body
    async with request(port, "/v1/chat/completions", body) as response:
        if response.status != 200:
            raise SystemExit(f"{response.status}: {(await response.read()).decode()}")
        async for event in response.events():
            if event.data == "[DONE]":
                break
            chunk = json.loads(event.data)
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                if piece := choice["delta"].get("content"):
                    times.append(time.perf_counter())
                    text += piece
    known = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    tokens = {"prompt": usage["prompt_tokens"], "known": known, "answer": usage["completion_tokens"]}
    return {"began": began, "ended": time.perf_counter(), "times": times, "text": text} | tokens


async def load(port: int, clients: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Clients that each ask one question after the other."""

    async def client(bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [await answered(port, body) for body in bodies]

    return [one for found in await asyncio.gather(*map(client, clients)) for one in found]


async def conversation(port: int, body: dict[str, Any], turns: Sequence[str], edit: str) -> list[dict[str, Any]]:
    """Turns that follow each other, then the second anew with another message."""
    messages, found = list(body["messages"]), []
    for text in turns:
        messages.append({"role": "user", "content": text})
        found.append(await answered(port, body | {"messages": messages}) | {"messages": list(messages)})
        messages.append({"role": "assistant", "content": found[-1]["text"]})
    messages = [*found[1]["messages"][:-1], {"role": "user", "content": edit}]
    return [*found, await answered(port, body | {"messages": messages}) | {"messages": messages}]


async def beside(port: int, running: Sequence[dict[str, Any]], arriving: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers that are being written while another question arrives, which comes first."""
    times: list[list[float]] = [[] for _ in running]
    rows = [asyncio.create_task(answered(port, *one)) for one in zip(running, times, strict=True)]
    while min(map(len, times)) < ALONE:
        await asyncio.sleep(0.05)
    found = await answered(port, arriving)
    return [found, *await asyncio.gather(*rows)]


TASKS = {task.__name__: task for task in (load, conversation, beside)}


def ask(port: int, task: str, *arguments: Any) -> list[dict[str, Any]]:
    """What a client in a process of its own has seen."""
    said = json.dumps([port, task, arguments])
    told = subprocess.run([sys.executable, __file__], input=said.encode(), stdout=subprocess.PIPE)
    if told.returncode:
        raise SystemExit("the client failed")
    found: list[dict[str, Any]] = json.loads(told.stdout)
    return found


def main() -> None:
    port, task, arguments = json.load(sys.stdin)
    print(json.dumps(asyncio.run(TASKS[task](port, *arguments))))


if __name__ == "__main__":
    main()
