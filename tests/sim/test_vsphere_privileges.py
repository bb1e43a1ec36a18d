"""The privileges that our page lists are enough: the simulated host lacks all others meanwhile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pyVmomi import VmomiSupport
from simulated_login import logged_in, the_machine

from vdkit.disklib.remote import open_remote
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import machines, snapshots, tracking
from vdkit.vsphere.tracking import ChangeQuery

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "privileges.md"
_ID = re.compile(r"`?((?:[A-Z][A-Za-z]+\.){1,2}[A-Z][A-Za-z]+)`?")


def documented() -> tuple[set[str], set[str]]:
    """The ids of the backup role, and those of the whole table."""
    text = PAGE.read_text()
    role = text.split("govc role.create vdkit-backup", 1)[1].split("```", 1)[0]
    table = "\n".join(line for line in text.splitlines() if line.startswith("| "))
    return set(_ID.findall(role)), set(_ID.findall(table))


def all_privileges() -> set[str]:
    """Every privilege that a call of the API is guarded by, and those that the configuration asks for."""
    known = {"VirtualMachine.Config.ChangeTracking", "VirtualMachine.Inventory.Delete"}
    for name in (
        "VirtualMachine",
        "Folder",
        "VirtualMachineSnapshot",
        "Datastore",
        "FileManager",
        "NfcService",
    ):
        try:
            kind = VmomiSupport.GetWsdlType("urn:vim25", name)
        except KeyError:
            continue
        for method in kind._GetMethodList():
            if method.privId:
                known.add(method.privId)
    return known


def test_the_page_lists_ids_of_the_api() -> None:
    role, table = documented()
    assert role < table
    assert {"VirtualMachine.Provisioning.GetVmFiles", "VirtualMachine.State.CreateSnapshot"} <= role


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_the_backup_role_is_enough_for_a_backup(
    simulated_host_factory: HostFactory, personality: str
) -> None:
    host = simulated_host_factory(personality=personality)
    host.power_on_all()
    role, _ = documented()
    missing = {name for name in all_privileges() - role if not name.startswith("System.")}
    assert len(missing) > 20
    host.scenario.missing_privileges = frozenset(missing)
    with logged_in(host) as session:
        vm = tracking.enable(session, the_machine(session), run="r")
        since = None
        for _ in range(2):
            with (
                snapshots.temporary_snapshot(session, vm, "vdkit b", "vdkit:r") as taken,
                ChangeQuery(session, vm, taken.moref) as query,
            ):
                disks = query.save_ids()
                if since is None:
                    query.full(2000)
                else:
                    assert query.changed_ranges(2000, since).total < disks[2000].capacity
                with open_remote(session, vm, disks[2000].file) as disk:
                    disk.read_into(0, bytearray(512))
                since = query.next_id(2000)
        assert since


def test_the_whole_table_is_enough_for_a_restore(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory()
    _, table = documented()
    missing = {name for name in all_privileges() - table if not name.startswith("System.")}
    host.scenario.missing_privileges = frozenset(missing)
    with logged_in(host) as session:
        new = machines.NewMachine("restored", "datastore1", (machines.NewDisk(1 << 20),))
        vm = machines.create(session, new)
        with open_remote(session, vm, vm.disks[0].file, writable=True, device_key=2000) as disk:
            disk.write_from(0, b"x" * 512)
        machines.power_off(session, machines.power_on(session, vm))
        machines.destroy(session, vm)
