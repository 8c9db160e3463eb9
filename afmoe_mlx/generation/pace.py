"""How many tokens speculative decoding drafts for a step: as many as pay on this device and text, often none.

What a step costs for each number of drafted tokens and how many are accepted are measured as it goes. The account, in
plain steps, makes sure of the outcome however wrong an estimate is: what drafting loses is taken from it, what it gains
is put in, and every plain step adds a little, which is all that drafting may cost in the long run.
"""

from dataclasses import dataclass

# Plain steps in the account at first; what a plain step adds to it, up to that many; and how many may be earned.
ACCOUNT = 3.0
ALLOWANCE = 0.01
MOST_EARNED = 16.0

# Weight of the latest measurement against all before; and how many times the expected may count at most: what takes
# longer was held up by something else.
WEIGHT = 0.15
HICCUP = 3

# What is taken for granted until measured: how likely the first drafted token is accepted, and each after one that was;
# and what a drafted token adds to a step's cost, in plain steps.
FIRST_ACCEPTED, NEXT_ACCEPTED = 0.5, 0.7
ROW_COST = 0.15

# Plain steps to be measured before any draft; and drafts after which plain steps are measured again.
MEASURED = 3
REMEASURE_AFTER = 64


@dataclass
class Average:
    """A running average: the mean at first, later one that forgets."""

    value: float = 0.0
    count: int = 0

    def add(self, x: float) -> None:
        self.count += 1
        self.value += (x - self.value) * max(1 / self.count, WEIGHT)


class Pace:
    """Decides how many tokens to draft, at most `most`; times are in seconds, from whatever clock."""

    def __init__(self, most: int) -> None:
        self.lengths = [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]
        """The numbers of tokens that are tried, 1, 2, 4 and so on up to `most`: few, as each is a shape of its own."""
        self._account = ACCOUNT
        self._is_warm = False
        self._plain = Average()
        self._costs: dict[int, Average] = {}
        self._first, self._next = FIRST_ACCEPTED, NEXT_ACCEPTED
        self._drafts_unmeasured = 0
        self._goes_on = False
        self._tokens_read, self._reading_time = 0, 0.0

    def length(self, most: int, behind: int = 0) -> int:
        """How many tokens to draft now, where `most` can be; 0 for a plain step.

        behind: tokens that the drafter has to read first, which the account must have the means for.
        """
        lengths = [length for length in self.lengths if length <= most]
        if not lengths or not self._knows_plain_steps:
            return 0
        best = max(lengths, key=lambda length: self._tokens(length) / self._cost(length))
        if self._tokens(best) < self._steps(self._cost(best)):  # a trial: what was earned is not for that
            self._account = min(self._account, ACCOUNT)
        return best if self._account > behind * self._reading_cost else 0

    def plain(self, seconds: float) -> None:
        """A plain step took so long, from one token to the next."""
        if self._is_warm:
            self._plain.add(min(seconds, HICCUP * self._plain.value) if self._plain.count else seconds)
        self._is_warm = True  # the first step may have waited for kernels
        self._drafts_unmeasured = 0
        self._goes_on = False
        if self._account < ACCOUNT:
            self._pay(ALLOWANCE)

    def caught_up(self, tokens: int, seconds: float) -> None:
        """The drafter has read so many tokens."""
        if tokens:
            self._tokens_read += tokens
            self._reading_time += seconds

    def idle(self, seconds: float) -> None:
        """The device was waited for, or had nothing to do, so long for the sake of drafting."""
        if self._plain.count:
            self._pay(-self._steps(seconds))

    def drafted(self, length: int, accepted: int, seconds: float) -> None:
        """A step with `length` drafted tokens, `accepted` of them right, took so long."""
        seconds = min(seconds, HICCUP * self._cost(length))
        gain = accepted + 1 - self._steps(seconds)
        if length in self._costs:
            self._costs[length].add(seconds)
        else:
            self._costs[length] = Average()  # the first one may have waited for kernels
            gain = max(gain, -1.0)
        self._pay(gain)
        self._drafts_unmeasured += 1
        self._first += WEIGHT * ((accepted > 0) - self._first)
        # after a draft that was all right, the first token of the next one goes on from an accepted one too
        for i in range(0 if self._goes_on else 1, min(accepted + 1, length)):
            self._next += WEIGHT * ((accepted > i) - self._next)
        self._goes_on = accepted == length

    @property
    def _knows_plain_steps(self) -> bool:
        return self._plain.count >= MEASURED and self._drafts_unmeasured < REMEASURE_AFTER

    @property
    def _reading_cost(self) -> float:
        """Plain steps that the drafter takes to read a token; more than a row is taken for a wait for kernels."""
        return min(self._steps(self._reading_time / max(self._tokens_read, 1)), ROW_COST)

    def _steps(self, seconds: float) -> float:
        """A time in plain steps."""
        return seconds / max(self._plain.value, 1e-9)

    def _pay(self, steps: float) -> None:
        # with a floor, so that one bad stretch does not silence drafting for long
        self._account = min(max(self._account + steps, -float(self.lengths[-1])), MOST_EARNED)

    def _tokens(self, length: int) -> float:
        """Tokens that a step with so many drafted is expected to give."""
        return 1 + self._first * sum(self._next**i for i in range(length))

    def _cost(self, length: int) -> float:
        """Seconds of such a step: as measured, or from the longest shorter one that was, to be found out."""
        measured = {known: cost.value for known, cost in self._costs.items() if cost.count and known <= length}
        known = max(measured, default=0)
        return measured.get(known, self._plain.value) + ROW_COST * self._plain.value * (length - known)
