"""Whether the server holds: `python benchmarks/soak.py [--seconds N] [--clients N] [--seed N]`

Clients that ask in all protocols, streamed or not, of random lengths, under schemas, with tools, sampled; that leave in
the middle of an answer or of its prompt, read slowly, send what is malformed, far too large or not theirs to ask. Every
answer must come, end as its protocol's clients need, and be the one that was computed beforehand, alone, in this
process: a first difference only where the two likeliest tokens lie within 1e-4. No error may be the server's own, its
memory must stay what it is after the warm-up, and nothing may be left running; then it is told to stop while it writes.

The built-in model, with a chat template that shows tools. A fault is told with the seed of what was sent.
"""

import argparse
import asyncio
import collections
import json
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, NamedTuple

import afmoe_mlx  # before MLX, so that MLX finds the fast BLAS

# isort: split
import jsonschema
import mlx.core as mx
import servers
from http_client import HOST, Event, Response, read_head, request
from protocols import PROTOCOLS, Asked, Chat, Completions, Told, check

KEYS = ("first-key-of-the-soak", "second-key-of-the-soak")
MODEL = "demo"
MAX_BODY = 200_000
PATIENCE = 90
"""Seconds after which a request counts as unanswered."""
CLOSE = 1e-4
GROWTH = 1.05
"""Of memory after the warm-up, at most."""
WORDS = "what is the model of a token and how does an expert or a layer of it attend to your text in memory".split()
TOOL = {
    "name": "look_up",
    "description": "Look a word up.",
    "parameters": {
        "type": "object",
        "properties": {"word": {"type": "string", "maxLength": 12}, "times": {"type": "integer"}},
        "required": ["word"],
        "additionalProperties": False,
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["AFMoE", "LFM2"]}, "is_open": {"type": "boolean"}},
    "required": ["name", "is_open"],
    "additionalProperties": False,
}


class Known(NamedTuple):
    """A question whose answer was computed alone."""

    asked: Asked
    prompt_tokens: int
    text: str
    ties: Sequence[tuple[int, int]]
    """Characters at which tokens begin and end that were nearly others."""

    def compare(self, text: str, *, is_whole: bool) -> None:
        """WrongAnswerError unless a text is this one, or its beginning; or differs from a tie on."""
        expected = self.text if is_whole else self.text[: len(text)]
        if text == expected:
            return
        place = next((i for i, (a, b) in enumerate(zip(text, expected)) if a != b), min(len(text), len(expected)))  # noqa: B905
        tied = any(begins <= place <= ends for begins, ends in self.ties)
        check(
            tied,
            "differs at",
            place,
            repr(text[max(place - 20, 0) : place + 20]),
            "from",
            repr(self.text[max(place - 20, 0) : place + 20]),
        )


def known_questions(folder: Path, count: int, chance: random.Random) -> list[Known]:
    model, tokenizer = afmoe_mlx.load(str(folder))
    return [_known(model, tokenizer, chance) for _ in range(count)]


def _known(model: Any, tokenizer: Any, chance: random.Random) -> Known:
    (length,) = chance.choices((3, 8, 20, 60, 150, 400, 1000), weights=(8, 8, 8, 6, 4, 2, 1))
    messages = [{"role": "user", "content": " ".join(chance.choices(WORDS, k=length)) + "?"}]
    if chance.random() < 0.4:
        messages.insert(0, {"role": "system", "content": "Answer in " + chance.choice(WORDS)})
    if chance.random() < 0.3:
        answered = [{"role": "assistant", "content": "A token."}, {"role": "user", "content": "And what is AFMoE?"}]
        messages += answered
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    limit, text, ties = chance.choice((1, 5, 20, 60, 120)), "", []
    for chunk in afmoe_mlx.stream_generate(model, tokenizer, prompt, max_tokens=limit):
        second, first = mx.topk(chunk.logprobs, 2).tolist()
        if abs(first - second) <= CLOSE:
            ties.append((len(text), len(text + chunk.text)))
        text += chunk.text
    shown = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return Known(Asked(MODEL, messages, shown, limit), len(prompt), text, ties)


