"""A model split between hosts that are all in this process."""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import mlx.core as mx

from afmoe_mlx.checkpoint import load_model
from afmoe_mlx.checkpoint.files import read_config_json
from afmoe_mlx.checkpoint.load import PlaceExperts
from afmoe_mlx.hosts.follower import Follower
from afmoe_mlx.hosts.leader import Leader
from afmoe_mlx.hosts.link import LocalLink
from afmoe_mlx.hosts.orders import Answer, Order, answers, orders, to_line
from afmoe_mlx.models import CausalLM, read_config


class LocalCrew:
    """Followers in this process, each of which does what it was told when somebody waits for it."""

    def __init__(self) -> None:
        self.followers: list[Follower] = []
        self.told: list[Order] = []
        self._waiting: list[deque[str]] = []
        self._answers: list[Answer] = []
        self._orders, self._reader = orders(), answers()

    def add(self, follower: Follower) -> None:
        self.followers.append(follower)
        self._waiting.append(deque())

    def tell(self, order: Order) -> None:
        self.told.append(order)
        for waiting in self._waiting:
            waiting.append(to_line(order))

    def answers(self) -> Sequence[Answer]:
        self.run()
        found, self._answers = self._answers, []
        return found

    def run(self, _: int = 0) -> None:
        """Let every follower do all that it was told."""
        for follower, waiting in zip(self.followers, self._waiting, strict=True):
            while waiting:
                found = follower.do(self._orders.read(waiting.popleft()))
                if found is not None:
                    self._answers.append(self._reader.read(to_line(found)))
            follower.finish()

    def fail(self, line: str) -> None:
        raise AssertionError(line)

    def reason(self) -> str | None:
        return None

    def end(self) -> None:
        self.followers.clear()


def split(
    folder: Path,
    ends: Sequence[int],
    *,
    fuse: bool = True,
    directories: Sequence[Path | None] = (),
    places: Sequence[PlaceExperts | None] = (),
) -> tuple[CausalLM, LocalCrew]:
    """The model of a folder as its leader has it, the layers from each of `ends` on being a follower's; and its crew.

    directories: of each follower's prefix stores. places: which experts are in memory, of each host.
    """
    count = read_config(read_config_json(folder)).num_hidden_layers
    parts = [range(first, last) for first, last in pairwise([0, *ends, count])]
    models = [
        load_model(folder, fuse=fuse, part=part, place=place)[0]
        for part, place in zip(parts, [*places, *[None] * len(parts)], strict=False)
    ]
    inboxes: list[deque[mx.array]] = [deque() for _ in models]
    crew = LocalCrew()
    links = [LocalLink(rank, inboxes, crew.run) for rank in range(len(models))]
    kept = [*directories, *[None] * len(models)]
    for follower, link, directory in zip(models[1:], links[1:], kept, strict=False):
        crew.add(Follower(follower, link, directory=directory))
    models[0].reads_experts |= any(model.reads_experts for model in models)
    models[0].beyond = Leader(crew, links[0])
    return models[0], crew
