"""Finding, making, starting and deleting machines, and tickets for their disks, on the simulated host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulated_login import logged_in, one_line, the_machine

from vdkit.errors import (
    AlreadyExists,
    Ambiguous,
    ConnectionLost,
    ControlError,
    NoPrivilege,
    ObjectNotFound,
    UsageError,
    VixError,
)
from vdkit.net.secret import Secret
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import machines, tasks
from vdkit.vsphere.inventory import find_machine, get_machine, list_machines
from vdkit.vsphere.machines import NewDisk, NewMachine
from vdkit.vsphere.model import Power
from vdkit.vsphere.session import Session
from vdkit.vsphere.tickets import disk_ticket, read_ticket

MIB = 1 << 20


@pytest.fixture(params=["esx", "vcenter"])
def host(request: pytest.FixtureRequest, simulated_host_factory: HostFactory) -> SimulatedHost:
    return simulated_host_factory(personality=request.param, machines=3)


@pytest.fixture
def session(host: SimulatedHost) -> Iterator[Session]:
    with logged_in(host) as session:
        yield session
    assert host.internal_errors == []


def test_all_that_is_known_of_a_machine(host: SimulatedHost, session: Session) -> None:
    vm = find_machine(session, "vm2")
    model = host.machine("vm2")
    assert vm.path.endswith("/vm/vm2")
    assert vm.power is Power.OFF
    assert vm.moref == model.moref
    disk = vm.disks[0]
    state = model.disk(2000).state()
    assert (disk.key, disk.file, disk.capacity, disk.uuid) == (2000, state.file, 64 * MIB, state.uuid)
    assert disk.datastore == "datastore1"
    assert disk.label == "Hard disk 1"
    assert vm.vmx == model.vmx_path
    assert get_machine(session, vm.moref) == vm


def test_a_large_inventory_comes_in_pages(session: Session, host: SimulatedHost) -> None:
    host.scenario.page_objects = 2
    assert [vm.name for vm in list_machines(session)] == ["vm1", "vm2", "vm3"]


def test_every_way_to_name_a_machine(session: Session) -> None:
    vm = the_machine(session, "vm3")
    for text in (
        vm.moref,
        f"moref={vm.moref}",
        vm.path,
        "vm/vm3",
        vm.instance_uuid or "",
        (vm.instance_uuid or "").upper(),
        f"uuid={vm.bios_uuid}",
        "name=vm3",
    ):
        assert find_machine(session, text) == vm, text


def test_unknown_machines(session: Session) -> None:
    for text, part in (
        ("vm4", "near names: vm"),
        ("moref=4711", "4711"),
        ("zzzzz", "3 machines"),
        ("", "''"),
    ):
        with pytest.raises(ObjectNotFound) as caught:
            find_machine(session, text)
        one_line(caught.value, session.where, part)
    with pytest.raises(UsageError):
        find_machine(session, "moref=")


def test_an_ambiguous_name_lists_the_ids(
    host: SimulatedHost, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = host.machine("vm1"), host.machine("vm2")
    # Two folders of a vCenter may hold machines of one name; the model's one folder does not, so go past it.
    monkeypatch.setattr(host.inventory, "check_name", lambda *_: None)
    second.rename("vm1")
    with pytest.raises(Ambiguous) as caught:
        find_machine(session, "vm1")
    one_line(caught.value, f"moref={first.moref}", f"moref={second.moref}", "inventory path")
    assert find_machine(session, f"moref={second.moref}").moref == second.moref


def test_a_machine_without_name_and_an_empty_host(simulated_host_factory: HostFactory) -> None:
    with logged_in(simulated_host_factory(machines=0)) as session:
        assert list_machines(session) == []
        with pytest.raises(ObjectNotFound) as caught:
            find_machine(session, "web")
        one_line(caught.value, "sees no machine")


def test_a_machine_is_made_as_asked(session: Session) -> None:
    progress: list[int] = []
    new = NewMachine(
        "restored",
        "datastore1",
        tuple(NewDisk(size * MIB, thin=size % 2 == 0) for size in range(1, 18)),
        firmware="efi",
        adapter="pvscsi",
        cpus=2,
        memory_mib=2048,
        guest_id="debian12_64Guest",
    )
    few = NewMachine(
        **{name: getattr(new, name) for name in new.__slots__ if name != "disks"}, disks=new.disks[:3]
    )
    vm = machines.create(session, few, progress=progress.append)
    assert [disk.capacity for disk in vm.disks] == [MIB, 2 * MIB, 3 * MIB]
    assert (vm.cpus, vm.memory_mib, vm.guest_id, vm.firmware) == (2, 2048, "debian12_64Guest", "efi")
    assert vm.power is Power.OFF
    assert progress[-1] == 100
    with pytest.raises(AlreadyExists) as caught:
        machines.create(session, few)
    one_line(caught.value, "restored", vm.moref, "another name")
    changed = machines.reconfigure(session, vm, cpus=1, memory_mib=512)
    assert (changed.cpus, changed.memory_mib) == (1, 512)
    assert machines.power_on(session, vm).power is Power.ON
    with pytest.raises(ControlError) as running:
        machines.destroy(session, vm)
    one_line(running.value, "restored", "powered")
    assert machines.power_off(session, vm).power is Power.OFF
    machines.destroy(session, vm)
    with pytest.raises(ObjectNotFound):
        find_machine(session, "restored")


@pytest.mark.parametrize(
    ("new", "kind", "part"),
    [
        (NewMachine("x", "nowhere", (NewDisk(MIB),)), ObjectNotFound, "known are: datastore1"),
        (NewMachine("", "datastore1", ()), UsageError, "characters"),
        (NewMachine("x" * 81, "datastore1", ()), UsageError, "characters"),
        (NewMachine("x", "datastore1", (NewDisk(1000),)), UsageError, "multiple of 512"),
        (NewMachine("x", "datastore1", (NewDisk(MIB),) * 61), UsageError, "60 disks"),
        (NewMachine("x", "datastore1", (), adapter="ide"), UsageError, "lsilogic"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_made(session: Session, new: NewMachine, kind: type[VixError], part: str) -> None:
    with pytest.raises(kind) as caught:
        machines.create(session, new)
    one_line(caught.value, part)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionLost("the answer got lost")])
def test_a_machine_that_may_have_been_made_is_told_of(
    session: Session, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that ends here does not know whether there is something to delete."""
    new, real = NewMachine("half", "datastore1", (NewDisk(MIB),)), tasks.wait

    def wait(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr(tasks, "wait", wait)
    with pytest.raises((KeyboardInterrupt, ConnectionLost)) as caught:
        machines.create(session, new)
    assert "'half' may have been made on [datastore1]" in caught.value.__notes__[0]
    assert the_machine(session, "half").name == "half"
    with pytest.raises(AlreadyExists) as refused:
        machines.create(session, new)
    assert not getattr(refused.value, "__notes__", [])


def test_tickets(host: SimulatedHost, session: Session) -> None:
    vm = the_machine(session)
    for ticket in (
        read_ticket(session, vm),
        disk_ticket(session, vm, 2000, writable=False),
        disk_ticket(session, vm, 2000, writable=True),
    ):
        assert ticket.port == host.nfc_port
        assert ticket.host == host.host
        assert ticket.thumbprint == host.thumbprint_sha1 or ticket.certificate
        assert ticket.service in ("nfc", "vpxa-nfc")
        assert isinstance(ticket.ticket, Secret)
        assert ticket.ticket.reveal() not in repr(ticket)
    assert read_ticket(session, vm).ticket != read_ticket(session, vm).ticket


def test_a_ticket_needs_its_privilege(host: SimulatedHost, session: Session) -> None:
    vm = the_machine(session)
    for privilege, ask in (
        ("VirtualMachine.Provisioning.GetVmFiles", lambda: read_ticket(session, vm)),
        (
            "VirtualMachine.Provisioning.DiskRandomAccess",
            lambda: disk_ticket(session, vm, 2000, writable=True),
        ),
    ):
        host.scenario.missing_privileges = frozenset({privilege})
        with pytest.raises(NoPrivilege) as caught:
            ask()
        one_line(caught.value, privilege, vm.moref)


def test_tickets_after_the_session_expired(host: SimulatedHost, session: Session) -> None:
    vm = the_machine(session)
    host.expire_sessions()
    assert read_ticket(session, vm).ticket
