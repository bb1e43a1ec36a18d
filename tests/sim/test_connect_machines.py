"""Which machine and disk a connection means: every form of vmxSpec, snapshots, clones, first-class disks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim
from simulated_login import logged_in, one_line

from vdkit.disklib.connection import Connection, ConnectParams, connect
from vdkit.errors import (
    Ambiguous,
    HostAccessDenied,
    HostFileLocked,
    NotFound,
    NotSupported,
    ObjectNotFound,
    ReadOnly,
    UsageError,
)
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.sim.inventory import Inventory
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import fcd, tasks
from vdkit.vsphere.inventory import find_machine, parse_vmx_path
from vdkit.vsphere.session import Session

MIB = 1 << 20


def pattern(seed: int) -> bytes:
    return random.Random(seed).randbytes(MIB)


def connected(host: SimulatedHost, vm: str, **more: Any) -> Connection:
    trust = Trust(sha256=host.thumbprint_sha256)
    return connect(ConnectParams(host.host, host.user, host.password, trust, vm, port=host.port, **more))


def first_mib(connection: Connection, path: str = "") -> bytes:
    if not path:
        assert connection.vm is not None
        path = connection.vm.disks[0].file
    with connection.open(path, transport_modes="nbdssl") as disk:
        found = bytearray(MIB)
        disk.read_into(0, found)
        return bytes(found)


@pytest.fixture
def vcenter(simulated_host_factory: HostFactory) -> SimulatedHost:
    """A vCenter with one running machine: snapshot ``first`` holds pattern 1, the running disk pattern 2."""
    host = simulated_host_factory(personality="vcenter")
    machine = host.machine("vm1")
    machine.power_on()
    guest = machine.disk(2000).guest()
    guest.write_from(0, pattern(1))
    machine.create_snapshot("first")
    guest.write_from(0, pattern(2))
    return host


@pytest.fixture
def session(vcenter: SimulatedHost) -> Iterator[Session]:
    with logged_in(vcenter) as session:
        yield session


def clone(session: Session, name: str, **changes: Any) -> None:
    """CloneVM_Task of vm1; ``changes`` are those of RelocateSpec and CloneSpec."""
    center = session.content.rootFolder.childEntity[0]
    pool = center.hostFolder.childEntity[0].resourcePool
    location = vim.vm.RelocateSpec(pool=pool, diskMoveType=changes.pop("diskMoveType", None))
    spec = vim.vm.CloneSpec(location=location, powerOn=False, template=changes.pop("template", False))
    for key, value in changes.items():
        setattr(spec, key, value)
    source = session.managed(vim.VirtualMachine, find_machine(session, "vm1").moref)
    tasks.run(session, f"clone {name}", lambda: source.CloneVM_Task(center.vmFolder, name, spec))


# -- which machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_every_form_of_vmx_spec(simulated_host_factory: HostFactory, personality: str) -> None:
    host = simulated_host_factory(personality=personality, machines=2)
    host.inventory.create_machine("web & db, 50% ü", "datastore1", [DiskSpec(capacity=MIB)])
    with logged_in(host) as session:
        center = "ha-datacenter" if personality == "esx" else "Datacenter"
        odd = find_machine(session, "web & db, 50% ü")
        assert odd.vmx is not None
        folder = odd.vmx.partition("] ")[2]
        escaped = folder.replace("%", "%25").replace("&", "%26").replace(" ", "%20")
        for text in (
            f"moref={odd.moref}",
            odd.vmx,
            f"[datastore1]{folder}",
            f"{escaped}?dcPath={center}&dsName=datastore1",
            f"{escaped}?dsName=datastore1&dcPath=/{center}/",
            f"/{escaped}?dsName=datastore1",
            odd.path,
            odd.name,
        ):
            assert find_machine(session, text).moref == odd.moref, text
        for text, kind, part in (
            (f"vm1/vm1.vmx?dcPath={center}x&dsName=datastore1", ObjectNotFound, "no datacenter"),
            (f"vm1/vm1.vmx?dcPath={center}&dsName=other", NotFound, "check the name of the datastore"),
            ("vm1/vm9.vmx?dsName=datastore1", ObjectNotFound, "no machine is registered"),
            ("[datastore1] vm9/vm9.vmx", ObjectNotFound, "no machine is registered"),
        ):
            with pytest.raises(kind) as caught:
                find_machine(session, text)
            one_line(caught.value, part)


@pytest.mark.parametrize("text", ["a.vmx?dcPath=x", "a.vmx?dsName=&dcPath=x", "a.vmx?dsName=a&dsName=b"])
def test_a_vmx_spec_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="dsName"):
        parse_vmx_path(text)


def test_names_that_only_look_like_a_vmx_spec() -> None:
    for text in ("web?dcPath=x&dsName=y", "web.vmx", "[x] web", "what?", "a.vmx?color=blue"):
        assert parse_vmx_path(text) is None


# -- which disk: snapshots ---------------------------------------------------------------------------


def test_what_a_snapshot_froze_is_opened_by_its_reference(vcenter: SimulatedHost) -> None:
    moref = next(iter(vcenter.machine("vm1").snapshots())).moref
    for reference in (moref, f"moref={moref}", "first"):
        with connected(vcenter, "vm1", snapshot=reference) as connection:
            assert connection.vm is not None
            assert connection.vm.disks[0].file == "[datastore1] vm1/vm1.vmdk"
            assert first_mib(connection) == pattern(1)
            with pytest.raises(ReadOnly, match="without the snapshot"):
                connection.open(connection.vm.disks[0].file, read_only=False)
    with pytest.raises(ObjectNotFound) as caught:
        connected(vcenter, "vm1", snapshot="second")
    one_line(caught.value, "'second'", moref, "first")
    vcenter.machine("vm1").create_snapshot("first")
    with pytest.raises(Ambiguous, match="2 snapshots"):
        connected(vcenter, "vm1", snapshot="first")


def test_the_running_link_without_a_snapshot_says_which_to_pass(vcenter: SimulatedHost) -> None:
    """Row 29 of our users' threads: error 13 until somebody passes the snapshot."""
    machine = vcenter.machine("vm1")
    with connected(vcenter, "vm1") as connection:
        running = machine.disk(2000).file
        with pytest.raises((HostFileLocked, HostAccessDenied)) as caught:
            connection.open(running)
        one_line(caught.value, "vm1", "running and writes", "pass the snapshot", "first")
        machine.remove_all_snapshots()
        with pytest.raises((HostFileLocked, HostAccessDenied)) as bare:
            connection.open(machine.disk(2000).file)
        one_line(bare.value, "make a snapshot")


