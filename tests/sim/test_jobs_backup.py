"""Whole backups of simulated machines: a point is the content at its snapshot, and nothing stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_helpers import Guest, Listener, new_repository, point_content, session_of, snapshots_left

from vdkit.backup import Kind, Level, ResetPolicy, verify
from vdkit.errors import HostError, ObjectNotFound, TrackingReset, UsageError, VixError
from vdkit.jobs.backup import backup_machine
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.scenario import Scenario
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import inventory, snapshots

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
@pytest.mark.parametrize(("mode", "compression"), [("nbdssl", "none"), ("nbd", "skipz"), ("nbdssl", "zlib")])
def test_every_point_is_the_content_at_its_snapshot(
    simulated_host_factory: HostFactory, tmp_path: Path, personality: str, mode: str, compression: str
) -> None:
    host = simulated_host_factory(personality=personality)
    host.power_on_all()
    guest = Guest(host)
    repository = new_repository(tmp_path / "repo")
    wanted = []
    with session_of(host) as session:
        for _ in range(4):
            guest.scribble()
            wanted.append(guest.now())
            result = backup_machine(
                session, "vm1", repository, Listener(), modes=mode, compression=compression
            )
            assert result.warnings == result.skipped == ()
    points = repository.points()
    assert [point.manifest.kind for point in points] == [Kind.FULL, *[Kind.INCREMENTAL] * 3]
    assert [point_content(repository, point) for point in points] == wanted
    assert all(point.manifest.disks[0].read < 32 << 20 for point in points[1:])
    assert verify(repository).ok
    assert snapshots_left(host) == []


def test_a_map_of_many_pages_loses_nothing(simulated_host_factory: HostFactory, tmp_path: Path) -> None:
    # bareos#2152, yavijava-samples#10: one call describes only a slice of the disk.
    host = simulated_host_factory(scenario=Scenario(areas_per_page=1))
    host.power_on_all()
    guest = Guest(host)
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        backup_machine(session, "vm1", repository, Listener())
        for offset in range(0, 60 << 20, 3 << 20):
            guest.write(offset, b"x" * 512)
        point = backup_machine(session, "vm1", repository, Listener()).point
    assert point.manifest.kind is Kind.INCREMENTAL
    assert point_content(repository, point) == guest.now()


def test_writes_during_a_backup_belong_to_the_next_one(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory()
    host.power_on_all()
    guest = Guest(host)
    repository = new_repository(tmp_path / "repo")

    class WritesMeanwhile(Listener):
        def step(self, text: str) -> None:
            # After the snapshot was made and before its data are read.
            if text.startswith("disk"):
                guest.scribble(5)

    with session_of(host) as session:
        backup_machine(session, "vm1", repository, Listener())
        guest.scribble()
        frozen = guest.now()
        during = backup_machine(session, "vm1", repository, WritesMeanwhile()).point
        after = backup_machine(session, "vm1", repository, Listener()).point
    assert guest.now() != frozen
    assert point_content(repository, during) == frozen
    assert point_content(repository, after) == guest.now()


def test_a_reset_of_tracking_is_the_callers_decision(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    # bareos#1791: fail rather than silently take a full.
    host = simulated_host_factory()
    host.power_on_all()
    guest = Guest(host)
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        backup_machine(session, "vm1", repository, Listener())
        guest.scribble()
        _reset_tracking(host)
        with pytest.raises(TrackingReset, match="reset"):
            backup_machine(session, "vm1", repository, Listener())
        assert len(repository.points()) == 1
        listener = Listener()
        scanned = backup_machine(session, "vm1", repository, listener, on_reset=ResetPolicy.SCAN)
        assert any("reset" in text for text in listener.warnings)
        assert scanned.point.manifest.kind is Kind.INCREMENTAL
        assert point_content(repository, scanned.point) == guest.now()
        _reset_tracking(host)
        full = backup_machine(session, "vm1", repository, Listener(), on_reset=ResetPolicy.FULL)
        assert full.point.manifest.kind is Kind.FULL
        # The id saved with the full backup is of the new history: the next one is incremental again.
        guest.scribble()
        again = backup_machine(session, "vm1", repository, Listener())
        assert again.point.manifest.kind is Kind.INCREMENTAL
        assert point_content(repository, again.point) == guest.now()
    assert snapshots_left(host) == []


def _reset_tracking(host) -> None:
    machine = host.machine("vm1")
    machine.set_change_tracking(False)
    machine.power_off()
    machine.power_on()
    machine.set_change_tracking(True)
    machine.power_off()
    machine.power_on()


def test_an_incremental_without_a_point_is_refused(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory()
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session, pytest.raises(UsageError, match="no complete restore point"):
        backup_machine(session, "vm1", repository, Listener(), level=Level.INC)
    assert repository.points() == []
    assert snapshots_left(host) == []


def test_lost_connections_cost_time_not_bytes(simulated_host_factory: HostFactory, tmp_path: Path) -> None:
    host = simulated_host_factory()
    host.power_on_all()
    guest = Guest(host)
    guest.scribble(200)
    repository = new_repository(tmp_path / "repo")
    # Sent by the host before it breaks: in the handshake, at the open, in the map, early and late in reads.
    cuts = [3, 7, 9, 10, 12, 30]

    class CutsAgain(Listener):
        def warning(self, text: str) -> None:
            super().warning(text)
            after = cuts.pop(0) if cuts else None
            host.set_data_faults(None if after is None else NfcFaults(cut_after_messages=after))

    listener = CutsAgain()
    with session_of(host) as session:
        host.set_data_faults(NfcFaults(cut_after_messages=1))
        point = backup_machine(session, "vm1", repository, listener, sleep=lambda seconds: None).point
    # Two workers may both tell of one loss.
    assert cuts == [] and len(listener.warnings) >= 7
    assert all("trying again" in text and f":{host.nfc_port}" in text for text in listener.warnings)
    assert point_content(repository, point) == guest.now()


def test_a_host_that_refuses_the_disk_leaves_no_point_and_no_snapshot(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory(scenario=Scenario(nfc=NfcFaults(read_error=(13, "disk on fire"))))
    host.power_on_all()
    Guest(host).scribble()
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session, pytest.raises(HostError, match="disk on fire") as caught:
        backup_machine(session, "vm1", repository, Listener())
    assert "[datastore1] vm1/vm1.vmdk" in str(caught.value)
    assert repository.points() == []
    assert snapshots_left(host) == []


def test_what_a_killed_run_left_is_removed_by_the_next(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory()
    host.power_on_all()
    guest = Guest(host)
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        vm = inventory.find_machine(session, "vm1")
        ours = f"Made for a backup. {snapshots.tag(f'{repository.id}.20260101T000000Z-00000000')}"
        others = f"Made for a backup. {snapshots.tag('0123456789abcdef.20260101T000000Z-00000000')}"
        snapshots.create(session, vm, "vdkit backup of a killed run", ours)
        snapshots.create(session, vm, "vdkit backup into another repository", others)
        host.machine("vm1").create_snapshot("the operator's own", "before the upgrade")
        guest.scribble()
        listener = Listener()
        point = backup_machine(session, "vm1", repository, listener).point
    assert any("killed run" in text for text in listener.notes)
    assert any("another repository" in text for text in listener.warnings)
    assert snapshots_left(host) == ["vdkit backup into another repository", "the operator's own"]
    assert point_content(repository, point) == guest.now()


def test_a_slow_or_failing_consolidation_is_told_and_lived_with(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    # forklift#1193: the next snapshot must wait for the merge.
    scenario = Scenario()
    host = simulated_host_factory(scenario=scenario)
    host.power_on_all()
    guest = Guest(host)
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        scenario.consolidation_seconds = 0.2
        backup_machine(session, "vm1", repository, Listener())
        guest.scribble()
        point = backup_machine(session, "vm1", repository, Listener()).point
    assert point_content(repository, point) == guest.now()
    assert snapshots_left(host) == []


def test_an_unknown_machine_is_named_with_its_neighbours(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory(machines=2)
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session, pytest.raises(ObjectNotFound, match="vm1"):
        backup_machine(session, "vm11", repository, Listener())


@pytest.mark.parametrize("method", ["CreateSnapshot_Task", "RemoveSnapshot_Task"])
def test_failing_tasks_never_leave_half_a_point(
    simulated_host_factory: HostFactory, tmp_path: Path, method: str
) -> None:
    scenario = Scenario()
    host = simulated_host_factory(scenario=scenario)
    host.power_on_all()
    Guest(host).scribble()
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        backup_machine(session, "vm1", repository, Listener())
        scenario.task_errors = {method: "vim.fault.GenericVmConfigFault"}
        try:
            result = backup_machine(session, "vm1", repository, Listener())
        except VixError:
            assert method == "CreateSnapshot_Task"
            assert len(repository.points()) == 1
        else:
            # The point is whole; the snapshot that stayed is told.
            assert method == "RemoveSnapshot_Task"
            assert len(result.warnings) == 1
            assert len(repository.points()) == 2
        scenario.task_errors = {}
        backup_machine(session, "vm1", repository, Listener())
    assert snapshots_left(host) == []
    assert verify(repository).ok
