"""The self-test from beginning to end: its table, as it is made, and a report for an issue."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ..errors import SelfTestError
from ..terminal import write, write_json
from . import passed
from .check import TF32, Result
from .limits import multiplies_in_tf32
from .suite import checks
from .twin import from_child

COLUMNS = f"{'check':52} {'dtype':8} {'difference':>10} {'limit':>8} {'seconds':>7}"


def self_test(machine: Mapping[str, Any], *, as_json: bool) -> int:
    """Make all checks and print them, as a table or one JSON object; the exit status, 1 if any failed.

    machine: what is said of it: python, os, versions, device, and blas, a name or None.
    """
    show = _silent if as_json else write
    show(f"{_described(machine)}\n\n{COLUMNS}\n")
    is_tf32 = multiplies_in_tf32()
    results: list[Result] = []
    try:
        twin = from_child()
    except SelfTestError as error:
        problems = [str(error)]
    else:
        for check in checks(is_tf32=is_tf32):
            results.append(check.make(twin))
            show(line(results[-1]) + "\n")
        problems = [result.problem for result in results if result.is_failed]
    if not problems:
        with suppress(OSError):  # a home that cannot be written to: it will be suggested again
            passed.remember("passed")
    notes = [f"This GPU multiplies in TF32, so float32 has float16's limits: {TF32}."] if is_tf32 else []
    show("\n" + "\n".join([*notes, *_verdict(results, problems)]) + "\n")
    if as_json:
        rows = [asdict(result) | {"is_failed": result.is_failed} for result in results]
        report = {**machine, "passed": not problems, "checks": rows, "problems": problems, "notes": notes}
        write_json(report, indent=2)
    return 1 if problems else 0


def line(result: Result) -> str:
    """A check's line of the table."""
    start = f"{result.name:52} {result.dtype:8}"
    if result.skipped is not None:
        return f"{start} skipped: {result.skipped}"
    found = "error" if result.difference is None else f"{result.difference:.1e}"
    return f"{start} {found:>10} {result.limit:8.1e} {result.seconds:7.2f}{'  FAILED' if result.is_failed else ''}"


def _silent(text: str) -> None:
    """What is shown of a table that nobody reads."""


def _described(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    device = machine["device"]
    blas = f", {machine['blas']}" if machine["blas"] else ""
    return f"{device['name']} ({device['backend']}{blas})\n{machine['os']}, Python {machine['python']}\n{versions}"


def _verdict(results: list[Result], problems: list[str]) -> list[str]:
    skipped = sum(result.skipped is not None for result in results)
    seconds = sum(result.seconds for result in results)
    count = f"{len(results) - skipped} checks in {seconds:.0f} seconds, {skipped} skipped"
    if not problems:
        return [f"All passed: {count}. This machine computes what the CPU and Transformers do."]
    failed = f"{sum(result.is_failed for result in results)} failed of {count}."
    return [failed, *(f"- {problem}" for problem in problems), "Please report all of this: nothing in it is personal."]
