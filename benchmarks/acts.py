"""What clients do to a server, each an async function of the clients and of what decides at random."""

import asyncio
import collections
import json
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import jsonschema
from http_client import HOST, Event, Response, read_head, request
from known_answers import Known
from protocols import PROTOCOLS, Asked, Chat, Completions, Told, check

KEYS = ("first-key-of-the-soak", "second-key-of-the-soak")
MAX_BODY = 200_000
CHATS = [protocol for protocol in PROTOCOLS if not isinstance(protocol, Completions)]
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


class Clients:
    """Those of a server at a port, with keys that it knows."""

    def __init__(self, port: int, known: Sequence[Known]) -> None:
        self.port, self.known = port, known
        self.few = known[:4]
        """For what has other prompts or answers than these: what a store keeps is complete when the warm-up is over."""
        self.statuses: collections.Counter[int] = collections.Counter()

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


Act = Callable[[Clients, random.Random], Awaitable[None]]


# What answers must be.


async def asks(clients: Clients, chance: random.Random) -> None:
    known, protocol = chance.choice(clients.known), chance.choice(PROTOCOLS)
    told = await _told(clients, protocol, known.asked, chance)
    known.compare(told.text, is_whole=True)
    check(told.prompt_tokens == known.prompt_tokens, protocol.path, "prompt:", told.prompt_tokens, known.prompt_tokens)
    check(told.answer_tokens <= known.asked.max_tokens, protocol.path, "answer:", told.answer_tokens)


async def _told(clients: Clients, protocol: Any, asked: Asked, chance: random.Random) -> Told:
    if chance.random() < 0.5:
        async with clients.send(protocol.path, protocol.body(asked), chance) as response:
            answer = await response.json()
            check(response.status == 200, response.status, answer)
            found: Told = protocol.whole(answer)
    else:
        async with clients.send(protocol.path, protocol.streamed_body(asked), chance) as response:
            check(response.status == 200, response.status)
            found = protocol.streamed([event async for event in response.events()])
    return found


async def calls_a_tool(clients: Clients, chance: random.Random) -> None:
    protocol, asked = chance.choice(CHATS), chance.choice(clients.few).asked
    told = await _told(clients, protocol, asked._replace(tool=TOOL, max_tokens=60), chance)
    check(told.calls or told.is_cut, protocol.path, "called nothing:", told)
    for name, arguments in told.calls if not told.is_cut else ():
        check(name == TOOL["name"], protocol.path, "called", name)
        jsonschema.validate(json.loads(arguments), TOOL["parameters"])


async def keeps_a_schema(clients: Clients, chance: random.Random) -> None:
    protocol = chance.choice([one for one in PROTOCOLS if not isinstance(one, Completions)])
    told = await _told(
        clients, protocol, chance.choice(clients.few).asked._replace(schema=SCHEMA, max_tokens=60), chance
    )
    if not told.is_cut:
        jsonschema.validate(json.loads(told.text), SCHEMA)


async def samples(clients: Clients, chance: random.Random) -> None:
    """Several answers to one question, with log-probabilities."""
    asked = chance.choice(clients.few).asked
    more = {"temperature": 0.8, "seed": chance.randrange(4), "n": chance.randrange(1, 4), "top_p": 0.9}
    body = Chat().body(asked) | more | {"logprobs": True, "top_logprobs": 2, "frequency_penalty": 0.1}
    async with clients.send(Chat.path, body, chance) as response:
        found = (await response.json()).get("choices", [])
    check([choice["index"] for choice in found] == list(range(more["n"])), "choices", found)
    check(all(choice["logprobs"]["content"] for choice in found), "no log-probabilities")


async def stops(clients: Clients, chance: random.Random) -> None:
    known = chance.choice([one for one in clients.known if " " in one.text.strip()])
    word = chance.choice(known.text.split())
    async with clients.send(Chat.path, Chat().body(known.asked) | {"stop": [word]}, chance) as response:
        told = Chat().whole(await response.json())
    known.compare(told.text, is_whole=False)
    check(word not in told.text, "the stop text is in the answer")


async def counts(clients: Clients, chance: random.Random) -> None:
    known = chance.choice(clients.known)
    body = {
        name: value for name, value in PROTOCOLS[3].body(known.asked).items() if name in ("model", "messages", "system")
    }
    async with clients.send("/v1/messages/count_tokens", body, chance) as response:
        answer = await response.json()
    check(answer == {"input_tokens": known.prompt_tokens}, answer, "for", known.prompt_tokens)


async def looks(clients: Clients, chance: random.Random) -> None:
    path = chance.choice(("/health", "/metrics", "/v1/models", "/openapi.json"))
    async with clients.send(path, None, chance) as response:
        check(response.status == 200 and await response.read(), path, response.status)


# Clients that leave, or are slow.


