"""`Plan`: what a training would train, in what memory, and what it would write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx.utils import tree_flatten

from ..models import CausalLM
from ..terminal import size
from .memory import TrainingMemory, trained_bytes


@dataclass(frozen=True)
class Plan:
    """Of a model that training was begun on; targets: its maps by name, as `start` gives them."""

    model: CausalLM
    targets: Mapping[str, Sequence[str]]
    memory: TrainingMemory
    shape: tuple[int, int]
    """Rows and columns of the widest batch, of this process."""

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers that are trained, by the map, or what else, they are of."""
        counts: dict[str, int] = {}
        for name, array in dict(tree_flatten(self.model.trainable_parameters())).items():
            kind = name.split(".", 3)[3].rpartition(".")[0]
            counts[kind] = counts.get(kind, 0) + array.size
        return counts

    @property
    def written(self) -> int:
        """Bytes of the adapter."""
        return sum(trained_bytes(self.model).values())

    def to_json(self) -> dict[str, Any]:
        counts = self.parameters
        layers = {name: len(paths) for name, paths in self.targets.items()}
        found = [{"name": name, "layers": layers.get(name), "parameters": count} for name, count in counts.items()]
        memory = asdict(self.memory) | {"peak": self.memory.peak}
        total = {"parameters": sum(counts.values()), "adapter_bytes": self.written}
        return {"trained": found, **total, "batch": list(self.shape), "memory": memory}

    def to_text(self) -> str:
        """A line a map, the sum, and the memory."""
        counts, memory = self.parameters, self.memory
        width = max(map(len, counts))
        lines = ["Trained, by its name in a layer:"]
        for name, count in counts.items():
            n = len(self.targets.get(name, ()))
            layers = f"{n} layer{'s' * (n > 1)}" if n else ""
            lines.append(f"  {name:{width}}  {layers:>9}  {count:>13,} parameters")
        total = sum(counts.values())
        lines.append(f"  {'in all':{width}}  {'':9}  {total:>13,} parameters, {size(self.written)} to write")
        rows, columns = self.shape
        parts = f"the model {size(memory.weights)}, what is trained {size(memory.trained)}"
        work = f"a batch of {rows} x {columns} tokens {size(max(memory.activations, memory.loss))}"
        return "\n".join([*lines, f"Memory: about {size(memory.peak)}: {parts}, {work}"])
