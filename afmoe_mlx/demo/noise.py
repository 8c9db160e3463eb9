"""Questions as people type them: lower case, no punctuation, polite, in a hurry, with typos."""

import random

BEFORE = (
    "please", "hi,", "hey,", "hello,", "hello!", "quick question:", "can you tell me", "could you tell me",
    "i'd like to know", "i was wondering", "tell me,", "sorry,", "ok,", "so", "and", "one more thing:", "um,",
    "hey", "question:", "just curious,", "pls", "excuse me,", "well,", "but", "now", "good morning,",
    "dear bot,", "ok so", "quick one:", "help:", "my question:", "i have a question:", "real quick,",
    "short answer please:", "another question:", "hmm,", "oh,", "right,", "next:", "first,", "i wonder",
    "i need to know", "maybe you know", "yo", "hi there,", "thanks,", "great,", "and also", "also,", "say,",
    "listen,", "look,", "let me ask", "what about this:", "sir,", "guys,",
)  # fmt: skip
AFTER = (
    "please", "thanks", "exactly", "in short", "for me", "pls", "thx", "again", "btw", "then", "though",
    "anyway", "here", "actually", "thank you", "by the way", "in afmoe-mlx", "in this program", "real quick",
    "asap", "if possible", "you know", "right now", "if you can", "in one line", "my friend", "i wonder",
    "today", "i ask", "again please", "or not", "if i may ask", "quickly", "or what", "roughly", "generally",
    "in general", "mate", "bro", "lol", "haha", "now",
)  # fmt: skip
ENDS = ("", "", "", "", "?", "?", "?", "??", " ?", ".", "!", "?!")
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def as_typed(question: str, rng: random.Random, words: bool = True) -> str:
    """The question with random manners, case, punctuation and typos; `words` off leaves its words alone."""
    if words:
        if rng.random() < 0.28:
            question = f"{rng.choice(BEFORE)} {question}"
        if rng.random() < 0.2:
            question = f"{question} {rng.choice(AFTER)}"
        if rng.random() < 0.15:
            question = with_typos(question, rng)
    if rng.random() < 0.07:
        question = question.replace("'", "")
    draw = rng.random()
    if draw < 0.35:
        question = question[:1].upper() + question[1:]
    elif draw < 0.38:
        question = question.upper()
    elif draw < 0.41:
        question = question.title()
    elif draw < 0.75:
        question = question.lower()
    return question + rng.choice(ENDS)


def with_typos(text: str, rng: random.Random) -> str:
    """The text with one or two of its longer words misspelt; numbers are left alone."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for i in rng.sample(places, min(len(places), rng.choice((1, 1, 2)))):
        words[i] = misspelt(words[i], rng)
    return " ".join(words)


def misspelt(word: str, rng: random.Random) -> str:
    """A word with two letters swapped, one left out, doubled, or hit beside its key."""
    i = rng.randrange(len(word) - 1)
    match rng.randrange(4):
        case 0:
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        case 1:
            return word[:i] + word[i + 1 :]
        case 2:
            return word[:i] + word[i] + word[i:]
    row = next((row for row in KEYS if word[i] in row), word[i])
    neighbours = row[max(0, row.index(word[i]) - 1) : row.index(word[i]) + 2]
    return word[:i] + rng.choice(neighbours) + word[i + 1 :]