def test_links_below_a_running_machine_and_of_one_that_is_off(vcenter: SimulatedHost) -> None:
    machine = vcenter.machine("vm1")
    with connected(vcenter, "vm1") as connection:
        assert first_mib(connection, "[datastore1] vm1/vm1.vmdk") == pattern(1)
    machine.power_off()
    with connected(vcenter, "vm1") as connection:
        assert first_mib(connection) == pattern(2)
        assert first_mib(connection, "[datastore1] vm1/vm1.vmdk") == pattern(1)


# -- clones and templates ----------------------------------------------------------------------------


def test_linked_clones_and_templates_give_their_own_bytes(vcenter: SimulatedHost, session: Session) -> None:
    frozen = vim.vm.Snapshot(next(iter(vcenter.machine("vm1").snapshots())).moref)
    clone(session, "linked", diskMoveType="createNewChildDiskBacking", snapshot=frozen)
    clone(session, "full")
    clone(session, "template", template=True, snapshot=frozen)
    assert find_machine(session, "template").template
    assert find_machine(session, "linked").disks[0].parents == ("[datastore1] vm1/vm1.vmdk",)
    for name, content in (("linked", pattern(1)), ("full", pattern(2)), ("template", pattern(1))):
        with connected(vcenter, name) as connection:
            assert first_mib(connection) == content, name
    # A running clone writes into its own delta; what it stands on stays as it was, for everybody.
    vcenter.machine("linked").power_on()
    vcenter.machine("linked").disk(2000).guest().write_from(0, pattern(3))
    vcenter.machine("linked").power_off()
    with connected(vcenter, "linked") as connection:
        assert first_mib(connection) == pattern(3)
    with connected(vcenter, "vm1", snapshot="first") as connection:
        assert first_mib(connection) == pattern(1)
    # The original loses its snapshot and is deleted: the clone keeps what it needs.
    source = vcenter.machine("vm1")
    source.remove_all_snapshots()
    assert not source.consolidation_needed
    source.power_off()
    source.destroy()
    with connected(vcenter, "linked") as connection:
        assert first_mib(connection, "[datastore1] vm1/vm1.vmdk") == pattern(1)
        assert first_mib(connection) == pattern(3)
    vcenter.machine("linked").destroy()
    assert not vcenter.inventory.datastore("datastore1").exists("vm1/vm1.vmdk")
    assert vcenter.internal_errors == []


