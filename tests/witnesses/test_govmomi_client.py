"""A Go program on govmomi uses the simulated host as it would use a real one, and agrees on what it sees."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import gotools
from vdkit.sim.host import SimulatedHost

MIB = 1 << 20


def run_client(host: SimulatedHost, *arguments: str) -> dict[str, Any]:
    program = gotools.build("client")
    done = subprocess.run(
        [str(program), *arguments],
        env={**os.environ, **host.environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.witness("go", "govmomi")
@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_govmomi_uses_the_host(
    personality: str, simulated_host_factory: Callable[..., SimulatedHost]
) -> None:
    host = simulated_host_factory(personality=personality)
    machine = host.machine("vm1")
    machine.set_change_tracking(True)
    machine.power_on()
    with machine.disk(2000).guest() as guest:
        guest.write_from(3 * MIB, b"\xa5" * 70_000)
    machine.power_off()
    change_id = machine.disk(2000).change_id

    said = run_client(host, "-vm=vm1")

    center = "ha-datacenter" if personality == "esx" else "Datacenter"
    assert said["api"] == "8.0.3.0"
    assert said["path"] == f"/{center}/vm/vm1"
    assert f"/{center}/datastore/datastore1" in said["paths"]
    assert said["names"] == ["vm1"]
    assert said["byUuid"]
    assert said["datastore"] == "datastore1"
    disk = said["disks"][0]
    assert (disk["key"], disk["file"], disk["capacity"]) == (2000, "[datastore1] vm1/vm1.vmdk", 64 * MIB)
    assert disk["changeId"] == change_id
    assert said["powers"] == ["poweredOn", "poweredOff", "poweredOn"]
    assert said["snapshot"] == "VirtualMachineSnapshot"
    assert said["current"] == '<made> & "seen"'
    assert said["length"] == 64 * MIB
    assert said["areas"] == [[3 * MIB, 131072]]
    assert not said["snapshotAfter"]
    assert said["uploaded"]
    assert said["faults"] == {"login": True, "powerOnTwice": True, "afterLogout": True}
    assert host.internal_errors == []