async def leaves_in_an_answer(clients: Clients, chance: random.Random) -> None:
    known, protocol = chance.choice(clients.known), chance.choice(PROTOCOLS)
    many, events = chance.randrange(12), list[Event]()
    async with clients.send(protocol.path, protocol.streamed_body(known.asked), chance) as response:
        async for event in response.events():
            events.append(event)
            if len(events) > many:
                break
    known.compare(protocol.pieces(events), is_whole=False)


async def leaves_in_a_prompt(clients: Clients, chance: random.Random) -> None:
    known = max(chance.choices(clients.known, k=4), key=lambda one: one.prompt_tokens)
    body = Chat().streamed_body(known.asked) if chance.random() < 0.5 else Chat().body(known.asked)
    try:
        async with asyncio.timeout(chance.random() * 0.3), clients.send(Chat.path, body, chance) as response:
            await response.read()
    except TimeoutError:
        pass


async def reads_slowly(clients: Clients, chance: random.Random) -> None:
    known, protocol, events = chance.choice(clients.known), chance.choice(PROTOCOLS), list[Event]()
    async with clients.send(protocol.path, protocol.streamed_body(known.asked), chance, limit=2048) as response:
        async for event in response.events():
            events.append(event)
            await asyncio.sleep(chance.random() * 0.1)
    known.compare(protocol.streamed(events).text, is_whole=True)


async def sends_slowly(clients: Clients, chance: random.Random) -> None:
    known = chance.choice(clients.known)
    content = json.dumps(Completions().body(known.asked)).encode()
    head = f"POST {Completions.path} HTTP/1.1\r\nhost: {HOST}\r\nx-api-key: {KEYS[0]}\r\nconnection: close\r\n"
    sent = f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content
    reader, writer = await asyncio.open_connection(HOST, clients.port)
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


async def breaks_off(clients: Clients, chance: random.Random) -> None:
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
    _, writer = await asyncio.open_connection(HOST, clients.port)
    writer.write(sent)
    await asyncio.sleep(chance.random() * 0.2)
    if chance.random() < 0.5:
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# What must be refused.


async def is_malformed(clients: Clients, chance: random.Random) -> None:
    protocol = chance.choice(PROTOCOLS)
    body = protocol.body(chance.choice(clients.known).asked)
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
    await clients.refused(protocol.path, broken, chance, 400)


async def is_invalid(clients: Clients, chance: random.Random) -> None:
    protocol = chance.choice(PROTOCOLS)
    body = protocol.body(chance.choice(clients.known).asked)
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
    await clients.refused(protocol.path, body | chance.choice(wrong), chance, 400, 404)


async def has_a_bad_schema(clients: Clients, chance: random.Random) -> None:
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
    await clients.refused(
        Chat.path, Chat().body(chance.choice(clients.known).asked._replace(schema=wrong)), chance, 400
    )


async def is_huge(clients: Clients, chance: random.Random) -> None:
    protocol = chance.choice(PROTOCOLS)
    asked = chance.choice(clients.known).asked
    if chance.random() < 0.5:
        text = "long " * 6000
        asked = asked._replace(messages=[{"role": "user", "content": text}], prompt=text)
        await clients.refused(protocol.path, protocol.body(asked), chance, 400)
    else:
        asked = asked._replace(messages=[{"role": "user", "content": "x" * MAX_BODY}], prompt="x" * MAX_BODY)
        await clients.refused(protocol.path, protocol.body(asked), chance, 413)


async def has_no_key(clients: Clients, chance: random.Random) -> None:
    protocol = chance.choice(PROTOCOLS)
    shown = chance.choice(("", "wrong", KEYS[0][:-1], KEYS[0] + "x", "ключ".encode().decode("latin-1")))
    headers = {"x-api-key": shown, "authorization": f"Bearer {shown}"}
    body = protocol.body(chance.choice(clients.known).asked)
    await clients.refused(protocol.path, body, chance, 401, headers=headers)


async def is_elsewhere(clients: Clients, chance: random.Random) -> None:
    path, method, statuses = chance.choice(
        (
            ("/v1/nothing", "GET", (404,)),
            ("/", "DELETE", (405,)),
            ("/v1/models/other", "GET", (404,)),
            (Chat.path, "GET", (405,)),
            (Chat.path, "DELETE", (405,)),
            ("/v1/%2e%2e/%2e%2e/etc/passwd", "GET", (404,)),
        )
    )
    await clients.refused(path, None, chance, *statuses, method=method)


async def is_rebound(clients: Clients, chance: random.Random) -> None:
    headers = chance.choice(({"host": "evil.example"}, {"origin": "https://evil.example"}))
    body = Chat().body(chance.choice(clients.known).asked)
    await clients.refused(Chat.path, body, chance, 403, headers=headers)


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
