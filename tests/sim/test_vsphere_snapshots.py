"""Snapshots on the simulated host: removed whatever happens, found again after a kill, waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from simulated_login import logged_in, one_line, the_machine

from vdkit.errors import (
    ConnectionLost,
    ControlError,
    NoPrivilege,
    ObjectBusy,
    SnapshotFailed,
    TaskFailed,
    UsageError,
)
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import snapshots, tasks
from vdkit.vsphere.consolidation import is_outstanding, settle
from vdkit.vsphere.session import Session

NAME, DESCRIPTION = "vdkit backup", "Made by a test. vdkit:run-7"


@pytest.fixture
def session(simulated_host: SimulatedHost) -> Iterator[Session]:
    with logged_in(simulated_host) as session:
        yield session


def names(session: Session) -> list[str]:
    return [s.name for s in the_machine(session).all_snapshots()]


def test_it_is_there_in_the_block_and_gone_after(session: Session) -> None:
    vm = the_machine(session)
    with snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken:
        assert names(session) == [NAME]
        inside = the_machine(session)
        assert inside.disks[0].parents == (vm.disks[0].file,)
        assert taken.run == "run-7"
    after = the_machine(session)
    assert after.disks[0].file == vm.disks[0].file
    assert after.disks[0].parents == ()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_is_removed_when_the_block_fails(session: Session, error: type[BaseException]) -> None:
    with (
        pytest.raises(error),
        snapshots.temporary_snapshot(session, the_machine(session), NAME, DESCRIPTION),
    ):
        raise error
    assert names(session) == []


def test_an_interruption_while_it_is_made_leaves_none(
    session: Session, simulated_host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_host.scenario.task_seconds = {"CreateSnapshot_Task": 0.2}
    real, interrupted = tasks.wait, []

    def wait(session: Session, what: str, *args: object, **kwargs: object) -> object:
        if "make snapshot" in what and not interrupted:
            interrupted.append(what)
            raise KeyboardInterrupt
        return real(session, what, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "wait", wait)
    with (
        pytest.raises(KeyboardInterrupt),
        snapshots.temporary_snapshot(session, the_machine(session), NAME, DESCRIPTION),
    ):
        pass
    assert interrupted
    assert names(session) == []


def test_an_interruption_just_before_it_is_removed_leaves_none(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        snapshots.temporary_snapshot(session, the_machine(session), NAME, DESCRIPTION),
    ):
        monkeypatch.setattr(snapshots, "remove", remove)
    settle(session, the_machine(session))
    assert names(session) == []


def test_a_connection_that_breaks_while_it_is_made_leaves_none(
    session: Session, simulated_host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tasks.run

    def run(session: Session, what: str, *args: object, **kwargs: object) -> object:
        result = real(session, what, *args, **kwargs)  # type: ignore[arg-type]
        if "make snapshot" in what:
            raise ConnectionLost("the answer got lost")
        return result

    monkeypatch.setattr(tasks, "run", run)
    with (
        pytest.raises(ConnectionLost),
        snapshots.temporary_snapshot(session, the_machine(session), NAME, DESCRIPTION),
    ):
        pass
    assert names(session) == []


def test_what_a_killed_run_left_is_found_and_other_snapshots_are_kept(
    session: Session, simulated_host: SimulatedHost
) -> None:
    vm = the_machine(session)
    foreign = simulated_host.machine("vm1").create_snapshot("vdkit looks like ours", "but has no tag")
    first = snapshots.create(session, vm, "vdkit one", "vdkit:dead.1")
    second = snapshots.create(session, vm, "vdkit two", "text vdkit:dead.2 text")
    found = snapshots.find_leftovers(session, vm)
    assert [(s.moref, snapshots.run_of(s)) for s in found] == [
        (first.moref, "dead.1"),
        (second.moref, "dead.2"),
    ]
    assert [s.moref for s in snapshots.find_leftovers(session, vm, keep=["dead.1"])] == [second.moref]
    assert len(snapshots.remove_leftovers(session, vm)) == 2
    assert [s.moref for s in the_machine(session).all_snapshots()] == [foreign.moref]


@pytest.mark.parametrize(
    ("name", "description"),
    [("other", "vdkit:x"), ("vdkit", "no tag"), ("vdkit", "xvdkit:x"), ("vdkit" + "x" * 80, "vdkit:x")],
)
def test_a_snapshot_that_could_not_be_found_again_is_not_made(
    session: Session, name: str, description: str
) -> None:
    with pytest.raises(UsageError, match="found again"):
        snapshots.create(session, the_machine(session), name, description)
    with pytest.raises(UsageError):
        snapshots.tag("two words")


def test_quiescing_falls_back_only_when_it_may(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory()
    host.power_on_all()
    host.scenario.quiesce_fails = True
    with logged_in(host) as session:
        vm = the_machine(session)
        with pytest.raises(SnapshotFailed) as caught:
            snapshots.create(session, vm, NAME, DESCRIPTION, quiesce=True)
        one_line(caught.value, NAME, vm.moref)
        taken = snapshots.create(session, vm, NAME, DESCRIPTION, quiesce=True, allow_crash_consistent=True)
        assert not taken.quiesced
        assert taken.fell_back
        host.scenario.quiesce_fails = False
        snapshots.remove(session, vm, taken.moref)
        assert snapshots.create(session, vm, NAME, DESCRIPTION, quiesce=True).quiesced


def test_row_14_removal_waits_for_a_slow_consolidation(
    session: Session, simulated_host: SimulatedHost
) -> None:
    simulated_host.scenario.consolidation_seconds = 0.3
    vm = the_machine(session)
    with snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION):
        pass
    # At once, without a pause: the next snapshot must stand on merged disks.
    with snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION):
        assert the_machine(session).disks[0].parents == (vm.disks[0].file,)
    assert the_machine(session).disks[0].file == vm.disks[0].file


def test_row_14_a_snapshot_waits_for_somebody_elses_consolidation(
    session: Session, simulated_host: SimulatedHost
) -> None:
    vm = the_machine(session)
    other = snapshots.create(session, vm, "vdkit other", "vdkit:other")
    simulated_host.scenario.consolidation_seconds = 0.3
    machine = simulated_host.machine("vm1")
    removal = threading.Thread(target=lambda: snapshots.remove(session, vm, other.moref))
    removal.start()
    try:
        while machine.power_state and [s.moref for s in machine.snapshots()]:
            pass
        with snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION):
            assert the_machine(session).disks[0].parents == (vm.disks[0].file,)
    finally:
        removal.join()


def test_row_14_consolidation_that_is_left_undone_is_done(
    session: Session, simulated_host: SimulatedHost
) -> None:
    vm = the_machine(session)
    simulated_host.scenario.consolidation_fails = True
    with (
        pytest.raises(ControlError) as caught,
        snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION),
    ):
        pass
    one_line(caught.value, vm.name)
    assert is_outstanding(session, vm)
    with pytest.raises(ControlError):
        snapshots.create(session, vm, NAME, DESCRIPTION)
    simulated_host.scenario.consolidation_fails = False
    with snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION):
        assert not is_outstanding(session, vm)
    assert the_machine(session).disks[0].file == vm.disks[0].file
    settle(session, vm)


def test_a_machine_that_stays_busy_is_reported_with_its_name(
    session: Session, simulated_host: SimulatedHost
) -> None:
    vm = the_machine(session)
    taken = snapshots.create(session, vm, NAME, DESCRIPTION)
    simulated_host.scenario.call_errors = {"RemoveSnapshot_Task": "vim.fault.ConcurrentAccess"}
    with pytest.raises(ObjectBusy) as caught:
        snapshots.remove(session, vm, taken.moref, deadline=0.5)
    one_line(caught.value, taken.moref, vm.name, "try again")


def test_what_could_not_be_removed_is_named(session: Session, simulated_host: SimulatedHost) -> None:
    vm = the_machine(session)
    privilege = "VirtualMachine.State.RemoveSnapshot"
    simulated_host.scenario.missing_privileges = frozenset({privilege})
    with (
        pytest.raises(SnapshotFailed) as failed,
        snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken,
    ):
        pass
    one_line(failed.value, NAME, taken.moref, privilege, "next backup")
    assert isinstance(failed.value.__cause__, NoPrivilege)
    with (
        pytest.raises(RuntimeError) as caught,
        snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION),
    ):
        raise RuntimeError("the reason")
    assert any(privilege in note for note in caught.value.__notes__)


def test_a_removal_that_the_host_forgets_is_not_taken_for_done(
    session: Session, simulated_host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The management service restarts and knows no task any more; the snapshot is still there."""
    vm = the_machine(session)
    taken = snapshots.create(session, vm, NAME, DESCRIPTION)
    simulated_host.scenario.task_errors = {"RemoveSnapshot_Task": "vmodl.fault.SystemError"}
    world, real = simulated_host.world, tasks.wait
    assert world is not None

    def wait(session: Session, what: str, moref: str, **options: object) -> object:
        if simulated_host.scenario.task_errors:
            while (task := world.tasks.find(moref)) is not None and not task.done:
                pass
            simulated_host.scenario.task_errors = {}
            world.tasks.forget()
        return real(session, what, moref, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "wait", wait)
    snapshots.remove(session, vm, taken.moref)
    assert names(session) == []


