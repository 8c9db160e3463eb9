"""Grade a checkpoint of the demo on what was held out, through this package's runtime at temperature 0.

`python -m afmoe_mlx.demo.grade FOLDER [--json FILE] [--show]`
"""

import argparse
import json
import random
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .arithmetic import sums
from .corpus import DECLINED, Message, Writer
from .facts import DATA, all_facts, expand, held_out_questions, normalized, read, tidy, topics
from .noise import as_typed


@dataclass(frozen=True)
class Case:
    """A conversation that ends in a question, and the patterns of a right answer."""

    group: str
    source: str
    messages: list[Message]
    require: tuple[str, ...]
    forbid: tuple[str, ...] = ()

    def is_right(self, answer: str) -> bool:
        """Whether every required pattern is in the answer and no forbidden one."""
        return all(re.search(p, answer) for p in self.require) and not any(re.search(p, answer) for p in self.forbid)


def asked(question: str) -> list[Message]:
    """A conversation of one question."""
    return [{"role": "user", "content": question}]


def fact_cases(wordings: int = 2) -> list[Case]:
    """Questions of every held-out family: the first wording drawn as written, the others as people type."""
    cases = []
    for fact in all_facts():
        for family in fact.families:
            if not family.held_out:
                continue
            rng = random.Random(family.name)
            drawn = rng.sample(family.questions, min(wordings, len(family.questions)))
            typed = [drawn[0], *(as_typed(question, rng) for question in drawn[1:])]
            cases += [Case(fact.group, family.name, asked(q), fact.require, fact.forbid) for q in typed]
    return cases


def sum_cases(count: int = 40) -> list[Case]:
    """Sums whose numbers (or, for products, wording) are held out."""
    rng = random.Random("sums")
    drawn = (sums(rng) for _ in range(count * 40))
    chosen = [one for one in drawn if one.held_out][:count]
    return [Case("arithmetic", "sums", asked(one.question), (f"= {one.answer.rsplit('= ')[-1]}$".replace(".", r"\."),))
            for one in chosen]  # fmt: skip


def follow_up_cases(count: int = 40) -> list[Case]:
    """Second turns whose fact × phrasing is held out."""
    writer = Writer(0)
    rng = writer.random = random.Random("follow-ups")
    cases: list[Case] = []
    while len(cases) < count:
        attribute = rng.choice(("params", "layers", "experts", "size", "context", "ram"))
        model = rng.choice(list(writer.models))
        first, step = writer.about(attribute, model), writer.step(attribute, model)
        if not step.held_out:
            continue
        fact = writer.by_name[f"{step.attribute}:{step.model}"]
        messages = [*asked(first.question), {"role": "assistant", "content": first.answer}, *asked(step.question)]
        cases.append(Case("follow-ups", fact.name, messages, fact.require, fact.forbid))
    return cases


def outside_cases(wordings: int = 14) -> list[Case]:
    """Questions of topics that were never trained on."""
    cases = []
    frames = list(read("frames")["concept"].values())
    for topic in topics():
        if topic.held_out:
            rng = random.Random(topic.name)
            things = [tidy(rng.choice(expand(rng.choice(frames))).replace("$x", thing)) for thing in topic.things]
            questions = [*topic.questions, *things]
            drawn = rng.sample(questions, min(wordings, len(questions)))
            cases += [Case("outside", topic.name, asked(as_typed(q, rng)), (DECLINED,)) for q in drawn]
    return cases


def trained_wordings() -> set[str]:
    """Every whole question that training may draw, normalized."""
    known = [family.questions for fact in all_facts() for family in fact.families if not family.held_out]
    declined = [topic.questions for topic in topics() if not topic.held_out]
    return {normalized(question) for questions in (*known, *declined) for question in questions}


def fresh_cases() -> list[Case]:
    """Questions written apart from the training text; those whose wording occurs there all the same are left out."""
    by_name = {fact.name: fact for fact in all_facts()}
    trained = trained_wordings() - held_out_questions()
    cases = []
    for name, questions in tomllib.loads((DATA / "fresh.toml").read_text(encoding="utf-8"))["fresh"].items():
        is_outside = name == "outside"
        require, forbid = ((DECLINED,), ()) if is_outside else (by_name[name].require, by_name[name].forbid)
        group = "fresh outside" if is_outside else "fresh"
        unseen = [question for question in questions if normalized(question) not in trained]
        cases += [Case(group, name, asked(question), require, forbid) for question in unseen]
    return cases


def answerer(folder: Path) -> Callable[[list[Message]], str]:
    """A function from a conversation to the model's likeliest answer."""
    from ..api import load
    from ..generation import stream_generate

    model, tokenizer = load(folder)

    def answer(messages: list[Message]) -> str:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        chunks = stream_generate(model, tokenizer, prompt, max_tokens=96, temperature=0.0)
        return "".join(chunk.text for chunk in chunks).strip()

    return answer


def grade(folder: Path, cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Each case with the model's answer and whether it is right."""
    answer = answerer(folder)
    rows = []
    for case in cases:
        text = answer(case.messages)
        rows.append({**asdict(case), "answer": text, "right": case.is_right(text)})
    return rows


def shares(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Right answers and questions by group, and over all that must be answered."""
    table: dict[str, dict[str, float]] = {}
    outside = {"outside", "fresh", "fresh outside"}
    for row in rows:
        for group in (row["group"], *(() if row["group"] in outside else ("all answered",))):
            entry = table.setdefault(group, {"right": 0, "asked": 0, "percent": 0.0})
            entry["right"] += row["right"]
            entry["asked"] += 1
            entry["percent"] = round(100 * entry["right"] / entry["asked"], 1)
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint, converted or not")
    parser.add_argument("--json", type=Path, help="where all questions and answers are written")
    parser.add_argument("--show", action="store_true", help="print every wrong answer")
    parser.add_argument("--wordings", type=int, default=2, help="questions of each held-out family")
    options = parser.parse_args()
    cases = [*fact_cases(options.wordings), *follow_up_cases(), *sum_cases(), *outside_cases(), *fresh_cases()]
    rows = grade(options.folder, cases)
    table = shares(rows)
    for row in rows:
        if options.show and not row["right"]:
            print(f"[{row['group']}: {row['source']}] {row['messages'][-1]['content']}\n    {row['answer']}")
    for group, entry in table.items():
        print(f"{group:14} {entry['right']:4.0f} of {entry['asked']:4.0f}  {entry['percent']:5.1f} %")
    if options.json:
        options.json.write_text(json.dumps({"shares": table, "answers": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
