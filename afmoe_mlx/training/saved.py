"""`AdapterFolder`: what training writes, in mlx-lm's files, and what it needs to go on after an interruption."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.files import ADAPTER
from ..durable import sync_file, sync_folder
from ..errors import AdapterError
from ..values import shown
from .adapter import MLX_LM, PEFT

STATE = "training_state.safetensors"


@dataclass(frozen=True)
class Saved:
    """Where a training was when it was last saved."""

    step: int
    arrays: Mapping[str, mx.array]
    """What was trained, as `trainable.trained` gives it."""
    state: Mapping[str, mx.array]
    """`Trainer.state`."""
    settings: Mapping[str, Any]


class AdapterFolder:
    """A folder with `adapters.safetensors`, the same of each saved step, and the state after the last of them.

    Each file is written beside and renamed, the state last: whenever a training ends, it names a step whose file is
    whole. AdapterError for a path that is no folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise AdapterError(f"{self.path}: is a file: expected a folder for the adapter")

    @property
    def is_taken(self) -> bool:
        """Whether there is an adapter already."""
        return any((self.path / name).exists() for name in (MLX_LM, PEFT, STATE))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and keep other trainings out of it; AdapterError where one writes there already."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise AdapterError(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AdapterError(f"{self.path}: another training writes there: choose another --adapter-path") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            os.close(descriptor)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Write `adapter_config.json`, and remove what an earlier training has left, which it would not be true of."""
        self.path.mkdir(parents=True, exist_ok=True)
        named = (self.path / name for name in (STATE, MLX_LM, PEFT))
        for path in (*named, *self.path.glob(f"[0-9]*_{MLX_LM}")):
            path.unlink(missing_ok=True)
        text = json.dumps(config, indent=4, ensure_ascii=False) + "\n"
        self._write(ADAPTER, lambda path: path.write_text(text, encoding="utf-8"))

    def save(self, step: int, arrays: Mapping[str, mx.array], state: Mapping[str, mx.array], settings: Any) -> Path:
        """Write what stands after a step; the file that is that step's alone."""
        name = _of_step(step)
        metadata = {"step": str(step), "settings": json.dumps(settings)}
        self._write(name, lambda path: mx.save_safetensors(str(path), dict(arrays), {"format": "mlx"}))
        self._write(MLX_LM, lambda path: mx.save_safetensors(str(path), dict(arrays), {"format": "mlx"}))
        self._write(STATE, lambda path: mx.save_safetensors(str(path), dict(state), metadata))
        return self.path / name

    def last(self) -> Saved | None:
        """Where the training in this folder stands, None where nothing was saved. AdapterError for damaged files."""
        path = self.path / STATE
        if not path.is_file():
            return None
        state, metadata = _load(path)
        try:
            step, settings = int(metadata["step"]), json.loads(metadata["settings"])
        except (KeyError, ValueError):
            raise AdapterError(f"{path}: no state of a training: start anew with --overwrite") from None
        arrays = self.path / _of_step(step)
        if not arrays.is_file():
            raise AdapterError(f"{arrays}: not there, from which the training goes on: start anew with --overwrite")
        return Saved(step, _load(arrays)[0], state, settings)

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        beside = self.path / ".new.safetensors"
        try:
            write(beside)
            sync_file(beside)
            os.replace(beside, self.path / name)
            sync_folder(self.path)
        except (OSError, RuntimeError) as error:
            raise AdapterError(f"{self.path / name}: cannot be written: {error}") from None
        finally:
            beside.unlink(missing_ok=True)


def check_settings(found: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """AdapterError where a training was begun with other settings than it is to go on with."""
    for name, value in json.loads(json.dumps(now)).items():  # as they were written
        if found.get(name) != value:
            was = f"{name} was {shown(found.get(name))}, is {shown(value)}"
            was = "its examples were others" if name == "examples" else was
            raise AdapterError(f"the training to go on with was another: {was}: expected the same, or --overwrite")


def _of_step(step: int) -> str:
    return f"{step:07d}_{MLX_LM}"


def _load(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    try:
        arrays, metadata = mx.load(str(path), return_metadata=True)
        mx.eval(arrays)
    except (OSError, RuntimeError, ValueError) as error:
        raise AdapterError(f"{path}: damaged: {error}") from None
    return arrays, metadata  # type: ignore[return-value]
