"""Makes MLX's CPU device the default of every Python process that has this folder on its PYTHONPATH.

A whole run of the suite can so be had on the CPU of a machine with a GPU, the processes it starts included.
"""

import importlib.util
import sys
from typing import Any


class _Hook:
    """Finds `mlx.core` once, in the ordinary way, and sets its default device when it is loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "mlx.core":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                module.set_default_device(module.cpu)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Hook())
