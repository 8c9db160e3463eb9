"""`afmoe-mlx doctor`: says what is there, one line of advice for what is amiss, and never fails."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import device
from afmoe_mlx.checkpoint import hub_cache
from afmoe_mlx.command_line import examined
from afmoe_mlx.commands import doctor
from afmoe_mlx.device import Blas, Memory
from afmoe_mlx.errors import HubError
from afmoe_mlx.hosts.examine import examine
from helpers.blas import has_openblas
from helpers.command_line import invoke
from helpers.hub_server import FakeHub, use_hub

LINES = ["afmoe-mlx", "System", "Device", "Memory", "Self-test", "MLX", "Packages", "Hub", "Models", "Server"]


find_blas = device.blas


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing amiss, whatever is installed here and was imported first."""
    monkeypatch.setattr(device, "blas", lambda: Blas(Path("/usr/lib/libopenblas.so.0"), is_late=False))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run(*arguments: str) -> Any:
    result = invoke(["doctor", *arguments])
    assert result.exit_code == 0
    assert result.stderr == ""
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def problems() -> list[str]:
    found = run("--json")["problems"]
    text = run()
    assert all(f"- {problem}\n" in text for problem in found)
    assert ("No problems found." in text) == (not found)
    return found


def test_a_person_gets_a_line_a_subject() -> None:
    labels = [line.split(" ")[0] for line in run().split("\n\n")[0].splitlines()]
    assert [label for label in labels if label != "BLAS"] == LINES


def test_json_holds_what_the_device_and_the_packages_say(tmp_path: Path) -> None:
    value = run("--json")
    assert value["device"] == {"name": device.device_name(), "backend": device.backend()}
    assert value["memory"]["total_bytes"] >= value["memory"]["usable_bytes"] > 0
    assert value["versions"]["mlx"].count(".") == 2
    assert value["versions"]["mlx-lm"]
    assert value["python"] == ".".join(map(str, sys.version_info[:3]))
    assert value["models"] == {"folder": str(tmp_path / "hub"), "free_bytes": pytest.approx(0, abs=1e18)} | {
        "count": 0,
        "bytes": 0,
        "read_bytes_per_second": None,
    }


@pytest.mark.parametrize(
    ("blas", "words"),
    [
        (None, None),
        (Blas(Path("/usr/lib/libopenblas.so.0"), is_late=False), None),
        (Blas(None, is_late=False), "apt install libopenblas0-pthread"),
        (Blas(None, is_late=True), "import afmoe_mlx first"),
    ],
)
def test_a_slow_blas_comes_with_what_to_do(blas: Blas | None, words: str | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(device, "blas", lambda: blas)
    found = problems()
    assert (words is None and found == []) or words in found[0]
    assert ("BLAS " in run()) == (blas is not None)


def test_a_device_that_does_not_tell_its_memory_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory", lambda: Memory(None, None))
    assert "Memory     unknown" in run()


def test_an_mlx_that_cannot_be_loaded_is_a_problem_and_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("libmlx.so: cannot open shared object file")

    monkeypatch.setattr(device, "memory", fail)
    assert "libmlx.so" in problems()[0]
    assert "afmoe-mlx[cpu]" in problems()[0]
    assert run("--json")["device"] is None


def test_two_backends_in_one_environment_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("mlx-metal", "mlx-cuda-12") else "1.2.3")
    assert "mlx-cpu and mlx-cuda-13" in problems()[0]


def test_a_package_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert "tokenizers not installed" in run()


def test_cached_models_are_counted_and_their_sizes_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def cached() -> list[hub_cache.CachedModel]:
        return [hub_cache.CachedModel(f"a/{size}", size, Path(), (), "afmoe") for size in (10**9, 2 * 10**9)]

    monkeypatch.setattr(hub_cache, "cached_models", cached)
    assert "2 models, 3.0 GB" in run()


def test_a_cache_that_cannot_be_read_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise HubError("cannot read the Hub cache: check HF_HOME and its permissions")

    monkeypatch.setattr(hub_cache, "cached_models", fail)
    assert problems() == ["cannot read the Hub cache: check HF_HOME and its permissions"]
    assert "cannot be read" in run()


@pytest.mark.parametrize("folder", ["file", "file/hub", "x" * 300], ids=["a file", "in a file", "a long name"])
def test_a_cache_that_can_be_no_folder_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / folder))
    (problem,) = problems()
    assert problem.startswith("models: ")
    assert "unknown" in run()


def test_a_hub_package_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert [problem.split(":")[0] for problem in problems()] == ["hub", "models"]


def test_offline_the_hub_is_not_asked() -> None:
    assert run("--json")["hub"]["is_reachable"] is None
    assert "HF_HUB_OFFLINE is set" in run()


def test_a_hub_that_answers_is_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(tmp_path) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        assert run("--json")["hub"] == {"endpoint": hub.url, "is_offline": False, "is_reachable": True}
        assert problems() == []


