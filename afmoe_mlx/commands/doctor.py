"""`afmoe-mlx doctor`: a check of this machine and installation, with advice for each problem."""

import platform
import shutil
import threading
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import device
from ..command_line.requests.machine import DoctorRequest
from ..command_line.requests.serving import KEYS, PORT, keys_of_environment
from ..errors import AfmoeError, SelfTestError
from ..terminal import size, write, write_json

if TYPE_CHECKING:
    from ..hosts.examine import Examination

PACKAGES = ("afmoe-mlx", "mlx", "mlx-lm", "tokenizers", "safetensors", "huggingface_hub")
# MLX's backends come as wheels that each bring libmlx.so: one of them alone is installed.
BACKEND_WHEELS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")

HUB_TIMEOUT = 2.0  # seconds


@dataclass
class Findings:
    """The results of the check, section by section, and a line for each problem with what to do about it."""

    sections: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    hosts: "Examination | None" = None


def run(request: DoctorRequest) -> int:
    """Print the findings, or those of the self-test; the exit status, 1 if that failed."""
    if request.self_test:
        machine = _machine()
        from ..selftest.report import self_test

        return self_test(machine, as_json=request.as_json)
    findings = examine()
    if request.hosts is not None:
        _examine_hosts(findings, request)
    if request.as_json:
        write_json(findings.sections | {"problems": findings.problems}, indent=2)
        return 0
    described = _describe(findings.sections)
    if findings.hosts is not None:
        from ..command_line.examined import lines as lines_of

        described += lines_of(findings.hosts)
    lines = [f"{name:10} {text}" for name, text in described]
    problems = [f"- {problem}" for problem in findings.problems] or ["No problems found."]
    write("\n".join([*lines, "", *problems]) + "\n")
    return 0


def _machine() -> dict[str, Any]:
    """What the self-test's report says of this machine: no path, no name of a user or host.

    SelfTestError if MLX cannot be used.
    """
    findings = Findings()
    _examine_versions(findings)
    try:
        _examine_device(findings)
    except (ImportError, RuntimeError) as error:
        raise SelfTestError(f"MLX cannot be used ({_one_line(error)}): see `afmoe-mlx doctor`") from None
    blas = findings.sections["blas"]
    library = blas and blas["library"] and Path(blas["library"]).name
    kept = {key: findings.sections[key] for key in ("python", "os", "versions", "device")}
    return kept | {"blas": library}


def examine() -> Findings:
    """Look at everything; whatever fails becomes a problem."""
    findings = Findings()
    _examine_versions(findings)
    try:
        _examine_device(findings)
    except (ImportError, RuntimeError) as error:
        findings.sections["device"] = None
        findings.problems.append(f"MLX cannot be used ({_one_line(error)}): on Linux, pip install 'afmoe-mlx[cpu]'")
    for section, look in (("hub", _examine_hub), ("models", _examine_cache), ("server", _examine_server)):
        try:
            look(findings)
        except Exception as error:  # a package that is broken, a folder that cannot be one, whatever else
            findings.sections.setdefault(section, None)
            findings.problems.append(f"{section}: {_one_line(error)}")
    return findings


def _examine_versions(findings: Findings) -> None:
    versions = {name: _version(name) for name in PACKAGES}
    backends = {name: found for name in BACKEND_WHEELS if (found := _version(name))}
    system = f"macOS {platform.mac_ver()[0]} {platform.machine()}" if platform.mac_ver()[0] else platform.platform()
    findings.sections |= {"python": platform.python_version(), "os": system, "versions": versions | backends}
    if len(backends) > 1:
        found = f"{' and '.join(backends)} are installed, and each brings its own libmlx.so"
        findings.problems.append(f"{found}: uninstall all of them, then install the one you need again")


def _examine_device(findings: Findings) -> None:
    from ..selftest import passed

    memory, blas = device.memory(), device.blas()
    findings.sections |= {
        "device": {"name": device.device_name(), "backend": device.backend()},
        "memory": {"total_bytes": memory.total, "usable_bytes": memory.usable},
        "blas": blas and asdict(blas) | {"library": blas.library and str(blas.library)},
        "self_test": passed.status() == "passed",
    }
    if blas and blas.is_late:
        findings.problems.append("MLX was imported before afmoe_mlx, too late for a fast BLAS: import afmoe_mlx first")
    elif blas and blas.library is None:
        findings.problems.append(
            "MLX multiplies with the slow reference BLAS of its wheel: a fast one is used where it is installed, on"
            " Debian and Ubuntu with `apt install libopenblas0-pthread`"
        )


def _examine_hub(findings: Findings) -> None:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    trouble = None if offline else _ask(constants.ENDPOINT)
    reachable = None if offline else trouble is None
    findings.sections["hub"] = {"endpoint": constants.ENDPOINT, "is_offline": offline, "is_reachable": reachable}
    if trouble:
        findings.problems.append(
            f"the Hub cannot be reached ({trouble}): what is downloaded runs without it; else check the connection,"
            " HTTPS_PROXY and HF_ENDPOINT"
        )