def test_a_template_stays_off_and_comes_back_as_a_machine(vcenter: SimulatedHost, session: Session) -> None:
    machine = vcenter.machine("vm1")
    vm = session.managed(vim.VirtualMachine, find_machine(session, "vm1").moref)
    with pytest.raises(vim.fault.InvalidPowerState):
        vm.MarkAsTemplate()
    machine.power_off()
    vm.MarkAsTemplate()
    assert machine.vmx_path == "[datastore1] vm1/vm1.vmtx"
    assert vm.config.template
    assert vm.resourcePool is None
    with pytest.raises(NotSupported):
        tasks.run(session, "power on", lambda: vm.PowerOnVM_Task(None))
    with connected(vcenter, "[datastore1] vm1/vm1.vmtx") as connection:
        assert first_mib(connection) == pattern(2)
    vm.UnregisterVM()
    folder = session.content.rootFolder.childEntity[0].vmFolder
    again = lambda template: folder.RegisterVM_Task(machine.vmx_path, None, template, None, None)  # noqa: E731
    with pytest.raises(NotSupported, match=r"\.vmtx"):
        tasks.run(session, "register", lambda: again(False))
    vm = tasks.run(session, "register", lambda: again(True))
    machine = vcenter.machine("vm1")
    pool = session.content.rootFolder.childEntity[0].hostFolder.childEntity[0].resourcePool
    session.managed(vim.VirtualMachine, vm._GetMoId()).MarkAsVirtualMachine(pool, None)
    assert machine.vmx_path == "[datastore1] vm1/vm1.vmx"
    machine.power_on()


def test_a_template_and_a_clone_survive_a_restart_of_the_host(
    vcenter: SimulatedHost, session: Session, simulated_host_factory: HostFactory
) -> None:
    frozen = vim.vm.Snapshot(next(iter(vcenter.machine("vm1").snapshots())).moref)
    clone(session, "linked", diskMoveType="createNewChildDiskBacking", snapshot=frozen)
    clone(session, "template", template=True, snapshot=frozen)
    folder = vcenter.inventory.datastore("datastore1").folder
    session.close()
    vcenter.stop()
    with SimulatedHost([folder], personality="vcenter", certificate=vcenter.certificate) as again:  # type: ignore[list-item]
        assert again.machine("template").config.template
        with connected(again, "linked") as connection:
            assert first_mib(connection) == pattern(1)


def test_what_a_clone_stands_on_is_no_machine_of_its_own_after_a_restart(
    vcenter: SimulatedHost, session: Session
) -> None:
    """The original is gone, with its .vmx file; of its disks only the link that the clone reads is left."""
    frozen = vim.vm.Snapshot(next(iter(vcenter.machine("vm1").snapshots())).moref)
    # Folders are read in the order of their names: one clone comes before its original, one after it.
    clone(session, "a linked", diskMoveType="createNewChildDiskBacking", snapshot=frozen)
    clone(session, "z linked", diskMoveType="createNewChildDiskBacking", snapshot=frozen)
    source = vcenter.machine("vm1")
    source.power_off()
    source.destroy()
    before = sorted(machine.name for machine in vcenter.inventory.machines)
    folder = vcenter.inventory.datastore("datastore1").folder
    session.close()
    vcenter.stop()
    for _ in range(2):
        with SimulatedHost([folder], personality="vcenter", certificate=vcenter.certificate) as again:  # type: ignore[list-item]
            assert sorted(machine.name for machine in again.inventory.machines) == before
            assert again.inventory.skipped == []
            for name in ("a linked", "z linked"):
                with connected(again, name) as connection:
                    assert first_mib(connection) == pattern(1)
    inventory = Inventory(personality="vcenter")
    store = inventory.add_folder(folder)  # type: ignore[arg-type]
    inventory.find("a linked").destroy()
    assert store.exists("vm1/vm1.vmdk")
    inventory.find("z linked").destroy()
    assert not store.exists("vm1/vm1.vmdk")


# -- first-class disks -------------------------------------------------------------------------------


