"""The float32 twin: what the device is to compute, from a process of its own whose device is the CPU.

A process of its own, since much of what suits a device is decided once in each. It writes its results to stdout as
safetensors: nothing is left on the disk.
"""

import io
import signal
import subprocess
import sys

import mlx.core as mx

from .. import device
from ..checkpoint.quantized import MODES
from ..errors import SelfTestError
from ..interrupts import held
from .anonymous import in_one_line
from .feeding import one_shot, quantized_keys
from .models import CONFIGS, TinyModel, text
from .operations import operations

# Models whose weights are checked quantized, and whose text is fed in every way: one of each architecture.
ALL_WAYS = ("Trinity Nano", "LFM2")
KEY_BITS = (8, 4)

Twin = dict[str, mx.array]

# -P: no module of the folder that the user is in is one of ours.
COMMAND = ("-P", "-m", __name__)


def compute() -> Twin:
    """The logits (L, vocab) of every model's text, and every operation's results, by name."""
    found: Twin = {}
    for name in CONFIGS:
        tiny = TinyModel(name)
        for mode in (None, *MODES) if name in ALL_WAYS else (None,):
            model = tiny.plain(mode)
            found[logits_of(name, mode)] = one_shot(model, text())[0][1]
        for bits in KEY_BITS if name in ALL_WAYS else ():
            parts = quantized_keys(bits)(tiny.plain(), text())
            found[logits_of(name, None, bits)] = mx.concatenate([logits for _, logits in parts])
    for operation in operations():
        found |= {result_of(operation.name, i): array for i, array in enumerate(operation.twin())}
    return {name: array.astype(mx.float32) for name, array in found.items()}


def logits_of(name: str, mode: str | None = None, key_bits: int | None = None) -> str:
    """Where a model's logits are in a twin."""
    return "/".join(["logits", name, mode or "plain", *([] if key_bits is None else [str(key_bits)])])


def result_of(operation: str, i: int) -> str:
    """Where an operation's results are in a twin."""
    return f"operations/{operation}/{i}"


def from_child() -> Twin:
    """The twin of this installation, from a child process; SelfTestError if that ends badly."""
    command = [sys.executable, *COMMAND]
    child = None
    try:
        with held():  # or what was begun is known to nobody
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = child.communicate()
    except BaseException:  # Ctrl-C above all
        if child is not None:
            child.kill()
            child.communicate()
        raise
    if child.returncode:
        raise SelfTestError(
            f"the CPU's part of the self-test {_ending(child.returncode, err.decode(errors='replace'))}"
        )
    try:
        twin: Twin = mx.load(io.BytesIO(out), format="safetensors")  # type: ignore[assignment]
        mx.eval(twin)
    except (RuntimeError, ValueError) as error:
        raise SelfTestError(f"the CPU's part of the self-test gave no results: {in_one_line(str(error))}") from None
    return twin


def _ending(code: int, err: str) -> str:
    """How a child ended, with the last line of what it said."""
    if code < 0:
        names = {member.value: member.name for member in signal.Signals}
        return f"was ended by {names.get(-code, f'signal {-code}')}"
    last = [line for line in err.splitlines() if line.strip()][-1:]
    return ": ".join([f"ended with status {code}", *map(in_one_line, last)])


def main() -> None:
    """Compute the twin on the CPU and write it to stdout."""
    device.use_cpu()
    file = io.BytesIO()
    mx.save_safetensors(file, compute())
    sys.stdout.buffer.write(file.getvalue())


if __name__ == "__main__":
    main()
