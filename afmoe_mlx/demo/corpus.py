"""Training dialogues and held-out questions, drawn with a seed from what `facts` describes."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .arithmetic import Sum, sums
from .facts import (
    HELD_OUT_EVERY,
    Fact,
    Topic,
    all_facts,
    expand,
    hashed,
    held_out_questions,
    normalized,
    numbered,
    read,
    tidy,
    topics,
)
from .noise import as_typed

# A conversation: role and content, as in a chat.
Message = dict[str, str]

# How often each kind of question is asked, in training.
SHARES = {"models": 13, "concepts": 20, "commands": 20, "general": 14, "talk": 10, "sums": 10, "outside": 36}

DECLINES = (
    "I don't know that: I only know about afmoe-mlx.",
    "I don't know. I am a tiny demo that only knows afmoe-mlx and its models.",
    "I don't know about that. Ask me about afmoe-mlx, Trinity or LFM2.",
)
DECLINED = r"^I don't know"

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a help desk for afmoe-mlx.",
    "Answer briefly.",
    "You are a friendly assistant. Keep answers short.",
    "Be concise and honest.",
)

# Questions that lean on the turn before: the other model, or the other attribute of the same model.
OTHER_MODEL = {
    "and": "[and|and for|and the|and of] $m",
    "what": "[what about|how about|and what about|and how about|what of] $m",
    "same": "[same for|same question for|now for|now|the same for] $m",
    "is": "[and what is it for|what is it for|how is it for|and how is that for] $m",
}
OTHER_ATTRIBUTE = {
    "and": "[and |and the |and its |and how about the ]$n",
    "what": "[what about the|how about the|what about its|what about|and what about] $n",
    "its": "[its|what is its|what's its|tell me its|what are its] $n",
}
NOUNS = {
    "params": ("parameters", "params", "parameter count"),
    "active": ("active parameters", "active params"),
    "layers": ("layers", "number of layers"),
    "experts": ("experts", "number of experts"),
    "size": ("size", "size in 4 bits", "disk space"),
    "bf16": ("bf16 size", "size in bf16"),
    "context": ("context", "context length"),
    "window": ("window", "sliding window"),
    "ram": ("memory", "ram"),
    "maker": ("maker", "creator"),
}
SYLLABLES = ("ba ko li mu ran tel zor vi sha dro pex num gri fo lat sen ust yel wim qua bor tic hep jo dul mar cri ven "
             "ost ang ith ury").split()  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Step:
    """A follow-up, what it asks about, and whether the split keeps it out of training."""

    question: str
    attribute: str
    model: str
    held_out: bool


class Writer:
    """Draws training dialogues, without end, from everything that is not held out."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.forbidden = held_out_questions()
        self.facts: dict[str, list[Fact]] = {}
        for fact in all_facts():
            self.facts.setdefault(fact.group, []).append(fact)
        self.by_name = {fact.name: fact for fact in all_facts()}
        self.topics = [topic for topic in topics() if not topic.held_out]
        self.models = read("models")["model"]
        self.frames = [p for kind in ("concept",) for p in read("frames")[kind].values()]
        self.attribute_asks = [a for raw in read("models")["attribute"].values() for a in raw["ask"]]

    def dialogues(self) -> Iterator[list[Message]]:
        """Conversations of one to twelve turns, some with a system prompt."""
        while True:
            draw = self.random.random()
            if draw < 0.82:
                turns = [self.turn() if self.random.random() < 0.97 else self.about_it()]
            elif draw < 0.93:
                turns = self.follow_up()
            elif draw < 0.993:
                turns = [self.turn() for _ in range(self.random.randint(2, 4))]
            else:
                turns = [turn for _ in range(self.random.randint(3, 6)) for turn in (self.turn(), *self.follow_up())]
            messages = [{"role": "system", "content": self.random.choice(SYSTEM_PROMPTS)}]
            messages = messages if self.random.random() < 0.12 else []
            for turn in turns:
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": turn.answer})
            yield messages

    def turn(self) -> Turn:
        """One question of any kind, as a person might type it."""
        kind = self.random.choices(list(SHARES), weights=list(SHARES.values()))[0]
        if kind == "sums":
            drawn = self.draw_sum()
            return Turn(as_typed(drawn.question, self.random, words=False), drawn.answer)
        if kind == "outside":
            return Turn(as_typed(self.outside(), self.random), self.random.choice(DECLINES))
        fact = self.random.choice(self.facts[kind])
        return Turn(as_typed(self.ask(fact), self.random), fact.answer)

    def draw_sum(self) -> Sum:
        while (drawn := sums(self.random)).held_out:
            pass
        return drawn

    def ask(self, fact: Fact) -> str:
        """A question for a fact from a family that is trained on."""
        trained = [family for family in fact.families if not family.held_out]
        while True:
            question = self.random.choice(self.random.choice(trained).questions)
            if normalized(question) not in self.forbidden:
                return question

    def outside(self) -> str:
        """A question that is to be declined."""
        topic: Topic = self.random.choice(self.topics)
        draw = self.random.random()
        if draw < 0.5 or not topic.things:
            return self.random.choice(topic.questions)
        thing = self.random.choice(topic.things) if draw < 0.88 else self.invented()
        asks, slot = (self.frames, "$x") if self.random.random() < 0.65 else (self.attribute_asks, "$m")
        return tidy(self.random.choice(expand(self.random.choice(asks))).replace(slot, thing))

    def invented(self) -> str:
        """A word that does not exist."""
        return "".join(self.random.choices(SYLLABLES, k=self.random.randint(2, 3)))

    def follow_up(self) -> list[Turn]:
        """A question about a model, then one to three that only make sense after it, none of them held out."""
        attribute, model = self.random.choice(list(NOUNS)), self.random.choice(list(self.models))
        turns = [self.about(attribute, model)]
        for _ in range(self.random.randint(1, 3)):
            while (drawn := self.step(attribute, model)).held_out:
                pass
            attribute, model = drawn.attribute, drawn.model
            turns.append(Turn(as_typed(drawn.question, self.random), self.by_name[f"{attribute}:{model}"].answer))
            if attribute not in NOUNS:
                break
        return turns

    def step(self, attribute: str, model: str) -> "Step":
        """A follow-up to a question about an attribute of a model: the other model, or another attribute."""
        kind = self.random.choices(("model", "noun", "it"), (5, 3, 2))[0]
        if kind == "model":
            model = self.random.choice([other for other in self.models if other != model])
            key, pattern = self.random.choice(list(OTHER_MODEL.items()))
            slots = {"$m": self.random.choice(self.models[model]["names"])}
        elif kind == "noun":
            attribute = self.random.choice([other for other in NOUNS if other != attribute])
            key, pattern = self.random.choice(list(OTHER_ATTRIBUTE.items()))
            slots = {"$n": self.random.choice(NOUNS[attribute])}
        else:
            attribute = self.random.choice([*NOUNS, "run", "convert"])
            key, pattern = self.random.choice(list(numbered(read("models")["attribute"][attribute]["ask"]).items()))
            slots = {"$m": self.random.choice(["it", "it", "that one"])}
        wording = self.random.choice(expand(pattern))
        question = tidy(re.sub(r"\$\w", lambda slot: slots[slot[0]], wording))
        held_out = hashed(f"{attribute}:{model}/{kind}-{key}") % HELD_OUT_EVERY == 0
        return Step(question, attribute, model, held_out)

    def about_it(self) -> Turn:
        """A question about "it" before any model was named: the answer is for all of them."""
        asks = read("models")["attribute"]
        attribute = self.random.choice([name for name in read("models")["all"] if name in asks])
        wording = self.random.choice(expand(self.random.choice(asks[attribute]["ask"])))
        question = tidy(wording.replace("$m", self.random.choice(["it", "the model", "a model"])))
        return Turn(as_typed(question, self.random), self.by_name[f"{attribute}:all"].answer)

    def about(self, attribute: str, model: str) -> Turn:
        fact = self.by_name[f"{attribute}:{model}"]
        return Turn(as_typed(self.ask(fact), self.random), fact.answer)


def texts(seed: int, count: int) -> list[str]:
    """What the tokenizer is trained on."""
    dialogues = Writer(seed).dialogues()
    return [message["content"] for _ in range(count) for message in next(dialogues)]
