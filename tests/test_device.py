"""The device file: a fast BLAS is found in time, or nothing is touched."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from afmoe_mlx import device
from helpers.blas import has_openblas


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not has_openblas(), reason="no OpenBLAS here")
def test_importing_the_package_loads_a_fast_blas_before_mlx() -> None:
    code = "import afmoe_mlx; import mlx.core; print('libopenblas' in open('/proc/self/maps').read())"
    assert python(code) == "True"


def test_importing_the_package_alone_does_not_import_mlx() -> None:
    assert python("import sys, afmoe_mlx; print('mlx.core' in sys.modules)") == "False"


def test_a_blas_is_not_loaded_once_mlx_has_chosen_one() -> None:
    assert device.preload_blas() is None


def test_no_fast_blas_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "FAST_BLAS", ("libdoesnotexist.so.9",))
    monkeypatch.delitem(sys.modules, "mlx.core")
    assert device.preload_blas() is None


@pytest.mark.parametrize(("cpu", "expected"), [(True, mx.float32), (False, mx.bfloat16)])
def test_the_cpu_computes_in_float32_and_a_gpu_in_the_stored_dtype(
    cpu: bool, expected: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "is_cpu", lambda: cpu)
    assert device.compute_dtype(mx.bfloat16) == expected


def test_a_run_on_the_cpu_compiles_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "afmoe_mlx", "generate", "--prompt", "hello"]
    subprocess.run(command, capture_output=True, check=True, env=environment)
    assert not list(tmp_path.rglob("*.so"))
