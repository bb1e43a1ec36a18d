"""The reference of the simulated host names what is served and every fault, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from vdkit.sim.scenario import Scenario
from vdkit.sim.soap import build
from vdkit.sim.soap.objects import Managed

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "simulated-host.md"


def section(title: str) -> str:
    return REFERENCE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def kinds(base: type[Managed]) -> Iterator[type[Managed]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("vdkit."):
            yield kind
        yield from kinds(kind)


def test_every_method_served_is_listed_and_no_other() -> None:
    assert build.populate  # importing it has loaded every kind
    served = {name for kind in kinds(Managed) for name in kind._calls}
    rows = [line for line in section("Calls served").splitlines() if line.startswith("|")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == served


def test_every_fault_is_listed_and_no_other() -> None:
    rows = [line for line in section("Faults: `Scenario`").splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert listed == {field.name for field in fields(Scenario)}
