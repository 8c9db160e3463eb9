"""Lines that are given as if they were typed."""

from collections.abc import Callable


def lines(*given: str | type[BaseException]) -> Callable[[str], str]:
    left = list(given)

    def ask(prompt: str) -> str:
        line = left.pop(0) if left else EOFError
        if isinstance(line, str):
            return line
        raise line

    return ask
