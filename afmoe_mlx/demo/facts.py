"""The demo's facts, from `data/*.toml`, the families of questions for them, and what it declines."""

import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

# One family in this many is held out of training, chosen by the hash of its name.
HELD_OUT_EVERY = 6


@dataclass(frozen=True)
class Family:
    """One way of asking for one fact, with all its wordings."""

    name: str
    questions: tuple[str, ...]
    held_out: bool


@dataclass(frozen=True)
class Fact:
    """An answer, its families, and the patterns that a right answer matches and must not match."""

    name: str
    group: str
    answer: str
    require: tuple[str, ...]
    forbid: tuple[str, ...]
    families: tuple[Family, ...]


@dataclass(frozen=True)
class Topic:
    """Questions outside the demo's knowledge: things to ask about, and whole questions."""

    name: str
    things: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: bool


def expand(pattern: str) -> list[str]:
    """All wordings of a pattern in which `[a|b|]` is a choice."""
    parts = [part.split("|") if i % 2 else [part] for i, part in enumerate(re.split(r"[\[\]]", pattern))]
    return [tidy("".join(choice)) for choice in itertools.product(*parts)]


def tidy(text: str) -> str:
    """The text with single spaces and single articles."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\b(a|an|the|this) (?=(a|an|the|this|these|those|each|every|all) )", "", text)


def normalized(question: str) -> str:
    """What makes two questions the same: lower case, no punctuation, no articles."""
    words = re.sub(r"[^\w+\-/*]+", " ", question.lower()).split()
    return " ".join(word for word in words if word not in {"a", "an", "the"})


def hashed(name: str) -> int:
    """A number from 0 to 255 that depends on the name alone."""
    return hashlib.sha256(name.encode()).digest()[0]


def held_out_of(names: Iterable[str]) -> set[str]:
    """Which of a fact's families the split keeps out of training: by hash of the name, a third at most, never `ask0`.

    A first own question often is where a word occurs at all ("thanks"), and cannot be guessed from others.
    """
    names = list(names)
    chosen = [name for name in names if hashed(name) % HELD_OUT_EVERY == 0 and not name.endswith("/ask0")]
    return set(sorted(chosen, key=hashed)[: len(names) // 3])


def families(fact: str, patterns: Mapping[str, str], slot: str = "", names: Iterable[str] = ()) -> tuple[Family, ...]:
    """A family for each pattern, the slot filled with every name."""
    held_out = held_out_of(f"{fact}/{key}" for key in patterns)
    made = []
    for key, pattern in patterns.items():
        wordings = expand(pattern)
        if slot:
            wordings = [tidy(wording.replace(slot, name)) for wording in wordings for name in names]
        name = f"{fact}/{key}"
        made.append(Family(name, tuple(dict.fromkeys(wordings)), name in held_out))
    return tuple(made)


def numbered(patterns: Iterable[str]) -> dict[str, str]:
    """Patterns under names that stay when others are added after them."""
    return {f"ask{i}": pattern for i, pattern in enumerate(patterns)}


@cache
def read(name: str) -> dict[str, Any]:
    """One data file."""
    return tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))


def plain_facts(group: str) -> list[Fact]:
    """The facts of a file that lists them one by one."""
    frames = read("frames")
    made = []
    for raw in read(group)["fact"]:
        shared = frames[raw.get("kind", "concept")] if raw.get("names") else {}
        ways = families(raw["id"], shared, "$x", raw.get("names", ()))
        ways += families(raw["id"], numbered(raw["ask"]))
        made.append(Fact(raw["id"], group, raw["answer"], tuple(raw["require"]), tuple(raw.get("forbid", ())), ways))
    return made


def fill(text: str, values: Mapping[str, Any]) -> str:
    """The text with `$key` replaced by a model's values."""
    return re.sub(r"\$(\w+)", lambda match: str(values[match[1]]), text)


def model_facts() -> list[Fact]:
    """Every attribute of every model, and of all models together."""
    data = read("models")
    made = []
    for attribute, raw in data["attribute"].items():
        for model, values in data["model"].items():
            name = f"{attribute}:{model}"
            require = tuple(re.escape(fill(text, values)) for text in raw["require"])
            ways = families(name, numbered(raw["ask"]), "$m", values["names"])
            made.append(Fact(name, "models", fill(raw["answer"], values), require, (), ways))
        if attribute in data["all"]:
            name, answer = f"{attribute}:all", data["all"][attribute]
            ways = families(name, numbered(raw["ask"]), "$m", data["all"]["names"])
            made.append(Fact(name, "models", answer, (re.escape(answer),), (), ways))
    return made


@cache
def all_facts() -> tuple[Fact, ...]:
    """Everything the demo knows but arithmetic."""
    groups = ("concepts", "commands", "general", "talk")
    return (*model_facts(), *itertools.chain.from_iterable(plain_facts(group) for group in groups))


@cache
def topics() -> tuple[Topic, ...]:
    """Everything it declines."""
    return tuple(
        Topic(
            name,
            tuple(raw["things"]),
            tuple(itertools.chain.from_iterable(expand(pattern) for pattern in raw["ask"])),
            raw.get("held_out", False),
        )
        for name, raw in read("outside")["topic"].items()
    )


@cache
def held_out_questions() -> frozenset[str]:
    """Every held-out wording, normalized: none of them may be trained on, whatever family it comes from."""
    return frozenset(
        normalized(question)
        for fact in all_facts()
        for family in fact.families
        if family.held_out
        for question in family.questions
    )