def make_disk(session: Session, capacity_mib: int = 8) -> fcd.DiskSpec:
    manager = session.content.vStorageObjectManager
    store = session.content.rootFolder.childEntity[0].datastore[0]
    backing = vim.vslm.CreateSpec.DiskFileBackingSpec(datastore=store)
    spec = vim.vslm.CreateSpec(name="data", capacityInMB=capacity_mib, backingSpec=backing)
    call: Callable[[Any], Any] = (
        manager.CreateDisk_Task if session.about.is_vcenter else manager.HostCreateDisk_Task
    )
    made = tasks.run(session, "make a first-class disk", lambda: call(spec))
    return fcd.DiskSpec(made.config.id.id, store._GetMoId())


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_a_first_class_disk_that_no_machine_has(
    simulated_host_factory: HostFactory, personality: str
) -> None:
    host = simulated_host_factory(personality=personality)
    with logged_in(host) as session:
        spec = make_disk(session)
        assert fcd.list_disks(session, "datastore1") == [spec.id]
        known = fcd.get_disk(session, fcd.DiskSpec(spec.id, "datastore1"))
        assert (known.name, known.capacity, known.consumers) == ("data", 8 * MIB, ())
    with connected(host, "", fcd=spec) as connection:
        assert connection.vm is None
        with connection.open("", read_only=False) as disk:
            assert disk.capacity == 8 * MIB
            disk.write_from(0, pattern(5))
        assert first_mib(connection, known.file) == pattern(5)
        with pytest.raises(NotFound, match="is \\[datastore1\\] fcd/"):
            connection.open("[datastore1] vm1/vm1.vmdk")
    assert host.internal_errors == []


def test_a_first_class_disk_goes_through_its_machine_and_its_snapshots_open(
    vcenter: SimulatedHost, session: Session
) -> None:
    spec = make_disk(session)
    with connected(vcenter, "", fcd=spec) as connection, connection.open("", read_only=False) as disk:
        disk.write_from(0, pattern(6))
    manager, store = session.content.vStorageObjectManager, session.managed(vim.Datastore, spec.datastore)
    taken = tasks.run(
        session,
        "freeze",
        lambda: manager.VStorageObjectCreateSnapshot_Task(vim.vslm.ID(id=spec.id), store, "before"),
    )
    with connected(vcenter, "", fcd=spec) as connection, connection.open("", read_only=False) as disk:
        disk.write_from(0, pattern(7))
    with connected(vcenter, "", fcd=fcd.DiskSpec(spec.id, spec.datastore, taken.id)) as connection:
        assert first_mib(connection, connection.first_class_disk.file) == pattern(6)  # type: ignore[union-attr]
        with pytest.raises(ReadOnly):
            connection.open("", read_only=False)
    vm = session.managed(vim.VirtualMachine, find_machine(session, "vm1").moref)
    attach = lambda: vm.AttachDisk_Task(vim.vslm.ID(id=spec.id), store, None, 3)  # noqa: E731
    tasks.run(session, "attach", attach)
    disk_of_vm = fcd.get_disk(session, spec)
    assert disk_of_vm.consumers == (vcenter.machine("vm1").config.instance_uuid,)
    with connected(vcenter, "", fcd=spec) as connection:
        assert connection.vm is not None
        with pytest.raises((HostFileLocked, HostAccessDenied), match="pass the snapshot"):
            connection.open("")
    vcenter.machine("vm1").power_off()
    with connected(vcenter, "", fcd=spec) as connection:
        assert first_mib(connection, disk_of_vm.file) == pattern(7)
    tasks.run(session, "detach", lambda: vm.DetachDisk_Task(vim.vslm.ID(id=spec.id)))
    assert fcd.get_disk(session, spec).consumers == ()


def test_what_is_no_first_class_disk(vcenter: SimulatedHost, session: Session) -> None:
    spec = make_disk(session)
    with pytest.raises(ObjectNotFound, match="there is no disk"):
        fcd.get_disk(session, fcd.DiskSpec("0-0", spec.datastore))
    with pytest.raises(ObjectNotFound, match="datastore1"):
        fcd.get_disk(session, fcd.DiskSpec(spec.id, "elsewhere"))
    with pytest.raises(UsageError, match="cannot be the id"):
        fcd.get_disk(session, fcd.DiskSpec("../x", spec.datastore))
    with pytest.raises(UsageError, match="instead of a machine"):
        connected(vcenter, "vm1", fcd=spec)
    with connected(vcenter, "vm1") as connection, pytest.raises(HostAccessDenied):
        # A machine's ticket opens no disk that is not the machine's.
        connection.open(fcd.get_disk(session, spec).file)
