"""The child process that computes the twin: however it ends, one line says so and nothing is left of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afmoe_mlx.errors import SelfTestError
from afmoe_mlx.selftest import twin


def program(path: Path, script: str) -> str:
    """A program that stands for Python."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -SEGV $$", "was ended by SIGSEGV"),
        (
            "echo 'Traceback' >&2; echo 'MemoryError: out of it' >&2; exit 3",
            "ended with status 3: MemoryError: out of it",
        ),
        ("exit 4", "ended with status 4"),
        ("echo nonsense", "gave no results"),
        ("exit 0", "gave no results"),
    ],
)
def test_a_child_that_ends_badly_is_one_line(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", script))
    with pytest.raises(SelfTestError) as error:
        twin.from_child()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_ctrl_c_ends_it_and_its_child_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """Sent to the parent alone, as a program would: a terminal sends it to both."""
    python = program(tmp_path / "python", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    code = f"import sys; sys.executable = {python!r}; from afmoe_mlx.cli import app; app(['doctor', '--self-test'])"
    home = tmp_path / "home"
    environ = os.environ | {"HOME": str(home), "XDG_STATE_HOME": str(home), "TMPDIR": str(tmp_path)}
    before = set(tmp_path.iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as parent:
        pid = tmp_path / "pid"
        while not (pid.exists() and pid.read_text().strip()):
            assert parent.poll() is None
            time.sleep(0.02)
        parent.send_signal(signal.SIGINT)
        out, err = parent.communicate()
    assert (parent.returncode, err) == (130, "")
    assert out.splitlines()[-1].startswith("check ")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert set(tmp_path.iterdir()) - before == {pid}


def test_ctrl_c_while_its_child_begins_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = []

    def begun(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        children.append(popen(*args, **kwargs))  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)
        return children[0]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", begun)
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", "exec sleep 60"))
    with pytest.raises(KeyboardInterrupt):
        twin.from_child()
    assert children[0].poll() == -signal.SIGKILL


def test_a_module_of_the_folder_that_the_user_is_in_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('it was')")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, *twin.COMMAND[:1], "-c", "import random; print(random.__file__)"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert str(tmp_path) not in done.stdout + done.stderr
