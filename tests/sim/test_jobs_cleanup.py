"""What crashed runs left: found, told apart from what is in use or somebody else's, cleaned, counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from job_helpers import Listener, new_repository, session_of, snapshots_left

from clitools import Vdkit
from vdkit.backup import Repository, VmIdentity, begin_point
from vdkit.block.local import FolderStore
from vdkit.errors import ControlError, ObjectBusy, RepositoryLocked, UsageError
from vdkit.jobs.backup import access_identity
from vdkit.jobs.cleanup import Choice, Kind, State, clean_up
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import access, inventory, snapshots
from vdkit.vsphere.model import Snapshot, VirtualMachine
from vdkit.vsphere.session import Session

HOUR = 3600.0
pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def center(simulated_host_factory: HostFactory) -> SimulatedHost:
    return simulated_host_factory(personality="vcenter", machines=2)


@pytest.fixture
def session(center: SimulatedHost) -> Iterator[Session]:
    with session_of(center) as session:
        yield session


def leave_snapshot(session: Session, run: str, *, vm: str = "vm1") -> str:
    machine = inventory.find_machine(session, vm)
    return snapshots.create(session, machine, f"vdkit backup {run}", f"text {snapshots.tag(run)}").moref


def grow_old(host: SimulatedHost, hours: float, *, vm: str = "vm1") -> None:
    for snapshot in host.machine(vm).snapshots():
        snapshot.created -= timedelta(hours=hours)


def holders(host: SimulatedHost, vm: str = "vm1") -> list[str]:
    assert host.world is not None
    return host.world.disabled.sources(("VirtualMachine", host.machine(vm).moref), "RelocateVM_Task")


def test_nothing_is_found_where_nothing_was_left(session: Session, center: SimulatedHost) -> None:
    center.machine("vm1").create_snapshot("vdkit looks like ours", "but nobody tagged it")
    result = clean_up(session, Listener(), remove=True)
    assert (result.items, result.cleaned, result.remaining, result.kept) == ((), 0, 0, 0)
    assert snapshots_left(center) == ["vdkit looks like ours"]


def test_age_decides_for_runs_that_nobody_can_be_asked_about(session: Session, center: SimulatedHost) -> None:
    old = leave_snapshot(session, "dead.1")
    grow_old(center, 30)
    young = leave_snapshot(session, "alive.1")
    listed = clean_up(session, Listener())
    assert {item.run: item.state for item in listed.items} == {
        "dead.1": State.REMAINS,
        "alive.1": State.KEPT,
    }
    assert (listed.remaining, listed.kept) == (1, 1)
    assert len(snapshots_left(center)) == 2, "listing removes nothing"
    done = clean_up(session, Listener(), remove=True)
    assert (done.cleaned, done.remaining, done.kept) == (1, 0, 1)
    assert [snapshot.moref for snapshot in center.machine("vm1").snapshots()] == [young]
    assert old != young
    younger = clean_up(session, Listener(), choice=Choice(older_than=0.0), remove=True)
    assert younger.cleaned == 1
    assert snapshots_left(center) == []


def test_ages_are_told_by_the_clock_of_the_host(session: Session, center: SimulatedHost) -> None:
    """Ours may be wrong by hours: a snapshot of now is young whatever we believe."""
    leave_snapshot(session, "alive.1")
    (item,) = clean_up(session, Listener()).items
    assert item.age is not None
    assert 0 <= item.age < 60
    assert item.state is State.KEPT


def test_a_named_run_goes_and_no_other(session: Session, center: SimulatedHost) -> None:
    leave_snapshot(session, "r.1")
    leave_snapshot(session, "r.2")
    result = clean_up(session, Listener(), choice=Choice(runs=frozenset({"r.1"})), remove=True)
    assert {item.run: item.state for item in result.items} == {"r.1": State.CLEANED, "r.2": State.KEPT}
    assert snapshots_left(center) == ["vdkit backup r.2"]


def test_only_the_machines_that_were_named(session: Session, center: SimulatedHost) -> None:
    for vm in ("vm1", "vm2"):
        leave_snapshot(session, "dead.1", vm=vm)
        grow_old(center, 30, vm=vm)
    assert clean_up(session, Listener(), machines=["vm2"], remove=True).cleaned == 1
    assert snapshots_left(center, "vm1") == ["vdkit backup dead.1"]
    assert snapshots_left(center, "vm2") == []


def test_the_lock_of_a_repository_tells_what_is_in_use(
    session: Session, center: SimulatedHost, tmp_path: Path
) -> None:
    repository = new_repository(tmp_path / "repo")
    vm = inventory.find_machine(session, "vm1")
    assert vm.instance_uuid is not None
    choice = Choice(repositories=(repository,))
    leave_snapshot(session, f"{repository.id}.20260101T000000Z")
    access.prepare_for_access(session, vm, access_identity(repository.id))
    grow_old(center, 100)
    with begin_point(repository, VmIdentity(vm.name, vm.instance_uuid.lower())):
        running = clean_up(session, Listener(), choice=choice, remove=True)
        assert [item.kind for item in running.items] == [Kind.SNAPSHOT, Kind.ACCESS]
        assert {item.state for item in running.items} == {State.KEPT}
        assert holders(center) == [access_identity(repository.id)]
    done = clean_up(session, Listener(), choice=choice, remove=True)
    assert [item.state for item in done.items] == [State.CLEANED, State.CLEANED]
    assert (snapshots_left(center), holders(center)) == ([], [])


def test_relocation_that_somebody_else_disabled_stays_so(
    session: Session, center: SimulatedHost, tmp_path: Path
) -> None:
    repository = new_repository(tmp_path / "repo")
    vm = inventory.find_machine(session, "vm1")
    access.prepare_for_access(session, vm, "another product")
    unknown = clean_up(session, Listener(), remove=True)
    assert [(item.kind, item.state) for item in unknown.items] == [(Kind.ACCESS, State.KEPT)]
    assert "vCenter does not tell by whom" in unknown.items[0].reason
    access.prepare_for_access(session, vm, access_identity(repository.id))
    choice = Choice(repositories=(repository,))
    both = clean_up(session, Listener(), choice=choice, remove=True)
    assert [(item.state, item.reason) for item in both.items] == [
        (State.KEPT, "somebody else keeps it disabled")
    ]
    assert holders(center) == ["another product"]
    named = clean_up(session, Listener(), choice=Choice(identities=("another product",)), remove=True)
    assert named.cleaned == 1
    assert holders(center) == []


def test_disks_that_wait_for_consolidation_are_merged(session: Session, center: SimulatedHost) -> None:
    machine = center.machine("vm1")
    machine.create_snapshot("s")
    machine.remove_all_snapshots(consolidate=False)
    assert machine.consolidation_needed
    (item,) = clean_up(session, Listener()).items
    assert (item.kind, item.state) == (Kind.CONSOLIDATION, State.REMAINS)
    assert clean_up(session, Listener(), remove=True).cleaned == 1
    assert not machine.consolidation_needed


def test_what_cannot_be_cleaned_is_counted_and_hinders_nothing(
    session: Session, center: SimulatedHost
) -> None:
    for vm in ("vm1", "vm2"):
        leave_snapshot(session, "dead.1", vm=vm)
        grow_old(center, 30, vm=vm)
    center.machine("vm2").disk(2000)  # it has a disk, and its snapshot can go
    center.scenario.missing_privileges = frozenset({"VirtualMachine.State.RemoveSnapshot"})
    listener = Listener()
    result = clean_up(session, listener, remove=True)
    assert (result.cleaned, result.remaining) == (0, 2)
    assert {item.state for item in result.items} == {State.FAILED}
    assert all("RemoveSnapshot" in item.reason for item in result.items)
    assert len(listener.warnings) == 2


# -- the command ---------------------------------------------------------------------------------------


def test_a_named_run_ends_no_lock_of_a_run_that_may_go_on(session: Session, center: SimulatedHost) -> None:
    """Both write into one repository, hence disable relocation under one name."""
    vm = inventory.find_machine(session, "vm1")
    leave_snapshot(session, "r.1")
    leave_snapshot(session, "r.2")
    access.prepare_for_access(session, vm, access_identity("r"))
    choice = Choice(runs=frozenset({"r.1"}))
    result = clean_up(session, Listener(), choice=choice, remove=True)
    assert {item.kind: item.state for item in result.items if item.run is None} == {Kind.ACCESS: State.KEPT}
    assert (snapshots_left(center), holders(center)) == (["vdkit backup r.2"], [access_identity("r")])
    clean_up(session, Listener(), choice=Choice(runs=frozenset({"r.2"})), remove=True)
    assert (snapshots_left(center), holders(center)) == ([], [])


def test_nothing_is_consolidated_under_a_snapshot_that_may_be_in_use(
    session: Session, center: SimulatedHost
) -> None:
    machine = center.machine("vm1")
    machine.remove_snapshot(machine.create_snapshot("old"), consolidate=False)
    assert machine.consolidation_needed
    machine.create_snapshot("vdkit backup", snapshots.tag("other.1"))
    result = clean_up(session, Listener(), remove=True)
    assert {item.kind: item.state for item in result.items} == {
        Kind.SNAPSHOT: State.KEPT,
        Kind.CONSOLIDATION: State.KEPT,
    }
    assert machine.consolidation_needed
    result = clean_up(session, Listener(), choice=Choice(older_than=0.0), remove=True)
    assert (result.cleaned, result.remaining, machine.consolidation_needed) == (1, 0, False)


def _command(host: SimulatedHost, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vdkit", *arguments],
        env={**os.environ, **host.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def vdkit(monkeypatch: pytest.MonkeyPatch, center: SimulatedHost) -> Vdkit:
    for name, value in center.environment().items():
        monkeypatch.setenv(name, value)
    return Vdkit(monkeypatch)


def test_a_killed_backup_is_cleaned_up_by_the_command(
    center: SimulatedHost, vdkit: Vdkit, tmp_path: Path
) -> None:
    """Killed with SIGKILL between prepare and end: its lock and its snapshot are found, and go."""
    center.power_on_all()
    folder = tmp_path / "repo"
    Repository.create(FolderStore(_made(folder)))
    center.scenario.ticket_seconds = 60
    center.scenario.task_seconds = {"RemoveSnapshot_Task": 60}
    process = _command(center, "backup", "vm1", "--to", str(folder))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (holders(center) and snapshots_left(center)):
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert len(snapshots_left(center)) == 1
    assert len(holders(center)) == 1
    _end_tasks(center)
    listed = vdkit("cleanup", "--repository", folder)
    assert listed.code == 1, listed.err
    assert "0 cleaned, 2 remain" in listed.text
    done = vdkit("cleanup", "vm1", "--repository", folder, "--yes", "--json")
    assert done.code == 0, done.err
    summary = done.last
    assert (summary["cleaned"], summary["remaining"]) == (2, 0)
    assert {item["kind"] for item in summary["leftovers"]} == {"snapshot", "access"}
    assert (snapshots_left(center), holders(center)) == ([], [])
    assert vdkit("cleanup").code == 0


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _end_tasks(host: SimulatedHost) -> None:
    """The killed run may have asked for the removal already: let that take no time any more."""
    host.scenario.task_seconds = {}
    with session_of(host) as session:
        vm = inventory.find_machine(session, "vm1")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                access.prepare_for_access(session, vm, "a look")
                access.end_access(session, vm, "a look")
                return
            except ObjectBusy:
                time.sleep(0.01)


def test_the_command_without_a_repository_keeps_what_may_be_in_use(
    center: SimulatedHost, vdkit: Vdkit
) -> None:
    with session_of(center) as session:
        leave_snapshot(session, "dead.1")
    kept = vdkit("cleanup", "--yes")
    assert (kept.code, snapshots_left(center)) == (0, ["vdkit backup dead.1"])
    assert "0 cleaned, 0 remain, 1 kept" in kept.text
    cleaned = vdkit("cleanup", "--yes", "--older-than", "0s")
    assert (cleaned.code, snapshots_left(center)) == (0, [])


@pytest.mark.parametrize("text", ["yesterday", "1w", "-1h", ""])
def test_an_age_that_is_none_is_refused(vdkit: Vdkit, text: str) -> None:
    vdkit("cleanup", f"--older-than={text}").failed(UsageError.exit_code, "--older-than")


def test_quiescing_options_that_contradict_each_other_are_refused(vdkit: Vdkit, tmp_path: Path) -> None:
    ran = vdkit("backup", "vm1", "--to", tmp_path / "r", "--no-quiesce", "--quiesce-or-crash-consistent")
    ran.failed(UsageError.exit_code, "--no-quiesce")
    assert not (tmp_path / "r").exists()


def test_quiesce_or_crash_consistent_is_one_option(
    center: SimulatedHost, vdkit: Vdkit, tmp_path: Path
) -> None:
    center.power_on_all()
    center.scenario.quiesce_fails = True
    ran = vdkit("backup", "vm1", "--to", tmp_path / "r", "--quiesce-or-crash-consistent", "--json")
    assert ran.code == 1, ran.err  # a warning
    assert ran.last["point"]["consistency"] == "crash"
    strict = vdkit("backup", "vm1", "--to", tmp_path / "r", "--quiesce")
    strict.failed(9, "quiesc")


def test_the_clock_of_a_leftover_is_utc(session: Session) -> None:
    leave_snapshot(session, "dead.1")
    vm = inventory.find_machine(session, "vm1")
    (snapshot,) = snapshots.find_leftovers(session, vm)
    assert snapshot.created is not None
    assert abs((datetime.now(UTC) - snapshot.created).total_seconds()) < HOUR


def test_a_machine_that_cannot_be_looked_at_does_not_hide_the_others(
    session: Session, center: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for vm in ("vm1", "vm2"):
        leave_snapshot(session, "dead.1", vm=vm)
        grow_old(center, 30, vm=vm)
    real = snapshots.find_leftovers

    def find(session: Session, vm: VirtualMachine) -> list[Snapshot]:
        if vm.name == "vm1":
            raise ControlError("vm1: the host does not tell")
        return real(session, vm)

    monkeypatch.setattr(snapshots, "find_leftovers", find)
    result = clean_up(session, Listener(), remove=True)
    assert [(item.machine, item.state) for item in result.items] == [
        ("vm1", State.FAILED),
        ("vm2", State.CLEANED),
    ]
    assert (result.cleaned, result.remaining) == (1, 1)


def test_looking_does_not_hold_a_lock_that_a_backup_needs(
    session: Session, center: SimulatedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = new_repository(tmp_path / "repo")
    vm = inventory.find_machine(session, "vm1")
    identity = VmIdentity(vm.name, (vm.instance_uuid or "").lower())
    begin_point(repository, identity).abort()
    leave_snapshot(session, f"{repository.id}.1")
    real = snapshots.find_leftovers
    begun: list[bool] = []

    def find(session: Session, vm: VirtualMachine) -> list[Snapshot]:
        try:
            begin_point(repository, identity).abort()
            begun.append(True)
        except RepositoryLocked:
            begun.append(False)
        return real(session, vm)

    monkeypatch.setattr(snapshots, "find_leftovers", find)
    choice = Choice(repositories=(repository,))
    assert clean_up(session, Listener(), choice=choice).remaining == 1
    assert clean_up(session, Listener(), choice=choice, remove=True).cleaned == 1
    # Only whoever removes keeps a backup from beginning meanwhile.
    assert begun == [True, False]
