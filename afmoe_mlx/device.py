"""The only file that asks which device this is: dtypes, fast BLAS, memory limits, bandwidth.

What is said here of Metal and CUDA follows from MLX's source; nobody has run it there yet.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

    Stream = mx.Device | mx.ThreadLocalStream

# Any of these gives MLX's CPU backend matrix products many times faster than the reference BLAS in its wheel.
FAST_BLAS = ("libopenblas.so.0", "libmkl_rt.so.2", "libmkl_rt.so.1")

# Rows from which, on the CPU, dequantizing a weight and multiplying by BLAS beats the quantized kernel, which unpacks
# the weight again for each row: measured in 4 bits, alone between 3 and 4 for 1024 × 2560 to 256 × 1024 and in steps of
# the built-in model between 4 and 6 with OpenBLAS; between 6 and 8 with the reference BLAS.
DEQUANTIZE_FROM, SLOWLY_DEQUANTIZE_FROM = 6, 8

MEMINFO = Path("/proc/meminfo")
MAPS = Path("/proc/self/maps")  # which libraries this process has loaded

# Copies in one evaluation, so that its own cost does not count, and evaluations of which the fastest counts.
COPIES = 8
COPY_RUNS = 5

# Each has work of its own in memory.
MOST_STREAMS = 8

# Each has every file open.
MOST_READERS = 4

# What MLX reads from the environment when it first needs it. Float32 products are to be such on Apple's M5 and on CUDA
# as well, where they would be rounded to TF32's 10 bits. And on CUDA attention has a plan for each length of keys, more
# of them in a long conversation than MLX's check, which then raises an error, has in mind.
ENVIRONMENT = {"MLX_ENABLE_TF32": "0", "MLX_ENABLE_CACHE_THRASHING_CHECK": "0"}

# Tokens of a prompt run at a time. Metal multiplies the rows of an expert in tiles of 16 to 64, which 512 tokens do not
# fill. Beyond so many tokens of context one command of 2,048 may run into the GPU's watchdog.
PREFILL_STEP, METAL_PREFILL_STEP = 512, 2048
WATCHDOG_CONTEXT = 1 << 16
# Bytes that such a step works in; the larger one is taken while as many are free.
PREFILL_ROOM, METAL_PREFILL_ROOM = 500_000_000, 2_000_000_000

# Rows of queries, those of the heads that share keys together, that Metal's attention kernel for few queries takes.
METAL_FEW_QUERIES = 32

# Positions from which Metal's rotary kernel, which reduces no angles, is off by more than bfloat16 rounds to (1e-3).
METAL_ROPE_POSITIONS = 1 << 14

# Rows, each of one expert, from which CUDA's quantized kernel, which does not sort them, is slower than dequantizing
# all experts of a layer.
CUDA_DEQUANTIZE_FROM = 1024

# Bytes of freed buffers that MLX may keep on Metal whatever is free: each token's temporaries.
LEAST_BUFFERS = 256 << 20

# Bytes of a layer's experts. The demo has 0.3 MB of them, which are copied in no time; Trinity Nano in 4 bits has 50.
FUSE_EXPERTS_UP_TO = 8 << 20


def prepare() -> None:
    """What must be done before MLX is imported: its environment, unless it is set already, and a fast BLAS on Linux."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    preload_blas()


def preload_blas() -> str | None:
    """Load a fast BLAS where one is installed, so that MLX finds its symbols first; the library's name, or None.

    Only Linux wheels need it, and only before `mlx.core` is imported does it help.
    """
    if not sys.platform.startswith("linux") or "mlx.core" in sys.modules:
        return None
    return _open_fast_blas(os.RTLD_GLOBAL)


@dataclass(frozen=True)
class Blas:
    """What MLX's CPU backend multiplies matrices with on Linux."""

    library: Path | None
    """The fast one in use; None for the reference BLAS in MLX's wheel."""
    is_late: bool
    """Whether one is installed that could not be preloaded, because MLX was imported before this package."""


def blas() -> Blas | None:
    """The BLAS in use; None where MLX has no need of another, on a GPU or on macOS."""
    if not (is_cpu() and sys.platform.startswith("linux")):
        return None
    modules = list(sys.modules)  # in the order of their import
    came_late = modules.index("mlx.core") < modules.index(__name__.partition(".")[0])
    if came_late and not any(name in os.environ.get("LD_PRELOAD", "") for name in ("openblas", "mkl_rt")):
        return Blas(None, is_late=_open_fast_blas(os.RTLD_LOCAL) is not None)
    return Blas(_loaded_blas(), is_late=False)


