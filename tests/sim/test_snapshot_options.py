"""How a snapshot is made: a time-out for quiescing, never with memory, not one too many; merges told of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulated_login import logged_in, one_line, the_machine

from vdkit.block.workers import CancelToken
from vdkit.errors import Cancelled, SnapshotFailed, UsageError
from vdkit.sim.host import SimulatedHost
from vdkit.sim.scenario import Scenario
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import snapshots, tasks
from vdkit.vsphere.consolidation import Pace, settle
from vdkit.vsphere.session import Session

NAME, DESCRIPTION = "vdkit backup", "Made by a test. vdkit:run-7"
pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def session(simulated_host: SimulatedHost) -> Iterator[Session]:
    with logged_in(simulated_host) as session:
        yield session


def methods_called(host: SimulatedHost) -> list[str]:
    """The methods that started tasks, oldest first."""
    assert host.world is not None
    return [host.world.tasks.find(ref._moId).started_by for ref in host.world.tasks.recent()]  # type: ignore[union-attr]


def test_a_quiesce_time_out_is_passed_on_in_minutes(
    session: Session, simulated_host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_host.power_on_all()
    asked: list[int] = []
    from vdkit.sim.soap.vm import VirtualMachine

    real = VirtualMachine.create_snapshot_ex

    def create(self: VirtualMachine, call: object) -> object:
        asked.append(call.quiesceSpec.timeout)  # type: ignore[attr-defined]
        assert call.memory is False  # type: ignore[attr-defined]
        return real(self, call)  # type: ignore[arg-type]

    monkeypatch.setattr(VirtualMachine, "create_snapshot_ex", create)
    vm = the_machine(session)
    taken = snapshots.create(session, vm, NAME, DESCRIPTION, quiesce=True, quiesce_timeout=600)
    assert taken.quiesced
    assert asked == [10]
    (made,) = simulated_host.machine("vm1").snapshots()
    assert (made.quiesced, made.memory) == (True, False)


def test_an_older_server_quiesces_without_the_time_out(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory(scenario=Scenario(api_version="6.0"))
    host.power_on_all()
    with logged_in(host) as session:
        vm = the_machine(session)
        taken = snapshots.create(session, vm, NAME, DESCRIPTION, quiesce=True, quiesce_timeout=300)
    assert taken.quiesced
    assert methods_called(host) == ["CreateSnapshot_Task"]


def test_a_guest_that_cannot_falls_back_with_a_time_out_too(
    session: Session, simulated_host: SimulatedHost
) -> None:
    simulated_host.power_on_all()
    simulated_host.scenario.quiesce_fails = True
    vm = the_machine(session)
    taken = snapshots.create(
        session, vm, NAME, DESCRIPTION, quiesce=True, quiesce_timeout=300, allow_crash_consistent=True
    )
    assert not taken.quiesced
    assert taken.fell_back
    assert "quiescing" in taken.fell_back
    assert methods_called(simulated_host) == ["CreateSnapshotEx_Task", "CreateSnapshot_Task"]


@pytest.mark.parametrize("seconds", [0.0, 299.0, 14_401.0])
def test_a_time_out_that_the_api_does_not_take_is_refused(session: Session, seconds: float) -> None:
    with pytest.raises(UsageError, match="300 to 14400"):
        snapshots.create(
            session, the_machine(session), NAME, DESCRIPTION, quiesce=True, quiesce_timeout=seconds
        )


def test_one_snapshot_too_many_is_refused_with_the_names(
    session: Session, simulated_host: SimulatedHost
) -> None:
    machine = simulated_host.machine("vm1")
    for number in range(snapshots.MAX_SNAPSHOTS):
        machine.create_snapshot(f"nightly {number}")
    vm = the_machine(session)
    with pytest.raises(SnapshotFailed) as caught:
        snapshots.create(session, vm, NAME, DESCRIPTION)
    one_line(caught.value, "32 snapshots in a row", "'nightly 0'", "'nightly 3'")
    assert "CreateSnapshot_Task" not in methods_called(simulated_host)
    # Many beside each other are no chain.
    for snapshot in [one for one in machine.snapshots() if one.depth == 4]:
        machine.revert_to_snapshot(snapshot)
    assert snapshots.create(session, vm, NAME, DESCRIPTION).moref
    assert [one.name for one in snapshots.of_others(session, vm)][:2] == ["nightly 0", "nightly 1"]
    assert len(snapshots.of_others(session, vm)) == snapshots.MAX_SNAPSHOTS


def test_a_merge_of_somebody_else_is_waited_for_and_told(
    session: Session, simulated_host: SimulatedHost
) -> None:
    machine = simulated_host.machine("vm1")
    machine.create_snapshot("theirs")
    (theirs,) = snapshots.of_others(session, the_machine(session))
    simulated_host.scenario.task_seconds = {"RemoveSnapshot_Task": 0.2}
    from pyVmomi import vim

    vm = the_machine(session)
    task = session.managed(vim.vm.Snapshot, theirs.moref).RemoveSnapshot_Task(False, True)
    assert [found.act for found in tasks.running(session, vm)] == ["remove"]
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled, match="the merge goes on"):
        settle(session, vm, cancel=token)
    said: list[str] = []
    settle(session, vm, tell=said.append)
    assert said
    assert "vm1: the host merges disks" in said[0]
    assert task.info.state == "success"
    assert tasks.running(session, vm) == []


def test_whoever_waits_is_told_seldom_enough_to_read_it() -> None:
    now = [0.0]
    said: list[str] = []
    pace = Pace("web", said.append, clock=lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        pace(second // 4)
    assert said == [
        "web: the host merges disks, 0 %, after 0 s",
        "web: the host merges disks, 7 %, after 30 s",
        "web: the host merges disks, 15 %, after 60 s",
        "web: the host merges disks, 22 %, after 90 s",
    ]
    said.clear()
    for percent in (22, 40, 41, 60):
        pace(percent)
    assert [text.split(", ")[1] for text in said] == ["40 %", "60 %"]
