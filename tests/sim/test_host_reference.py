"""The reference of the simulated host names what is served and every fault, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.scenario import Scenario
from vdkit.sim.scenario_file import DatastoreTable, DiskTable, HostTable, MachineTable
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


def test_every_fault_of_the_data_port_is_listed_and_no_other() -> None:
    rows = [line for line in section("Faults of the data port: `NfcFaults`").splitlines() if "| `" in line]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(field.name for field in fields(NfcFaults))


def test_every_key_of_a_scenario_file_is_listed() -> None:
    lines = [line for line in section("A scenario file").splitlines() if line.startswith("| `[")]
    rows = {line.split("|")[1].strip(" `"): line for line in lines}
    for table, kind in (
        ("[host]", HostTable),
        ("[[datastore]]", DatastoreTable),
        ("[[machine]]", MachineTable),
        ("[[machine.disk]]", DiskTable),
    ):
        keys = {field.name for field in fields(kind)} - {"disks"}
        assert keys <= set(re.findall(r"`(\w+)`", rows[table].split("|")[2])), table
