"""Counting the operations of a graph that has not been evaluated yet."""

import re
import tempfile
from collections import Counter
from pathlib import Path

import mlx.core as mx

# What moves no data.
VIEWS = frozenset(
    """Broadcast BroadcastAxes Reshape Transpose Flatten Unflatten ExpandDims Squeeze Slice Split StopGradient View
    NumberOfElements""".split()
)
NODE = re.compile(r'label ?="(\w+)", shape=rectangle')


def operations(*outputs: mx.array) -> Counter[str]:
    """The primitives, views left out, of the unevaluated graph behind some arrays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *outputs)
        names = NODE.findall(path.read_text())
    return Counter(name for name in names if name not in VIEWS)
