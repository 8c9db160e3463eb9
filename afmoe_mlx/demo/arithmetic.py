"""Sums: addition and subtraction up to two digits, multiplication of one digit."""

import random
from dataclasses import dataclass

from .facts import expand, hashed

WAYS = {
    "+": "[$a + $b|$a+$b|$a plus $b|what is $a + $b|what's $a+$b|what is $a plus $b|how much is $a + $b|"
    "how much is $a plus $b|calculate $a + $b|add $a and $b|the sum of $a and $b|can you add $a and $b|$a + $b =|"
    "compute $a+$b|whats $a + $b|what does $a plus $b make|sum $a and $b|$a+$b=]",
    "-": "[$a - $b|$a-$b|$a minus $b|what is $a - $b|what's $a-$b|what is $a minus $b|how much is $a - $b|"
    "how much is $a minus $b|calculate $a - $b|subtract $b from $a|the difference of $a and $b|$a - $b =|"
    "compute $a-$b|whats $a - $b|take $b from $a|$a-$b=]",
    "*": "[$a * $b|$a*$b|$a times $b|what is $a * $b|what's $a x $b|what is $a times $b|how much is $a * $b|"
    "how much is $a times $b|calculate $a * $b|multiply $a by $b|the product of $a and $b|$a x $b|$a × $b|"
    "compute $a*$b|whats $a * $b|multiply $a and $b|$a*$b=]",
}
TOO_HARD = "[$a $o $b|what is $a $o $b|$a$o$b|calculate $a $o $b|how much is $a $o $b]"
TOO_HARD_ANSWER = "I don't know: I can only add, subtract and multiply small numbers."


@dataclass(frozen=True)
class Sum:
    """A question, its answer, and whether the split keeps it out of training."""

    question: str
    answer: str
    held_out: bool


def sums(rng: random.Random) -> Sum:
    """A random sum; one in ten is beyond what the demo can do."""
    if rng.random() < 0.1:
        return too_hard(rng)
    sign = rng.choice("++++---**")
    top = 10 if sign == "*" or rng.random() < 0.35 else 99
    a, b = rng.randint(0, top), rng.randint(0, top)
    if sign == "-" and a < b and rng.random() < 0.8:
        a, b = b, a
    ways = expand(WAYS[sign])
    way = rng.randrange(len(ways))
    # What one digit gives cannot be worked out from others: there the phrasing is held out, else the numbers.
    by_wording = sign == "*" or max(a, b) < 10
    held_out = hashed(f"{sign}{way}" if by_wording else f"{a}{sign}{b}") % 8 == 0
    question = ways[way].replace("$a", str(a)).replace("$b", str(b))
    return Sum(question, worked(a, sign, b), held_out)


def worked(a: int, sign: str, b: int) -> str:
    """The answer; with two digits by way of the tens and the ones, which is what a small model can learn."""
    if sign == "*":
        return f"{a} * {b} = {a * b}."
    factor = 1 if sign == "+" else -1
    tens, ones = (a // 10 + factor * (b // 10)) * 10, a % 10 + factor * (b % 10)
    between = f"{tens} {'-' if ones < 0 else '+'} {abs(ones)} = " if max(a, b) > 9 else ""
    return f"{a} {sign} {b} = {between}{tens + ones}."


def too_hard(rng: random.Random) -> Sum:
    """A sum that is to be declined."""
    sign = rng.choice(("/", "/", "divided by", "+", "-", "*", "times", "^"))
    small = sign in {"/", "divided by", "^"}
    a = rng.randint(2, 99) if small else rng.randint(111, 9999)
    b = rng.randint(2, 12) if small else rng.randint(11, 999)
    way = rng.choice(expand(TOO_HARD))
    question = way.replace("$a", str(a)).replace("$b", str(b)).replace("$o", sign)
    return Sum(question, TOO_HARD_ANSWER, False)
