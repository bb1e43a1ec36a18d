"""A Go program on govmomi tells every kind of controller and disk apart, and adds some in its own way."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

import gotools
from vdkit.sim.controllers import Controller, DiskOptions
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory

MIB = 1 << 20
#: Disks of the machine, in order of their keys: what is made, and what govmomi must say of it.
ZOO: list[tuple[DiskSpec, dict[str, Any]]] = [
    (DiskSpec(MIB), {"key": 2000, "controller": "pvscsi", "backing": "flat", "mode": "persistent"}),
    (
        DiskSpec(MIB, options=DiskOptions(mode="independent_nonpersistent")),
        {"key": 2001, "mode": "independent_nonpersistent"},
    ),
    (
        DiskSpec(MIB, options=DiskOptions(mapping="physicalMode")),
        {"key": 2002, "backing": "mapping", "mapping": "physicalMode"},
    ),
    (
        DiskSpec(MIB, options=DiskOptions(mapping="virtualMode")),
        {"key": 2003, "backing": "mapping", "mapping": "virtualMode"},
    ),
    (
        DiskSpec(MIB, options=DiskOptions(sharing="sharingMultiWriter", key_id="k-1")),
        {"key": 2004, "sharing": "sharingMultiWriter", "keyId": "k-1"},
    ),
    (
        DiskSpec(MIB, controller=Controller("lsisas", 1, "physicalSharing")),
        {"key": 2016, "controller": "lsilogic-sas", "bus": 1, "shared": "physicalSharing"},
    ),
    (
        DiskSpec(MIB, controller=Controller("buslogic", 2)),
        {"key": 2032, "controller": "buslogic", "bus": 2, "shared": "noSharing"},
    ),
    (DiskSpec(MIB, controller=Controller("ide", 1)), {"key": 3002, "controller": "ide", "bus": 1}),
    (DiskSpec(MIB, controller=Controller("ahci")), {"key": 16000, "controller": "ahci", "bus": 0}),
    (DiskSpec(MIB, controller=Controller("nvme")), {"key": 32000, "controller": "nvme", "bus": 0}),
]


@pytest.mark.witness("go", "govmomi")
@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_govmomi_reads_and_adds_devices(personality: str, simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory(personality=personality)
    machine = host.inventory.create_machine("zoo", "datastore1", [spec for spec, _ in ZOO])
    machine.set_change_tracking(True)
    program = gotools.build("devices")
    done = subprocess.run(
        [str(program), "-vm=zoo"],
        env={**os.environ, **host.environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    before = said["before"]
    assert [disk["key"] for disk in before] == [expected["key"] for _, expected in ZOO]
    for disk, (spec, expected) in zip(before, ZOO, strict=True):
        assert {name: disk[name] for name in expected} == expected
        tracked = machine.disk(disk["key"]).tracker is not None
        assert bool(disk["changeId"]) is tracked
        assert tracked is (
            spec.options.in_snapshots
            and spec.options.sharing == "sharingNone"
            and (spec.controller is None or not spec.controller.shared)
        )
    assert said["stores"] == ["datastore1 VMFS"]
    assert said["added"] == ["nvme", "sata", "lsilogic-sas"]
    fresh = [disk for disk in said["after"] if disk not in before]
    assert [(disk["key"], disk["controller"], disk["bus"], disk["unit"]) for disk in fresh] == [
        (2048, "lsilogic-sas", 3, 0),
        (16030, "ahci", 1, 0),
        (32015, "nvme", 1, 0),
    ]
    assert host.internal_errors == []
