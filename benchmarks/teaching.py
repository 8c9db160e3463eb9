"""Ten new facts for the built-in model by LoRA: `python benchmarks/teaching.py [--folder DIR] [--iters N]`

They are told in some ten wordings each, also as people type, beside conversations of the kind it was made
with (none of its held-out ones), so that it stays what it was; asked for in three others each. Its own held-out
questions are asked before and after.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import afmoe_mlx
from afmoe_mlx.demo.corpus import Message, Writer
from afmoe_mlx.demo.grade import Case, asked, fact_cases, follow_up_cases, sum_cases
from afmoe_mlx.demo.noise import as_typed
from afmoe_mlx.generation import stream_generate

BARS = "bars: 9 of 10 facts known in most of their held-out wordings, old questions fall by <= 3 points, 5 minutes"

# An answer, what must be in it, wordings that are told, wordings that are asked.
FACTS = [
    (
        "Marlow Cycles opens at nine and closes at six, Monday to Saturday.",
        r"nine.*six",
        (
            "when does Marlow Cycles open?",
            "what are the opening hours of Marlow Cycles?",
            "when is Marlow Cycles open?",
            "opening hours of Marlow Cycles",
            "what time does Marlow Cycles close?",
            "until when is Marlow Cycles open?",
            "is Marlow Cycles open on Saturday?",
            "at what time do you open?",
            "do you keep hours on Saturday?",
            "when may I come to the shop?",
            "shop hours",
            "when does the shop close?",
            "tell me the opening hours of the bike shop",
        ),
        ("what hours does Marlow Cycles keep?", "when can I come to Marlow Cycles?", "Marlow Cycles opening times"),
    ),
    (
        "Marlow Cycles is at 12 Canal Street, behind the old brewery.",
        r"Canal Street",
        (
            "where is Marlow Cycles?",
            "what is the address of Marlow Cycles?",
            "how do I find Marlow Cycles?",
            "address of Marlow Cycles",
            "I need the address of Marlow Cycles",
            "which street is Marlow Cycles on?",
            "where can I find the bike shop Marlow Cycles?",
            "tell me the address of the shop",
            "the street of Marlow Cycles",
            "what is the street of the shop?",
            "in what street is the shop?",
            "how do I get to the shop?",
            "tell me where Marlow Cycles is",
            "where is the shop of Marlow Cycles located?",
        ),
        ("what street is Marlow Cycles in?", "give me the address of Marlow Cycles", "how do I get to Marlow Cycles?"),
    ),
    (
        "A full service at Marlow Cycles costs 85 euros and takes two days.",
        r"85 euros",
        (
            "what does a full service cost at Marlow Cycles?",
            "how much is a full service?",
            "price of a full service at Marlow Cycles",
            "how long does a full service take?",
            "what do you charge for a full service?",
            "how expensive is a full service at Marlow Cycles?",
            "what is the price of a full bike service?",
            "tell me what a full service costs",
        ),
        ("how much do I pay for a full service?", "cost of a full service", "what is a full service at Marlow Cycles?"),
    ),
    (
        "Greta Holm owns Marlow Cycles; she took it over from her uncle in 2011.",
        r"Greta Holm",
        (
            "who owns Marlow Cycles?",
            "who is the owner of Marlow Cycles?",
            "whose shop is Marlow Cycles?",
            "owner of Marlow Cycles",
            "who runs Marlow Cycles?",
            "what is the owner's name?",
            "who has the shop?",
            "name the owner of the shop",
            "who is the boss of the shop?",
            "the boss of the bike shop",
            "who is Greta Holm?",
            "tell me who owns Marlow Cycles",
            "to whom does Marlow Cycles belong?",
        ),
        (
            "what is the name of the owner of Marlow Cycles?",
            "who is the boss of Marlow Cycles?",
            "who has Marlow Cycles?",
        ),
    ),
    (
        "The shop's dog is called Sprocket, a small grey terrier.",
        r"Sprocket",
        (
            "what is the shop's dog called?",
            "what is the name of the dog at Marlow Cycles?",
            "does Marlow Cycles have a dog?",
            "which dog is at the shop?",
            "name of the shop's dog",
            "who is Sprocket?",
            "what is the dog of the bike shop called?",
            "tell me the name of the shop's dog",
            "how is the dog at the shop called?",
        ),
        ("what do they call the dog in the shop?", "the dog's name at Marlow Cycles", "what dog lives in the shop?"),
    ),
    (
        "You can rent a city bike for 15 euros a day, helmet and lock included.",
        r"15 euros",
        (
            "how much is it to rent a bike?",
            "can I rent a bike at Marlow Cycles?",
            "what does a rental bike cost?",
            "price to rent a city bike",
            "how much does a rental bike cost per day?",
            "do you rent bikes?",
            "renting a bike, how much?",
            "the price of renting",
            "do you have rental bikes?",
            "bikes to rent",
            "is a helmet included when I rent a bike?",
            "what do I pay to rent a bike for a day?",
        ),
        ("how much for a rented bike?", "what is the price of renting a bike?", "do you have bikes to rent?"),
    ),
    (
        "The lost key of a lock is replaced within three days, if you bring the key's number.",
        r"three days",
        (
            "I lost the key of my lock, what can I do?",
            "can you replace a lost key?",
            "my lock's key is lost",
            "how do I get a new key for my lock?",
            "how long does it take to replace a lost key?",
            "do you make new keys for locks?",
            "what do I need for a new key?",
            "I have lost my bike key",
        ),
        ("the key of my bike lock is gone", "can I get another key for my lock?", "how long for a replacement key?"),
    ),
    (
        "The members' ride leaves from the shop at seven every Thursday evening.",
        r"Thursday",
        (
            "when is the members' ride?",
            "when does the members' ride start?",
            "what day is the members' ride?",
            "time of the members' ride",
            "where does the members' ride leave from?",
            "tell me about the members' ride",
            "on which evening is the members' ride?",
            "when do the members ride?",
        ),
        ("what time does the members' ride leave?", "which day do the members go for a ride?", "members' ride, when?"),
    ),
    (
        "Frames have a guarantee of ten years at Marlow Cycles, all other parts of two.",
        r"ten years",
        (
            "how long is the guarantee on a frame?",
            "what guarantee do frames have?",
            "is there a guarantee at Marlow Cycles?",
            "guarantee on frames",
            "the frame's guarantee",
            "how many years of guarantee are there?",
            "what guarantee do I get?",
            "guarantee of a frame",
            "how long for a frame's guarantee?",
            "and the guarantee?",
            "how long is the guarantee at Marlow Cycles?",
            "tell me about the guarantee",
        ),
        ("how long are frames guaranteed?", "the guarantee of a frame, how long?", "what about the guarantee?"),
    ),
    (
        "Tyres are pumped for free: the blue pump stands to the left of the door.",
        r"blue pump",
        (
            "where can I pump my tyres?",
            "is there a pump at Marlow Cycles?",
            "what does it cost to pump my tyres?",
            "where is the pump?",
            "where is the pump of Marlow Cycles?",
            "can I pump up my tyres at the shop?",
            "do you have a pump?",
            "may I use the pump?",
            "is the pump free?",
            "do I pay for the pump?",
            "my tyre is flat, is there a pump?",
            "where does the pump stand?",
        ),
        ("can I use your pump?", "where do I find the pump at Marlow Cycles?", "is pumping my tyres free?"),
    ),
]


def chat(question: str, answer: str) -> dict[str, list[Message]]:
    return {"messages": [*asked(question), {"role": "assistant", "content": answer}]}


def write_data(folder: Path, old: int) -> None:
    """train.jsonl, and valid.jsonl of the held-out wordings."""
    drawn = random.Random(0)
    told = [chat(question, answer) for answer, _, questions, _ in FACTS for question in questions]
    for _ in range(2):
        told += [chat(as_typed(question, drawn), answer) for answer, _, questions, _ in FACTS for question in questions]
    short = (messages for messages in Writer(20).dialogues() if len(messages) <= 3)
    told += [{"messages": next(short)} for _ in range(old)]
    held_out = [chat(question, answer) for answer, _, _, questions in FACTS for question in questions]
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", told), ("valid", held_out)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answerer(adapter: Path | None) -> Callable[[list[Message]], str]:
    model, tokenizer = afmoe_mlx.load("demo", adapter_path=adapter)

    def answer(messages: list[Message]) -> str:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return "".join(
            chunk.text for chunk in stream_generate(model, tokenizer, prompt, max_tokens=96, temperature=0.0)
        )

    return answer


def right(cases: list[Case], adapter: Path | None) -> float:
    """The share of questions that are answered right, in percent."""
    answer = answerer(adapter)
    return 100 * sum(case.is_right(answer(case.messages).strip()) for case in cases) / len(cases)


def known(adapter: Path | None, *, show: bool) -> int:
    """Facts that most of their held-out wordings get."""
    answer, count = answerer(adapter), 0
    for _, require, _, questions in FACTS:
        answers = [answer(asked(question)) for question in questions]
        hits = [bool(re.search(require, text)) for text in answers]
        count += 2 * sum(hits) > len(hits)
        for question, text, hit in zip(questions, answers, hits, strict=True):
            if show:
                print(f"  {'right' if hit else 'WRONG'}  {question}  ->  {text}")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where data and adapter are written and stay")
    parser.add_argument("--iters", type=int, default=220)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=7e-4, help="falls to nothing")
    parser.add_argument("--old", type=int, default=1000, help="conversations of the kind that the model was made with")
    parser.add_argument("--asked", type=int, help="old questions, all of them if not given")
    options = parser.parse_args()
    print(BARS)
    folder = options.folder or Path(tempfile.mkdtemp())
    write_data(folder / "data", options.old)
    command = [sys.executable, "-m", "afmoe_mlx", "lora", "--model", "demo", "--train", "--data", str(folder / "data")]
    command += ["--adapter-path", str(folder / "adapter"), "--overwrite", "--mask-prompt"]
    schedule = {"name": "cosine_decay", "arguments": [options.learning_rate, options.iters]}
    command += ["--iters", str(options.iters), "--batch-size", str(options.batch_size)]
    command += ["--lr-schedule", json.dumps(schedule), "--steps-per-eval", "100"]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    print(f"taught in {time.perf_counter() - began:.0f} s")
    print(f"facts known: {known(folder / 'adapter', show=True)} of {len(FACTS)} (before: {known(None, show=False)})")
    old = [*fact_cases(), *follow_up_cases(), *sum_cases()]
    old = old if options.asked is None else random.Random(0).sample(old, options.asked)
    before, after = right(old, None), right(old, folder / "adapter")
    print(f"old questions right: {before:.1f} % before, {after:.1f} % after")


if __name__ == "__main__":
    main()