@cache
def has_fast_blas() -> bool:
    """Whether the CPU's matrix products are fast: everywhere but on Linux with the reference BLAS of MLX's wheel."""
    found = blas()
    return found is None or found.library is not None


def _open_fast_blas(mode: int) -> str | None:
    for name in FAST_BLAS:
        try:
            ctypes.CDLL(name, mode=mode)
        except OSError:
            continue
        return name
    return None


def _loaded_blas() -> Path | None:
    """The fast BLAS that this process has mapped; those in other packages' wheels, with symbols of their own, aside."""
    mapped = (line.split(maxsplit=5)[-1] for line in MAPS.read_text(errors="replace").splitlines() if "/" in line)
    names = tuple(name.partition(".")[0] for name in FAST_BLAS)
    fast = (Path(path) for path in mapped if Path(path).name.startswith(names))
    return next((path for path in fast if not path.parent.name.endswith(".libs")), None)


def is_cpu() -> bool:
    """Whether MLX computes on the CPU by default."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu


def use_cpu() -> None:
    """Compute on the CPU from now on: at the start of a process, before anything is decided by the device."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)


def compute_dtype(stored: "mx.Dtype") -> "mx.Dtype":
    """The dtype to compute in for weights stored as `stored`: the same, but float32 on the CPU.

    There bfloat16 and float16 products are 7 to 30 times slower, and `gather_mm` has none.
    """
    import mlx.core as mx

    return mx.float32 if is_cpu() else stored


def dequantizes(rows: int) -> bool:
    """Whether `rows` rows are multiplied faster by a quantized weight that is dequantized first."""
    return is_cpu() and rows >= (DEQUANTIZE_FROM if has_fast_blas() else SLOWLY_DEQUANTIZE_FROM)


def dequantizes_experts(rows: int) -> bool:
    """Whether so many rows, sorted by expert, are multiplied faster once all experts of the layer are dequantized."""
    return rows >= CUDA_DEQUANTIZE_FROM and backend() == "CUDA"


def writes_in_place() -> bool:
    """Whether the host may write into an array's memory; CUDA's would have to move for that, and for good."""
    return backend() != "CUDA"


def multiplies_slices() -> bool:
    """Whether a slice of a quantized array can be multiplied; CUDA's kernels take whole arrays alone."""
    return backend() != "CUDA"


def rotates_by_kernel(positions: int) -> bool:
    """Whether MLX's rotary kernel is as exact as its dtypes at positions below `positions`; the CPU has none."""
    name = backend()
    return name == "CUDA" or (name == "Metal" and positions <= METAL_ROPE_POSITIONS)


