"""Followers that do what they should not: each is lost with a line that names it, and none is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from afmoe_mlx.errors import HostError
from afmoe_mlx.hosts import crew as crews
from afmoe_mlx.hosts.crew import Followers
from afmoe_mlx.hosts.hostfile import Host
from afmoe_mlx.hosts.orders import Done, Flush, Lookup, Order

SILENCE = 2.0
NOWHERE = "/no/ssh"
# What a follower does for its life; it beats, and answers `flush`, where it does not say otherwise.
GOOD = """
import json, sys, threading, time
saying = threading.Lock()
def say(**message):
    with saying: print(json.dumps(message), flush=True)
def beat():
    while True: say(do="beat", finished=done); time.sleep(0.1)
done = 0
threading.Thread(target=beat, daemon=True).start()
for line in sys.stdin:
    told = json.loads(line)
    if told["do"] == "beat": continue
    done += 1
    if told["do"] == "flush": say(do="done")
"""
BAD = {
    "ends": ("", "its process ended (status 0)"),
    "says why it ends": ("import sys; sys.exit('no such place')", "its process ended (status 1): no such place"),
    "ends at once": ("import os; os.kill(os.getpid(), 9)", "its process ended (signal 9)"),
    "is silent": ("import time; time.sleep(60)", "nothing was heard of it for"),
    "never ends a line": (
        "import sys, time\nwhile True: sys.stdout.write('x' * 1000); sys.stdout.flush(); time.sleep(0.1)",
        "nothing was heard of it for",
    ),
    "closes its output": ("import os, time; os.close(1); time.sleep(60)", "its process ended (it closed its output)"),
    "writes nonsense": ("import time; print('hello!', flush=True); time.sleep(60)", "hello!"),
    "writes no message": ("""import time; print('{"do": "reboot"}', flush=True); time.sleep(60)""", "reboot"),
    "nests": ("import time; print('[' * 100000, flush=True); time.sleep(60)", "makes no sense"),
    "is an older version": (
        "import sys\nsys.exit('╭─ Error ─╮\\n│ No such command \\'follow\\'. │\\n╰─────────╯')",
        "its process ended (status 1): No such command 'follow'.",
    ),
    "draws": (r"import sys; sys.exit('gone \x1b]0;title\x07\x1b[2J')", "its process ended (status 1): gone "),
    "ends in its children": (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
        "nothing was heard of it for",
    ),
}


@pytest.fixture(autouse=True)
def _starts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers here are scripts, whose first word takes no longer than the others."""
    monkeypatch.setattr(crews, "STARTING", 0.0)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Followers, list[str]]]]:
    """Starts followers of which each runs some Python; in the end none of their groups may be left."""
    monkeypatch.setattr(crews, "GRACE", 0.5)
    made: list[Followers] = []

    def begin(*scripts: str) -> tuple[Followers, list[str]]:
        hosts = [Host(f"mac{i}", "127.0.0.1") for i in range(2, 2 + len(scripts))]
        commands = {
            host.name: [script] if script == NOWHERE else [sys.executable, "-c", script]
            for host, script in zip(hosts, scripts, strict=True)
        }
        monkeypatch.setattr(crews, "command_for", lambda host, silence: commands[host.name])
        lost: list[str] = []
        made.append(Followers(hosts, silence=SILENCE, on_lost=lost.append))
        return made[-1], lost

    yield begin
    for crew in made:
        crew.end()
        assert not [group for group in groups(crew) if is_left(group)]


def groups(crew: Followers) -> list[int]:
    return [process._process.pid for process in crew._processes]


def is_left(group: int) -> bool:
    """Whether some process of a group still runs, a moment later."""
    for _ in range(50):
        found = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in found.splitlines()]
        if not any(int(own) == group and not state.startswith("Z") for own, state in rows):
            return False
        time.sleep(0.02)
    return True


def ask(crew: Followers, order: Order) -> None:
    crew.tell(order)
    crew.answers()


def wait(condition: Callable[[], Any], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_follower_is_lost_and_named_and_the_good_one_ended(start: Any, name: str) -> None:
    script, expected = BAD[name]
    crew, lost = start(GOOD, script)
    with pytest.raises(HostError) as caught:
        ask(crew, Flush(1))
    wait(lambda: lost)
    (line,) = lost
    assert str(caught.value) == line
    assert line.startswith("mac3 is lost: ")
    assert expected in line
    assert line.isprintable()
    with pytest.raises(HostError, match="mac3 is lost"):
        crew.tell(Flush(1))


def test_good_followers_answer_in_their_order_until_they_are_let_go(start: Any) -> None:
    crew, lost = start(GOOD, GOOD)
    for _ in range(3):
        crew.tell(Flush(1))
        assert crew.answers() == [Done(), Done()]
    crew.end()
    assert not lost


def test_orders_that_a_stopped_follower_does_not_read_hold_nobody_up(start: Any) -> None:
    crew, lost = start(GOOD, GOOD)
    crew.tell(Flush(1))
    crew.answers()
    os.kill(groups(crew)[0], signal.SIGSTOP)
    long = Lookup(1, "", tuple(range(1 << 16)), 0)  # more than a pipe holds
    with pytest.raises(HostError, match="mac2 is lost: nothing was heard"):
        ask(crew, long)
    wait(lambda: lost)


def test_followers_that_do_not_read_are_ended_at_the_end(start: Any) -> None:
    crew, _ = start(GOOD)
    crew.tell(Flush(1))
    crew.answers()
    os.kill(groups(crew)[0], signal.SIGSTOP)
    telling = threading.Thread(target=crew.tell, args=(Lookup(1, "", tuple(range(1 << 16)), 0),), daemon=True)
    telling.start()
    crew.end()
    telling.join(5)
    assert not telling.is_alive()


def test_one_that_does_nothing_of_what_it_is_told_is_lost_once_all_are_under_way(start: Any) -> None:
    crew, lost = start(GOOD.replace("done += 1", "pass"))
    crew.is_under_way = True
    crew.tell(Flush(1))
    wait(lambda: lost)
    assert "mac2 is lost: it has done nothing" in lost[0]


def test_what_cannot_be_started_is_named_and_the_others_ended(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = crews.subprocess.Popen
    monkeypatch.setattr(crews.subprocess, "Popen", lambda *a, **b: started.append(popen(*a, **b)) or started[-1])
    with pytest.raises(HostError, match="mac3 cannot be reached: /no/ssh: No such file"):
        start(GOOD, NOWHERE)
    assert not is_left(started[0].pid)


def test_whoever_waits_for_an_answer_is_freed_by_the_end(start: Any) -> None:
    crew, _ = start(GOOD.replace('say(do="done")', "pass"))
    crew.tell(Flush(1))
    told: list[BaseException] = []

    def wait_for_it() -> None:
        try:
            crew.answers()
        except HostError as error:
            told.append(error)

    asking = threading.Thread(target=wait_for_it, daemon=True)
    asking.start()
    crew.fail("out of step")
    asking.join(5)
    assert str(told[0]) == "out of step"