class Soak:
    """What clients do to a server at a port, and what has come of it."""

    def __init__(self, port: int, known: Sequence[Known]) -> None:
        self.port, self.known = port, known
        self.few = known[:4]
        """For what has other prompts or answers than these: what a store keeps is complete when the warm-up is over."""
        self.done: collections.Counter[str] = collections.Counter()
        self.statuses: collections.Counter[int] = collections.Counter()
        self.faults: list[str] = []

    async def client(self, seed: str, ends: float) -> None:
        """Do one thing after the other until it is time."""
        for i in range(sys.maxsize):
            if time.perf_counter() > ends:
                return
            chance = random.Random(f"{seed} {i}")
            act = chance.choices(list(ACTS), weights=list(ACTS.values()))[0]
            await self.act(act, chance, f"{seed} {i}")

    async def act(self, act: "Act", chance: random.Random, seed: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await act(self, chance)
            self.done[act.__name__] += 1
        except TimeoutError:
            self.faults.append(f"{act.__name__} ({seed}): no answer in {PATIENCE} seconds")
        except Exception as error:
            self.faults.append(f"{act.__name__} ({seed}): {type(error).__name__}: {error}")

    @asynccontextmanager
    async def send(
        self, path: str, body: object, chance: random.Random, *, headers: Mapping[str, str] | None = None, **how: Any
    ) -> AsyncIterator[Response]:
        """Ask with one of the keys, again where the server is full."""
        key = chance.choice(KEYS)
        shown = {"authorization": f"Bearer {key}"} if chance.random() < 0.5 else {"x-api-key": key}
        while True:
            async with request(self.port, path, body, headers=shown | dict(headers or {}), **how) as response:
                self.statuses[response.status] += 1
                if response.status == 429:
                    check(int(response.headers["retry-after"]) >= 1, "429 without Retry-After")
                    await response.json()
                else:
                    check(response.status < 500, response.status, response.headers)
                    yield response
                    return
            await asyncio.sleep(chance.random())

    async def refused(self, path: str, body: object, chance: random.Random, *statuses: int, **how: Any) -> None:
        """Ask for what must be refused, in an error's form."""
        async with self.send(path, body, chance, **how) as response:
            content = await response.read()
            check(response.status in statuses, "status", response.status, "for", str(body)[-200:], content)
            error = json.loads(content)["error"]
            check(isinstance(error["message"], str) and error["message"], "no message", content)
            check("Traceback" not in error["message"] and "\n" not in error["message"], error["message"])


Act = Callable[[Soak, random.Random], Awaitable[None]]


# What answers must be.


async def asks(soak: Soak, chance: random.Random) -> None:
    known, protocol = chance.choice(soak.known), chance.choice(PROTOCOLS)
    told = await _told(soak, protocol, known.asked, chance)
    known.compare(told.text, is_whole=True)
    check(
        told.prompt_tokens == known.prompt_tokens, protocol.path, "prompt of", told.prompt_tokens, known.prompt_tokens
    )
    check(told.answer_tokens <= known.asked.max_tokens, protocol.path, "answer of", told.answer_tokens)


async def _told(soak: Soak, protocol: Any, asked: Asked, chance: random.Random) -> Told:
    if chance.random() < 0.5:
        async with soak.send(protocol.path, protocol.body(asked), chance) as response:
            answer = await response.json()
            check(response.status == 200, response.status, answer)
            found: Told = protocol.whole(answer)
    else:
        async with soak.send(protocol.path, protocol.streamed_body(asked), chance) as response:
            check(response.status == 200, response.status)
            found = protocol.streamed([event async for event in response.events()])
    return found


async def calls_a_tool(soak: Soak, chance: random.Random) -> None:
    protocol = chance.choice([one for one in PROTOCOLS if not isinstance(one, Completions)])
    told = await _told(soak, protocol, chance.choice(soak.few).asked._replace(tool=TOOL, max_tokens=60), chance)
    check(told.calls or told.is_cut, protocol.path, "called nothing:", told)
    for name, arguments in told.calls if not told.is_cut else ():
        check(name == TOOL["name"], protocol.path, "called", name)
        jsonschema.validate(json.loads(arguments), TOOL["parameters"])


async def keeps_a_schema(soak: Soak, chance: random.Random) -> None:
    protocol = chance.choice([one for one in PROTOCOLS if not isinstance(one, Completions)])
    told = await _told(soak, protocol, chance.choice(soak.few).asked._replace(schema=SCHEMA, max_tokens=60), chance)
    if not told.is_cut:
        jsonschema.validate(json.loads(told.text), SCHEMA)


async def samples(soak: Soak, chance: random.Random) -> None:
    """Several answers to one question, with log-probabilities."""
    asked = chance.choice(soak.few).asked
    more = {"temperature": 0.8, "seed": chance.randrange(4), "n": chance.randrange(1, 4), "top_p": 0.9}
    body = Chat().body(asked) | more | {"logprobs": True, "top_logprobs": 2, "frequency_penalty": 0.1}
    async with soak.send(Chat.path, body, chance) as response:
        found = (await response.json()).get("choices", [])
    check([choice["index"] for choice in found] == list(range(more["n"])), "choices", found)
    check(all(choice["logprobs"]["content"] for choice in found), "no log-probabilities")


async def stops(soak: Soak, chance: random.Random) -> None:
    known = chance.choice([one for one in soak.known if " " in one.text.strip()])
    word = chance.choice(known.text.split())
    async with soak.send(Chat.path, Chat().body(known.asked) | {"stop": [word]}, chance) as response:
        told = Chat().whole(await response.json())
    known.compare(told.text, is_whole=False)
    check(word not in told.text, "the stop text is in the answer")


async def counts(soak: Soak, chance: random.Random) -> None:
    known = chance.choice(soak.known)
    body = {
        name: value for name, value in PROTOCOLS[3].body(known.asked).items() if name in ("model", "messages", "system")
    }
    async with soak.send("/v1/messages/count_tokens", body, chance) as response:
        answer = await response.json()
    check(answer == {"input_tokens": known.prompt_tokens}, answer, "for", known.prompt_tokens)


async def looks(soak: Soak, chance: random.Random) -> None:
    path = chance.choice(("/health", "/metrics", "/v1/models", "/openapi.json"))
    async with soak.send(path, None, chance) as response:
        check(response.status == 200 and await response.read(), path, response.status)


# Clients that leave, or are slow.


async def leaves_in_an_answer(soak: Soak, chance: random.Random) -> None:
    known, protocol = chance.choice(soak.known), chance.choice(PROTOCOLS)
    many, events = chance.randrange(12), list[Event]()
    async with soak.send(protocol.path, protocol.streamed_body(known.asked), chance) as response:
        async for event in response.events():
            events.append(event)
            if len(events) > many:
                break
    known.compare(protocol.pieces(events), is_whole=False)


async def leaves_in_a_prompt(soak: Soak, chance: random.Random) -> None:
    known = max(chance.choices(soak.known, k=4), key=lambda one: one.prompt_tokens)
    body = Chat().streamed_body(known.asked) if chance.random() < 0.5 else Chat().body(known.asked)
    try:
        async with asyncio.timeout(chance.random() * 0.3), soak.send(Chat.path, body, chance) as response:
            await response.read()
    except TimeoutError:
        pass


async def reads_slowly(soak: Soak, chance: random.Random) -> None:
    known, protocol, events = chance.choice(soak.known), chance.choice(PROTOCOLS), list[Event]()
    async with soak.send(protocol.path, protocol.streamed_body(known.asked), chance, limit=2048) as response:
        async for event in response.events():
            events.append(event)
            await asyncio.sleep(chance.random() * 0.1)
    known.compare(protocol.streamed(events).text, is_whole=True)


async def sends_slowly(soak: Soak, chance: random.Random) -> None:
    known = chance.choice(soak.known)
    content = json.dumps(Completions().body(known.asked)).encode()
    head = f"POST {Completions.path} HTTP/1.1\r\nhost: {HOST}\r\nx-api-key: {KEYS[0]}\r\nconnection: close\r\n"
    sent = f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content
    reader, writer = await asyncio.open_connection(HOST, soak.port)
    try:
        for start in range(0, len(sent), size := len(sent) // 8 + 1):
            writer.write(sent[start : start + size])
            await asyncio.sleep(chance.random() * 0.1)
        response = await read_head(reader)
        if response.status != 429:
            check(response.status == 200, response.status)
            known.compare(Completions().whole(await response.json()).text, is_whole=True)
    finally:
        writer.transport.abort()


async def breaks_off(soak: Soak, chance: random.Random) -> None:
    """A request that is not whole, or no HTTP at all; the connection is closed or reset."""
    head = f"POST {Chat.path} HTTP/1.1\r\nhost: {HOST}\r\nx-api-key: {KEYS[0]}\r\ncontent-type: application/json\r\n"
    sent = chance.choice(
        (
            head.encode() + b"content-length: 500\r\n\r\n{",
            head.encode() + b'transfer-encoding: chunked\r\n\r\n5\r\n{"a',
            head.encode()[: chance.randrange(1, 80)],
            bytes(chance.randrange(256) for _ in range(200)) + b"\r\n\r\n",
            b"",
        )
    )
    _, writer = await asyncio.open_connection(HOST, soak.port)
    writer.write(sent)
    await asyncio.sleep(chance.random() * 0.2)
    if chance.random() < 0.5:
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# What must be refused.


async def is_malformed(soak: Soak, chance: random.Random) -> None:
    protocol = chance.choice(PROTOCOLS)
    body = protocol.body(chance.choice(soak.known).asked)
    content = json.dumps(body).encode()
    broken = chance.choice(
        (
            content[: chance.randrange(1, len(content))],
            content + b"}",
            b"",
            b"null",
            b"[]",
            b'"text"',
            b"\xff\xfe" + content,
            b"[" * 50_000,
            b'{"messages":' + b"[" * 3000 + b"]" * 3000 + b"}",
            content.replace(b"}", b', "temperature": 1e999}', 1)[:-1],
            b'{"messages": 9' + b"9" * 5000 + b"}",
        )
    )
    await soak.refused(protocol.path, broken, chance, 400)


async def is_invalid(soak: Soak, chance: random.Random) -> None:
    protocol = chance.choice(PROTOCOLS)
    body = protocol.body(chance.choice(soak.known).asked)
    limit = next(name for name in body if name.endswith("_tokens"))
    wrong: Sequence[dict[str, Any]] = (
        {"temperature": -1},
        {"temperature": "hot"},
        {"temperature": [0]},
        {"top_p": 7},
        {limit: -3},
        {limit: "many"},
        {limit: 1.5},
        {"nonsense": 1},
        {"stream": "perhaps"},
        {"model": "../../etc/passwd"},
        {next(name for name in ("messages", "prompt", "input") if name in body): 5},
        {next(name for name in ("messages", "prompt", "input") if name in body): {}},
        {"tools": [{"name": 5}]} if "prompt" not in body else {"logit_bias": {"x": 1}},
        {"tool_choice": "nothing of the kind"} if "prompt" not in body else {"n": 0},
    )
    await soak.refused(protocol.path, body | chance.choice(wrong), chance, 400, 404)


async def has_a_bad_schema(soak: Soak, chance: random.Random) -> None:
    wrong = chance.choice(
        (
            {"type": "nonsense"},
            {"$ref": "#/nowhere"},
            {"type": "string", "pattern": "("},
            {"$ref": "file:///etc/passwd"},
            {"type": "array", "minItems": 5, "maxItems": 2},
            {"type": "object", "properties": 5},
        )
    )
    await soak.refused(Chat.path, Chat().body(chance.choice(soak.known).asked._replace(schema=wrong)), chance, 400)


async def is_huge(soak: Soak, chance: random.Random) -> None:
    protocol = chance.choice(PROTOCOLS)
    asked = chance.choice(soak.known).asked
    if chance.random() < 0.5:
        text = "long " * 6000
        asked = asked._replace(messages=[{"role": "user", "content": text}], prompt=text)
        await soak.refused(protocol.path, protocol.body(asked), chance, 400)
    else:
        asked = asked._replace(messages=[{"role": "user", "content": "x" * MAX_BODY}], prompt="x" * MAX_BODY)
        await soak.refused(protocol.path, protocol.body(asked), chance, 413)


async def has_no_key(soak: Soak, chance: random.Random) -> None:
    protocol = chance.choice(PROTOCOLS)
    shown = chance.choice(("", "wrong", KEYS[0][:-1], KEYS[0] + "x", "ключ".encode().decode("latin-1")))
    headers = {"x-api-key": shown, "authorization": f"Bearer {shown}"}
    body = protocol.body(chance.choice(soak.known).asked)
    await soak.refused(protocol.path, body, chance, 401, headers=headers)


async def is_elsewhere(soak: Soak, chance: random.Random) -> None:
    path, method, statuses = chance.choice(
        (
            ("/v1/nothing", "GET", (404,)),
            ("/", "GET", (404,)),
            ("/v1/models/other", "GET", (404,)),
            (Chat.path, "GET", (405,)),
            (Chat.path, "DELETE", (405,)),
            ("/v1/%2e%2e/%2e%2e/etc/passwd", "GET", (404,)),
        )
    )
    await soak.refused(path, None, chance, *statuses, method=method)


async def is_rebound(soak: Soak, chance: random.Random) -> None:
    headers = chance.choice(({"host": "evil.example"}, {"origin": "https://evil.example"}))
    body = Chat().body(chance.choice(soak.known).asked)
    await soak.refused(Chat.path, body, chance, 403, headers=headers)


ACTS: dict[Act, int] = {
    asks: 40,
    calls_a_tool: 4,
    keeps_a_schema: 4,
    samples: 4,
    stops: 3,
    counts: 2,
    looks: 4,
    leaves_in_an_answer: 8,
    leaves_in_a_prompt: 8,
    reads_slowly: 3,
    sends_slowly: 2,
    breaks_off: 4,
    is_malformed: 5,
    is_invalid: 6,
    has_a_bad_schema: 2,
    is_huge: 3,
    has_no_key: 3,
    is_elsewhere: 2,
    is_rebound: 2,
}


# What the server must be meanwhile and at the end.


async def figures(port: int) -> dict[str, float]:
    """/metrics, those without labels."""
    async with request(port, "/metrics", headers={"x-api-key": KEYS[0]}) as response:
        lines = (await response.read()).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("afmoe_mlx_"): float(value) for name, value in pairs if "{" not in name}


async def watch(server: servers.Server, found: list[tuple[int, float]]) -> None:
    """Resident bytes and those of prefixes, every two seconds."""
    while True:
        await asyncio.sleep(2)
        found.append((server.resident_bytes, (await figures(server.port))["store_bytes"]))


def memory_faults(found: Sequence[tuple[int, float]]) -> list[str]:
    """Of the middle fifth of the time beside the last, in a soak of more than three minutes."""
    if len(found) < 100:
        return []
    fifth = len(found) // 5
    told = []
    for name, values in zip(("resident memory", "memory of prefixes"), zip(*found, strict=True), strict=True):
        warm, last = (statistics.median(part) for part in (values[2 * fifth : 3 * fifth], values[-fifth:]))
        print(f"{name}: {warm / 1e6:.1f} MB after the warm-up, {last / 1e6:.1f} MB at the end")
        if last > GROWTH * warm + 4e6:
            told.append(f"{name} has grown from {warm / 1e6:.1f} to {last / 1e6:.1f} MB")
    return told


async def is_idle(port: int) -> str | None:
    """What is left running when all clients are gone."""
    for _ in range(50):
        told = await figures(port)
        left = {name: told[name] for name in ("batch_rows", "requests_waiting")}
        if not any(left.values()):
            return None
        await asyncio.sleep(0.1)
    return f"left when all clients are gone: {left}"


async def stop(soak: Soak, server: servers.Server) -> list[str]:
    """Tell the server to stop while it writes: answers end whole, and the process with 0."""
    known = max(soak.known, key=lambda one: len(one.text))
    bodies = [(protocol, protocol.streamed_body(known.asked)) for protocol in PROTOCOLS]

    async def last(protocol: Any, body: Any) -> None:
        async with request(soak.port, protocol.path, body, headers={"x-api-key": KEYS[0]}) as response:
            known.compare(protocol.streamed([event async for event in response.events()]).text, is_whole=True)

    tasks = [asyncio.create_task(last(*one)) for one in bodies]
    await asyncio.sleep(0.1)
    status = await asyncio.to_thread(server.stop)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    faults = [f"an answer when it stopped: {type(end).__name__}: {end}" for end in ends if end is not None]
    return faults + ([f"it ended with {status}"] if status else [])


async def soak_for(server: servers.Server, known: Sequence[Known], options: argparse.Namespace) -> list[str]:
    """All of it; the faults."""
    soak, memory = Soak(server.port, known), list[tuple[int, float]]()
    watching = asyncio.create_task(watch(server, memory))
    ends = time.perf_counter() + options.seconds
    await asyncio.gather(*(soak.client(f"{options.seed} {i}", ends) for i in range(options.clients)))
    watching.cancel()
    print(f"{sum(soak.done.values())} requests: {dict(soak.done.most_common())}\nstatuses: {dict(soak.statuses)}")
    faults = soak.faults + memory_faults(memory)
    if left := await is_idle(server.port):
        faults.append(left)
    return faults + await stop(soak, server)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--questions", type=int, default=40, help="whose answers are computed beforehand")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="where the server's log goes")
    options = parser.parse_args()
    limits = ["--max-rows", "8", "--max-queue", "6", "--max-body", str(MAX_BODY)]
    keys = [word for key in KEYS for word in ("--api-key", key)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = servers.demo_with_tools(Path(temporary) / MODEL)
        known = known_questions(folder, options.questions, random.Random(options.seed))
        with servers.ours(folder, *limits, *keys, log=options.log) as server:
            faults = asyncio.run(soak_for(server, known, options))
    print(*faults[:20], f"{len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
