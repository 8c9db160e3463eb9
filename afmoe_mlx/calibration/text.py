"""The calibration text as rows of token ids."""

import random
from itertools import groupby
from pathlib import Path

from ..tokenizer import Tokenizer
from ..tokenizer.samples import read_samples
from .calibration import Calibration

# Prose, code, questions, lists and maths in several languages, and conversations: written for this.
DEFAULT_TEXT = Path(__file__).parent / "default.jsonl"
DEFAULT_CHATS = Path(__file__).parent / "default_chats.jsonl"

# Tokens of a row at most, and of a batch of rows, one row aside.
ROW, BATCH = 512, 2048


def read_rows(calibration: Calibration, tokenizer: Tokenizer) -> list[list[int]]:
    """Up to `calibration.tokens` token ids in rows of at most ROW, each from the beginning of a sample or after another
    row of it, drawn with the seed. Raises InputError for a text that cannot be read."""
    samples = read_samples(calibration.text or DEFAULT_TEXT, tokenizer)
    if calibration.text is None and tokenizer.chat_template is not None:
        samples += read_samples(DEFAULT_CHATS, tokenizer)
    rows = [sample[start : start + ROW] for sample in samples for start in range(0, len(sample), ROW)]
    random.Random(calibration.seed).shuffle(rows)
    chosen: list[list[int]] = []
    left = calibration.tokens
    for row in rows:
        chosen.append(row[:left])
        left -= len(chosen[-1])
        if left == 0:
            break
    return [row for row in chosen if row]


def batches(rows: list[list[int]]) -> list[list[list[int]]]:
    """Rows of one length together, as many as BATCH allows: nothing is padded."""
    made = []
    for length, equal in groupby(sorted(rows, key=lambda row: (len(row), row)), key=len):
        same = list(equal)
        step = max(BATCH // length, 1)
        made += [same[start : start + step] for start in range(0, len(same), step)]
    return made
