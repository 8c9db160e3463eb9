"""Ctrl-C at random times while a model on several processes answers: is every later answer right?

python benchmarks/hosts_interrupts.py [--count 80] [--hosts 2]
"""

import json
import os
import random
import signal
import tempfile
import threading
import time
from argparse import ArgumentParser

from afmoe_mlx import load, stream_generate

ENTRY = {"ssh": "localhost", "ips": ["127.0.0.1"]}
QUESTIONS = ("What is a rotating cache?", "How do I convert a model?", "What can you do?", "What is a router?")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--hosts", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([ENTRY] * arguments.hosts, file)
        file.flush()
        whole, tokenizer = load("demo")
        several, _ = load("demo", hosts=file.name)
    chance = random.Random(0)
    right = interrupted = 0
    cache, seen = several.make_cache(), []
    for i in range(arguments.count):
        question = [{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
        options = {"max_tokens": 60, "temperature": 0.8, "seed": i, **({"prompt_lookup": True} if i % 3 == 0 else {})}
        expected = [chunk.token for chunk in stream_generate(whole, tokenizer, prompt, **options)]
        timer = threading.Timer(chance.uniform(0, 0.6), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for _ in stream_generate(several, tokenizer, prompt, cache=cache, seen=seen, **options):
                pass
            timer.join()
            time.sleep(0.01)
        except KeyboardInterrupt:
            interrupted += 1
        cache.rewind(min(cache.offset, max(cache.rewindable, 0)))
        if cache.offset:
            cache = several.make_cache()
        found = [chunk.token for chunk in stream_generate(several, tokenizer, prompt, cache=cache, **options)]
        right += found == expected
        cache.rewind(min(cache.offset, max(cache.rewindable, 0)))
        if cache.offset:
            cache = several.make_cache()
    print(f"{interrupted} of {arguments.count} answers were interrupted, {right} of those after them are right")


if __name__ == "__main__":
    main()
