"""Our control plane against govmomi's own simulator, as vCenter and as ESXi."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyVmomi import vim

import gotools
from vdkit.errors import (
    AlreadyExists,
    Ambiguous,
    ConnectionRefused,
    LoginFailed,
    ObjectNotFound,
    SessionExpired,
    TrustError,
    VixError,
)
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.vsphere import machines, snapshots, tasks, tracking
from vdkit.vsphere.inventory import find_machine, get_machine, list_machines
from vdkit.vsphere.model import Power
from vdkit.vsphere.session import Session

pytestmark = pytest.mark.witness("go", "govmomi")


@pytest.fixture(scope="module", params=["vcenter", "esx"])
def server(request: pytest.FixtureRequest) -> Iterator[gotools.Vcsim]:
    with gotools.vcsim(esx=request.param == "esx") as running:
        yield running


def login(server: gotools.Vcsim, **changes: object) -> Session:
    arguments: dict[str, object] = {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": Secret(server.password),
        "trust": Trust(sha1=server.sha1),
        **changes,
    }
    return Session.login(**arguments)  # type: ignore[arg-type]


@pytest.fixture
def session(server: gotools.Vcsim) -> Iterator[Session]:
    with login(server) as session:
        yield session


def one_line(error: VixError, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def test_lists_machines_with_disks(server: gotools.Vcsim, session: Session) -> None:
    found = list_machines(session)
    assert len(found) >= 2
    assert session.about.is_vcenter == (found[0].path.startswith("/DC0/vm/"))
    for vm in found:
        assert vm.path.endswith(f"/vm/{vm.name}")
        assert vm.power is Power.ON
        assert vm.disks[0].capacity > 0
        assert vm.disks[0].datastore == "LocalDS_0"
        assert get_machine(session, vm.moref) == vm


def test_finds_by_name_path_moref_and_uuid(session: Session) -> None:
    wanted = list_machines(session)[-1]
    for text in (
        wanted.name,
        wanted.path,
        f"vm/{wanted.name}",
        wanted.moref,
        f"moref={wanted.moref}",
        wanted.instance_uuid or "",
        f"uuid={wanted.bios_uuid}",
        f"name={wanted.name}",
    ):
        assert find_machine(session, text) == wanted, text


def test_unknown_machine_names_its_neighbours(server: gotools.Vcsim, session: Session) -> None:
    name = list_machines(session)[0].name
    with pytest.raises(ObjectNotFound) as caught:
        find_machine(session, name[:-1] + "x")
    one_line(caught.value, f":{server.port}", name[:-1] + "x", "near names", name)
    with pytest.raises(ObjectNotFound) as caught:
        find_machine(session, "moref=vm-99999")
    one_line(caught.value, "vm-99999", "list the machines")


def test_snapshot_made_found_and_removed(session: Session) -> None:
    vm = list_machines(session)[0]
    with snapshots.temporary_snapshot(
        session, vm, "vdkit backup", f"Backup. {snapshots.tag('run-1')}"
    ) as taken:
        left = snapshots.find_leftovers(session, vm)
        assert [(s.moref, snapshots.run_of(s)) for s in left] == [(taken.moref, "run-1")]
        assert snapshots.find_leftovers(session, vm, keep={"run-1"}) == []
    assert list(get_machine(session, vm.moref).all_snapshots()) == []


def test_leftovers_of_a_killed_run_are_removed_and_others_kept(session: Session) -> None:
    vm = list_machines(session)[0]
    mine = snapshots.create(session, vm, "vdkit one", f"x {snapshots.tag('dead')}")
    with pytest.raises(RuntimeError), snapshots.temporary_snapshot(session, vm, "vdkit two", "vdkit:b"):
        raise RuntimeError("killed")
    assert [s.moref for s in snapshots.remove_leftovers(session, vm)] == [mine.moref]
    assert list(get_machine(session, vm.moref).all_snapshots()) == []


def test_change_tracking_is_enabled(session: Session) -> None:
    vm = list_machines(session)[0]
    after = tracking.enable(session, vm, run="enable-1")
    assert after.change_tracking
    assert not list(after.all_snapshots())
    assert not tracking.disable(session, after).change_tracking


def test_power(session: Session) -> None:
    vm = list_machines(session)[1]
    assert machines.power_off(session, vm).power is Power.OFF
    assert machines.power_off(session, vm).power is Power.OFF
    assert machines.power_on(session, vm).power is Power.ON


def test_a_machine_is_made_and_deleted(session: Session) -> None:
    new = machines.NewMachine(
        "restored", "LocalDS_0", (machines.NewDisk(1 << 20), machines.NewDisk(2 << 20)), firmware="efi"
    )
    vm = machines.create(session, new)
    try:
        assert [disk.capacity for disk in vm.disks] == [1 << 20, 2 << 20]
        assert vm.firmware == "efi"
        assert vm.power is Power.OFF
        with pytest.raises(AlreadyExists) as caught:
            machines.create(session, new)
        one_line(caught.value, "restored", vm.moref)
    finally:
        machines.destroy(session, vm)
    with pytest.raises(ObjectNotFound):
        find_machine(session, "restored")


def test_an_unknown_datastore_is_named(session: Session) -> None:
    with pytest.raises(ObjectNotFound) as caught:
        machines.create(session, machines.NewMachine("x", "nowhere", (machines.NewDisk(1 << 20),)))
    one_line(caught.value, "nowhere", "LocalDS_0")


def test_an_expired_session_is_renewed(session: Session) -> None:
    session.content.sessionManager.Logout()
    assert list_machines(session)


def test_wrong_password(server: gotools.Vcsim) -> None:
    with pytest.raises(LoginFailed) as caught:
        login(server, user="somebody", password=Secret("canary-&<pass>"))
    one_line(caught.value, f"{server.host}:{server.port}", "'somebody'", "check the user name")
    assert "canary" not in str(caught.value)


def test_wrong_thumbprint(server: gotools.Vcsim) -> None:
    with pytest.raises(TrustError) as caught:
        login(server, trust=Trust(sha256="AB" * 32))
    one_line(caught.value, f":{server.port}", "AB:AB", "vdkit fingerprint")


def test_closed_port() -> None:
    with pytest.raises(ConnectionRefused) as caught:
        Session.login("127.0.0.1", 1, "root", Secret("x"), Trust(sha1="AB" * 20))
    one_line(caught.value, "127.0.0.1:1", "TCP 1")


def test_a_session_that_cannot_be_renewed_says_so(server: gotools.Vcsim) -> None:
    with login(server) as session:
        session.content.sessionManager.Logout()
        session._password = Secret("")
        with pytest.raises((SessionExpired, LoginFailed)) as caught:
            list_machines(session)
        one_line(caught.value, f":{server.port}", "log in")


def test_two_machines_of_one_name_are_ambiguous() -> None:
    """A vCenter allows it in two folders."""
    with gotools.vcsim() as running, login(running) as session:
        first = list_machines(session)[0]
        centre = session.content.rootFolder.childEntity[0]
        folder = centre.vmFolder.CreateFolder("other")
        spec = vim.vm.ConfigSpec(
            name=first.name, files=vim.vm.FileInfo(vmPathName="[LocalDS_0] other"), guestId="otherGuest"
        )
        pool = centre.hostFolder.childEntity[0].resourcePool
        tasks.run(session, "make another", lambda: folder.CreateVM_Task(spec, pool, None))
        with pytest.raises(Ambiguous) as caught:
            find_machine(session, first.name)
        one_line(caught.value, f"moref={first.moref}", first.path, f"/DC0/vm/other/{first.name}")
        assert find_machine(session, first.path) == first
        assert find_machine(session, f"other/{first.name}").path == f"/DC0/vm/other/{first.name}"