@pytest.mark.parametrize("status", [403, 503])
def test_a_hub_that_refuses_is_a_problem_with_its_answer(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub(tmp_path, failing={"/": status}) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        assert f"it answers {status}" in problems()[0]


def test_a_hub_that_is_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HUB_TIMEOUT", 0.1)
    with FakeHub(tmp_path, silent=True) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        began = time.monotonic()
        assert run("--json")["hub"]["is_reachable"] is False
        assert time.monotonic() - began < 15  # the server keeps silent for 30


def test_a_hub_that_is_not_there_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HUB_TIMEOUT", 30)  # its client may take long to import
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        use_hub(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path)
        (problem,) = problems()
    assert "ConnectError" in problem
    assert "HF_ENDPOINT" in problem


def test_the_endpoint_of_the_environment_is_asked_and_no_framework_imported(tmp_path: Path) -> None:
    names = "mlx_lm", "transformers", "torch", "tokenizers"
    code = f"""import sys; from afmoe_mlx.cli import app
try: app(["doctor", "--json"])
except SystemExit as e: code = e.code
print(code, [m for m in {names} if m in sys.modules], file=sys.stderr)"""
    with FakeHub(tmp_path) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr == "0 []\n"
    assert json.loads(done.stdout)["hub"] == {"endpoint": hub.url, "is_offline": False, "is_reachable": True}


def which_blas(imports: str) -> str:
    code = f"{imports}; from afmoe_mlx import device; print(device.blas())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not has_openblas() or not device.is_cpu(), reason="no OpenBLAS here, or no use for it")
def test_a_blas_is_in_use_if_loaded_before_mlx_and_late_if_not() -> None:
    assert "libopenblas" in which_blas("import afmoe_mlx, mlx.core")
    assert "is_late=True" in which_blas("import mlx.core, afmoe_mlx")


@pytest.mark.skipif(not device.is_cpu() or not sys.platform.startswith("linux"), reason="of the CPU on Linux")
@pytest.mark.parametrize(
    ("mapped", "library"),
    [
        ("/lib/mlx/lib/libmlx.so", None),
        ("/lib/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0", None),
        ("/lib/numpy.libs/libscipy_openblas64_-1.so", None),
        ("/lib/some.libs/libopenblas64_p-r0.3.21.so", None),
        ("/opt/a path/libopenblasp-r0.3.21.so", "/opt/a path/libopenblasp-r0.3.21.so"),
        ("/opt/libmkl_rt.so.2", "/opt/libmkl_rt.so.2"),
    ],
)
def test_a_fast_blas_is_known_by_its_name(
    mapped: str, library: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f10 r-xp 00000000 08:01 42    {mapped}\n7f20-7f30 rw-p 00000000 00:00 0\n")
    monkeypatch.setattr(device, "MAPS", maps)
    monkeypatch.setenv("LD_PRELOAD", "libopenblas.so.0")  # whatever pytest imported first
    assert find_blas() == Blas(library and Path(library), is_late=False)


@pytest.mark.parametrize(
    ("found", "words", "problem"),
    [
        ((False, None), "port 8080: free", None),
        ((True, None), "port 8080: taken by another program", None),
        ((True, "ok"), "port 8080: a server of ours answers (ok)", None),
        ((True, "dead"), "port 8080: a server of ours answers (dead)", "start it anew"),
    ],
)
def test_the_servers_port_is_asked(
    found: Any, words: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afmoe_mlx.server.http.probe.probe", lambda port: found)
    assert words in run()
    assert [problem in line for line in problems()] == ([] if problem is None else [True])


@pytest.mark.parametrize(("value", "count"), [(None, 0), ("hidden1", 1), ("hidden1, hidden2", 2), ("hidden1,", 2)])
def test_keys_are_counted_and_never_shown(value: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFMOE_MLX_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("AFMOE_MLX_API_KEY", value)
    assert run("--json")["server"]["keys"] == count
    assert "hidden" not in run()
    assert len(problems()) == (value == "hidden1,")


def hosts_file(folder: Path, *hosts: tuple[str, str]) -> str:
    (folder / "hosts.json").write_text(json.dumps([{"ssh": name, "ips": [ip]} for name, ip in hosts]))
    return str(folder / "hosts.json")


def fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, status: int = 255) -> None:
    """An ssh that says this of every host."""
    (folder / "ssh").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {status}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("ssh: connect to host mac2 port 22: Connection refused", 255, "Remote Login"),
        ("me@mac2: Permission denied (publickey,password).", 255, "ssh-copy-id"),
        ("Host key verification failed.", 255, "accept its key"),
        ("ssh: Could not resolve hostname mac2: not known", 255, ".local"),
        ("ssh: connect to host mac2 port 22: Operation timed out", 255, "is on, awake"),
        ("ssh: connect to host mac2 port 22: No route to host", 255, "Local Network"),
        ("/bin/sh: exec: afmoe-mlx: not found", 127, "install afmoe-mlx"),
    ],
)
def test_a_host_that_cannot_be_reached_comes_with_what_to_do(
    said: str, status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ssh(tmp_path, monkeypatch, said, status)
    (host,) = examined.problems(
        examine(hosts_file(tmp_path, ("localhost", "127.0.0.1"), ("mac2", "10.0.0.2")), None, None)
    )
    assert host.startswith("mac2 ")
    assert said.rstrip(".") in host
    assert words in host.replace(said, "")


def test_hosts_are_looked_at_whatever_is_amiss_with_the_first_and_the_model(tmp_path: Path) -> None:
    file = hosts_file(tmp_path, ("mac1", "192.0.2.1"), ("127.0.0.1", "127.0.0.1"))
    found = examine(file, tmp_path / "none", None)
    assert [(each.facts is not None, each.problem) for each in found.followers] == [(True, None)]
    first, model = examined.problems(found)
    assert "192.0.2.1 of mac1" in first
    assert "none" in model
    assert ("", "mac1 (private): leads, which this machine must be") in examined.lines(found)


def test_addresses_that_all_can_reach_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(tmp_path, monkeypatch, "no")
    found = run("--hosts", hosts_file(tmp_path, ("localhost", "127.0.0.1"), ("mac2", "8.8.8.8")), "--json")
    assert found["hosts"]["leader"]["link"] == "loopback"
    assert found["hosts"]["followers"][0]["link"] == "public"
    assert [line for line in found["problems"] if "mac2 are public" in line]