def test_a_removal_that_fails_for_once_is_asked_for_again(
    session: Session, simulated_host: SimulatedHost
) -> None:
    """A snapshot that stays grows until the next backup, which may be a day."""
    vm, seen = the_machine(session), []
    taken = snapshots.create(session, vm, NAME, DESCRIPTION)
    scenario = simulated_host.scenario
    scenario.task_errors = {"RemoveSnapshot_Task": "vmodl.fault.SystemError"}

    def sleep(seconds: float) -> None:
        seen.append((seconds, [one.name for one in simulated_host.machine("vm1").snapshots()]))
        if seconds >= snapshots.BUSY_FIRST:
            scenario.task_errors = {}

    session._sleep = sleep
    snapshots.remove(session, vm, taken.moref)
    assert (snapshots.BUSY_FIRST, [NAME]) in seen
    assert names(session) == []
    taken = snapshots.create(session, vm, NAME, DESCRIPTION)
    session._sleep = lambda seconds: None
    scenario.task_errors = {"RemoveSnapshot_Task": "vmodl.fault.SystemError"}
    with pytest.raises(ControlError, match="SystemError"):
        snapshots.remove(session, vm, taken.moref)


def test_a_task_that_the_host_forgets_is_no_missing_object(session: Session) -> None:
    with pytest.raises(ConnectionLost, match="restarted"):
        tasks.wait(session, "make a thing", "task-4711")


def test_removing_twice_is_fine(session: Session) -> None:
    vm = the_machine(session)
    taken = snapshots.create(session, vm, NAME, DESCRIPTION)
    snapshots.remove(session, vm, taken.moref)
    snapshots.remove(session, vm, taken.moref)


def test_a_task_that_fails_says_what_and_why(session: Session, simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.task_errors = {"CreateSnapshot_Task": "vim.fault.SnapshotFault"}
    vm = the_machine(session)
    with pytest.raises(SnapshotFailed) as caught:
        snapshots.create(session, vm, NAME, DESCRIPTION)
    one_line(caught.value, NAME, vm.moref)


def test_a_task_that_takes_too_long(session: Session, simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.task_seconds = {"CreateSnapshot_Task": 0.5}
    vm = the_machine(session)
    with pytest.raises(TaskFailed) as caught:
        snapshots.create(session, vm, NAME, DESCRIPTION, deadline=0.1)
    one_line(caught.value, "has not ended", vm.moref, "still runs")