def few_queries(heads: int) -> int | None:
    """Tokens of one step, each with `heads` query heads a key head, up to which attention costs as for one; or None."""
    return max(METAL_FEW_QUERIES // heads, 1) if backend() == "Metal" else None


def prefill_step(seen: int) -> int:
    """Tokens of a prompt to run at a time, `seen` tokens into the context: more on Metal where memory is free."""
    is_larger = backend() == "Metal" and seen < WATCHDOG_CONTEXT and (memory().usable or 0) >= METAL_PREFILL_ROOM
    return METAL_PREFILL_STEP if is_larger else PREFILL_STEP


def extra_prefill_room() -> int:
    """Bytes that the larger step works in beyond the smaller one's, where this device ever takes it."""
    return METAL_PREFILL_ROOM - PREFILL_ROOM if backend() == "Metal" else 0


def one_kernel(function: Callable[..., "mx.array"]) -> Callable[..., "mx.array"]:
    """A function of pointwise operations as one kernel, for any shapes; on the CPU as it is.

    There each kernel would cost half a second of the C++ compiler when it first runs, where one is installed.
    """
    import mlx.core as mx

    return function if is_cpu() else mx.compile(function, shapeless=True)


def fuses_experts(nbytes: int) -> bool:
    """Whether a layer's experts, of so many bytes, are put together in fewer and larger arrays while they are read.

    That saves some operations a token, and takes a copy. On the CPU the copy of a large model's experts takes as long
    as reading them, and the operations are nothing beside the layer's arithmetic.
    """
    return nbytes <= FUSE_EXPERTS_UP_TO or not is_cpu()


def reading_streams() -> "tuple[Stream | None, ...]":
    """What reads weights beside each other: reading takes memory from the system, which costs a core its time."""
    return parallel_streams()[:MOST_READERS] if is_cpu() else (None,)


def parallel_streams() -> "tuple[Stream, ...]":
    """What to compute on beside each other: a stream for each core of the CPU, up to MOST_STREAMS; a GPU is one."""
    import mlx.core as mx

    return _cpu_streams() if is_cpu() else (mx.default_device(),)


@cache
def _cpu_streams() -> "tuple[mx.ThreadLocalStream, ...]":
    import mlx.core as mx

    return tuple(mx.new_thread_local_stream(mx.default_device()) for _ in range(min(os.cpu_count() or 1, MOST_STREAMS)))


def peak_memory() -> int:
    """Bytes that MLX held at most since the process began, or since `reset_peak_memory`."""
    import mlx.core as mx

    return mx.get_peak_memory()


def reset_peak_memory() -> None:
    """Count `peak_memory` from here on, with what is held now."""
    import mlx.core as mx

    mx.reset_peak_memory()


def copy_bandwidth(nbytes: int = 1 << 28) -> float:
    """Bytes a second that memory gives a copy of an array of `nbytes`, read and written, at best.

    The array should be larger than any cache. It is copied onto itself: new memory would cost the CPU page faults.
    """
    import mlx.core as mx

    array = mx.zeros((nbytes // 4,))
    mx.eval(array)
    best = float("inf")
    for _ in range(COPY_RUNS):
        began = time.perf_counter()
        copy = array
        for _ in range(COPIES):
            copy = mx.abs(copy)
        mx.eval(copy)
        best = min(best, time.perf_counter() - began)
        del copy
    mx.clear_cache()
    return 2 * nbytes * COPIES / best


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, None where this device does not tell."""

    total: int | None
    usable: int | None
    """What is left for a model: of what Metal lets the GPU hold, of a CUDA GPU's own, of the host's on the CPU."""


def backend() -> str:
    """Which of MLX's backends computes by default: "CPU", "CUDA" or "Metal"."""
    import mlx.core as mx

    if is_cpu():
        return "CPU"
    return "Metal" if mx.metal.is_available() else "CUDA"


def device_name() -> str:
    """What MLX calls the default device, such as "Apple M2 Pro"."""
    return str(_device_info().get("device_name", "unknown device"))


def memory() -> Memory:
    """The memory of the default device, as it is now."""
    import mlx.core as mx

    info = _device_info()
    if (limit := _gpu_limit()) is not None:
        return Memory(info.get("memory_size"), max(limit - mx.get_active_memory(), 0))
    if "free_memory" in info:  # CUDA
        return Memory(info.get("total_memory"), info["free_memory"])
    return _host_memory()


@contextmanager
def resident() -> Iterator[None]:
    """On Metal, keep what is loaded in memory while the block runs; elsewhere nothing is done.

    Otherwise macOS takes the pages of weights back whenever they rest. The wired limit is raised only for what fits.
    Beside it, MLX may keep freed buffers for half of what is free, but at least LEAST_BUFFERS; the rest is for caches
    to grow into. The old limits come back with the end of the block, or of the block around it that raised them first.
    """
    import mlx.core as mx

    if (limit := _gpu_limit()) is None:
        yield
        return
    free = max(limit - mx.get_active_memory(), 0)
    old_wired = mx.set_wired_limit(limit) if free else None
    if old_wired == limit:
        yield
        return
    old_cache = mx.set_cache_limit(max(free // 2, LEAST_BUFFERS))
    try:
        yield
    finally:
        mx.synchronize()  # the limits must not change under work that is under way
        mx.set_cache_limit(old_cache)
        if old_wired is not None:
            mx.set_wired_limit(old_wired)


def _gpu_limit() -> int | None:
    """Bytes that Metal lets the GPU hold; None on other devices."""
    return _device_info().get("max_recommended_working_set_size")


def _device_info() -> dict[str, Any]:
    import mlx.core as mx

    return mx.device_info()


def _host_memory() -> Memory:
    total: int | None
    available: int | None
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        total = None
    try:
        lines = MEMINFO.read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        available = total
    return Memory(total, available)