def _ask(endpoint: str) -> str | None:
    """Why the Hub gives no answer within HUB_TIMEOUT, or None if it does."""
    troubles: list[str | None] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            status = get_session().head(endpoint, timeout=HUB_TIMEOUT).status_code
            # a mirror need have no page at its root
            troubles.append(None if status < 400 or status == 404 else f"it answers {status}")
        except Exception as error:
            troubles.append(_one_line(error))

    # looking up a name knows no time-out of ours
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT + 0.5)
    return troubles[0] if troubles else f"no answer in {HUB_TIMEOUT:.0f} seconds"


def _examine_cache(findings: Findings) -> None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{folder} cannot be a folder, for {existing} is a file: check HF_HOME")
    found: dict[str, Any] = {"folder": str(folder), "free_bytes": shutil.disk_usage(existing).free}
    findings.sections["models"] = found
    try:
        from ..checkpoint.hub_cache import cached_models

        cached = cached_models()
    except (ImportError, AfmoeError) as error:
        findings.problems.append(_one_line(error))
        return
    findings.sections["models"] = found | {"count": len(cached), "bytes": sum(model.bytes for model in cached)}
    findings.sections["models"]["read_bytes_per_second"] = _disk_speed(folder)


def _disk_speed(folder: Path) -> float | None:
    """Of the disk that models are on, by the largest of their files; None without a large one."""
    from ..checkpoint.disk_speed import read_speed

    files = [path for path in folder.glob("models--*/blobs/*") if path.is_file()]
    return read_speed(max(files, key=lambda path: path.stat().st_size)) if files else None


def _examine_server(findings: Findings) -> None:
    """Whether something answers where `serve` would listen, and the keys that it would ask for."""
    from ..server.http.probe import probe
    from ..server.http.settings import Settings

    keys = keys_of_environment()
    is_taken, status = probe(PORT)
    findings.sections["server"] = {"port": PORT, "is_taken": is_taken, "status": status, "keys": len(keys)}
    if status == "dead":
        findings.problems.append(f"the server on port {PORT} runs and answers nothing: start it anew")
    try:
        Settings(keys=keys)
    except AfmoeError as error:
        findings.problems.append(f"{KEYS}: {error}")


def _examine_hosts(findings: Findings, request: DoctorRequest) -> None:
    """The other hosts of a file, as far as they can be reached. HostError for the file."""
    from ..api import DEMO
    from ..command_line.examined import problems, section
    from ..hosts.examine import examine as examine_hosts

    assert request.hosts is not None
    source = DEMO if request.model == "demo" else request.model
    found = examine_hosts(request.hosts, source, request.model)
    findings.hosts = found
    findings.sections["hosts"] = section(found)
    findings.problems += problems(found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AfmoeError) else f"{type(error).__name__}: {text}"


def _describe(sections: dict[str, Any]) -> list[tuple[str, str]]:
    """Each section as a label and a line."""
    versions = sections["versions"]
    backends = ", ".join(f"{name} {versions[name]}" for name in BACKEND_WHEELS if name in versions)
    own, mlx, *others = (versions[name] or "not installed" for name in PACKAGES)
    lines = [("afmoe-mlx", own), ("System", f"{sections['os']}, Python {sections['python']}")]
    if found := sections["device"]:
        lines += [("Device", f"{found['name']} ({found['backend']})"), ("Memory", _memory(sections["memory"]))]
        tested = "passed on this machine, with these versions" if sections["self_test"] else "not run: --self-test"
        lines.append(("Self-test", tested))
    if (blas := sections.get("blas")) is not None:
        lines.append(("BLAS", blas["library"] or "the reference one of MLX's wheel"))
    lines.append(("MLX", f"{mlx} ({backends})" if backends else mlx))
    lines.append(("Packages", ", ".join(map(" ".join, zip(PACKAGES[2:], others, strict=True)))))
    hub, models = sections["hub"], sections["models"]
    state = {None: "not asked, HF_HUB_OFFLINE is set", True: "reachable", False: "not reachable"}
    return [
        *lines,
        ("Hub", "unknown" if hub is None else f"{hub['endpoint']}, {state[hub['is_reachable']]}"),
        ("Models", "unknown" if models is None else _models(models)),
        ("Server", "unknown" if sections["server"] is None else _server(sections["server"])),
    ]


def _server(found: dict[str, Any]) -> str:
    state = "taken by another program" if found["is_taken"] else "free"
    if found["status"] is not None:
        state = f"a server of ours answers ({found['status']})"
    keys = f"{found['keys']} in {KEYS}" if found["keys"] else f"{KEYS} is not set"
    return f"port {found['port']}: {state}; keys: {keys}"


def _memory(found: dict[str, Any]) -> str:
    if found["total_bytes"] is None:
        return "unknown"
    usable = found["usable_bytes"]
    return size(found["total_bytes"]) + ("" if usable is None else f", {size(usable)} of it for a model now")


def _models(found: dict[str, Any]) -> str:
    count = found.get("count")
    held = "cannot be read" if count is None else f"{count} models, {size(found['bytes'])}" if count else "none yet"
    speed = found.get("read_bytes_per_second")
    read = "" if speed is None else f", read at {speed / 1e9:.1f} GB/s"
    return f"{found['folder']}: {held} ({size(found['free_bytes'])} free{read})"
