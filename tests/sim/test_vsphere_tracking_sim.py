"""Change tracking on the simulated host, with real writes of a guest: what is reported is what changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pyVmomi import vim
from simulated_login import logged_in, one_line, the_machine

from vdkit.block.extent import RangeSet
from vdkit.errors import (
    ChangeTrackingError,
    ControlError,
    NoPrivilege,
    TrackingOff,
    TrackingReset,
)
from vdkit.sim.host import SimulatedHost
from vdkit.sim.scenario import Scenario
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import DISK_BYTES, HostFactory
from vdkit.vsphere import snapshots, tracking
from vdkit.vsphere.consolidation import is_outstanding
from vdkit.vsphere.model import Tracking
from vdkit.vsphere.session import Session
from vdkit.vsphere.tracking import ChangeQuery

KEY = 2000
UNIT = 1 << 16
NAME, DESCRIPTION = "vdkit backup", "vdkit:run"


@pytest.fixture(params=["esx", "vcenter"])
def host(request: pytest.FixtureRequest, simulated_host_factory: HostFactory) -> SimulatedHost:
    made = simulated_host_factory(personality=request.param)
    made.power_on_all()
    return made


@pytest.fixture
def session(host: SimulatedHost) -> Iterator[Session]:
    with logged_in(host) as session:
        yield session


def write(host: SimulatedHost, *offsets: int) -> RangeSet:
    """Writes of the guest; returns what was touched, in tracked blocks."""
    with host.machine("vm1").disk(KEY).guest() as disk:
        for offset in offsets:
            disk.write_from(offset, b"x" * 512)
    return RangeSet((offset // UNIT * UNIT, UNIT) for offset in offsets)


def next_id(session: Session) -> str:
    """What a backup saves: the id of a snapshot that was read in full."""
    vm = the_machine(session)
    with (
        snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken,
        ChangeQuery(session, vm, taken.moref) as query,
    ):
        query.save_ids()
        query.full(KEY)
        saved = query.next_id(KEY)
    assert saved is not None
    return saved


def changes(session: Session, since: str, during: Callable[[], object] = lambda: None) -> RangeSet:
    vm = the_machine(session)
    with (
        snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken,
        ChangeQuery(session, vm, taken.moref) as query,
    ):
        during()
        query.save_ids()
        return RangeSet(query.changed_areas(KEY, since))


def test_off_enabled_and_active_are_told_apart(host: SimulatedHost, session: Session) -> None:
    vm = the_machine(session)
    assert vm.disks[0].tracking.tracking is Tracking.OFF
    after = tracking.enable(session, vm, run="e")
    assert after.change_tracking
    assert after.disks[0].tracking.tracking is Tracking.ACTIVE
    assert not list(after.all_snapshots())
    assert tracking.enable(session, after, run="e") == after
    off = tracking.disable(session, after)
    assert off.disks[0].tracking.tracking is Tracking.OFF


def test_row_12_enabled_but_not_started_shows_and_is_cured(host: SimulatedHost, session: Session) -> None:
    machine = host.machine("vm1")
    machine.set_change_tracking(True)
    vm = the_machine(session)
    assert vm.change_tracking
    assert vm.disks[0].tracking.tracking is Tracking.PENDING
    cured = tracking.enable(session, vm, run="e")
    assert cured.disks[0].tracking.tracking is Tracking.ACTIVE


def test_exactly_what_the_guest_wrote_is_reported(host: SimulatedHost, session: Session) -> None:
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    touched = write(host, 0, 5 * UNIT + 7 * 512, DISK_BYTES - 512)
    # Writes after the snapshot belong to the next backup.
    assert changes(session, since, lambda: write(host, 20 * UNIT)) == touched
    later = next_id(session)
    assert changes(session, later) == RangeSet()


def test_row_8_a_fragmented_map_comes_in_many_pages(host: SimulatedHost, session: Session) -> None:
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    touched = write(host, *(block * UNIT for block in range(0, 1000, 3)))
    host.scenario.areas_per_page = 7
    assert changes(session, since) == touched


def test_row_11_a_fault_in_the_middle_of_the_map(host: SimulatedHost, session: Session) -> None:
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    write(host, *(block * UNIT for block in range(0, 1000, 3)))
    host.scenario.areas_per_page = 7
    host.scenario.cbt_error = "InvalidArgument"
    host.scenario.cbt_error_offset = DISK_BYTES * 4 // 5
    with pytest.raises(TrackingReset) as caught:
        changes(session, since)
    one_line(caught.value, "vm1", f"disk {KEY}", f"of {DISK_BYTES}", "full backup")


def test_row_13_an_id_of_before_a_reset(host: SimulatedHost, session: Session) -> None:
    vm = tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    tracking.disable(session, vm)
    tracking.enable(session, the_machine(session), run="e")
    with pytest.raises(TrackingReset) as caught:
        changes(session, since)
    one_line(caught.value, "reset", "full backup")


def test_row_13_an_id_of_before_a_revert(host: SimulatedHost, session: Session) -> None:
    tracking.enable(session, the_machine(session), run="e")
    machine = host.machine("vm1")
    kept = machine.create_snapshot("of somebody else", "")
    write(host, 0)
    since = next_id(session)
    machine.revert_to_snapshot(kept)
    if machine.power_state != "poweredOn":
        machine.power_on()
    with pytest.raises(TrackingReset):
        changes(session, since)


def test_row_14_consolidation_left_undone_is_a_reset(host: SimulatedHost, session: Session) -> None:
    """E7: what changes while disks are merged may be lost, so such a snapshot is not trusted."""
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    machine = host.machine("vm1")
    host.scenario.consolidation_fails = True
    with pytest.raises(ControlError):
        next_id(session)
    vm = the_machine(session)
    assert is_outstanding(session, vm)
    # Somebody else's snapshot, made without waiting as ours would.
    made = machine.create_snapshot("of somebody else", "")
    with ChangeQuery(session, vm, made.moref) as query:
        query.save_ids()
        with pytest.raises(TrackingReset) as caught:
            query.changed_areas(KEY, since)
        one_line(caught.value, "consolidation", "full backup")
        query.full(KEY)
        assert query.next_id(KEY)


def test_tracking_lost_on_the_way(host: SimulatedHost, session: Session) -> None:
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    tracker = host.machine("vm1").disk(KEY).tracker
    assert tracker is not None
    tracker.lose()
    with pytest.raises(TrackingOff) as caught:
        changes(session, since)
    one_line(caught.value, "vm1", f"disk {KEY}", "enable change tracking")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("vim.fault.FileFault", TrackingReset),
        ("vim.fault.NotFound", TrackingOff),
        ("NotSupported", TrackingOff),
        ("NoPermission", NoPrivilege),
    ],
)
def test_faults_of_the_question(
    host: SimulatedHost, session: Session, fault: str, kind: type[ChangeTrackingError]
) -> None:
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    if fault == "NoPermission":
        host.scenario.missing_privileges = frozenset({"VirtualMachine.Provisioning.DiskRandomRead"})
    else:
        host.scenario.cbt_error = fault
    try:
        with pytest.raises(kind) as caught:
            changes(session, since)
    finally:
        host.scenario.missing_privileges = frozenset()
    one_line(caught.value, "vm1")


def test_the_session_expires_between_two_pages(host: SimulatedHost, session: Session) -> None:
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    touched = write(host, *(block * UNIT for block in range(0, 100, 3)))
    host.scenario.areas_per_page = 7
    vm = the_machine(session)
    with (
        snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken,
        ChangeQuery(session, vm, taken.moref) as query,
    ):
        query.save_ids()
        found = []
        for area in query.changed_areas(KEY, since):
            host.expire_sessions()
            found.append(area)
    assert RangeSet(found) == touched


def test_a_disk_that_grew(host: SimulatedHost, session: Session) -> None:
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    host.machine("vm1").grow_disk(KEY, 2 * DISK_BYTES)
    vm = the_machine(session)
    with (
        snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken,
        ChangeQuery(session, vm, taken.moref) as query,
    ):
        query.save_ids()
        changed = query.changed_ranges(KEY, since, since_capacity=DISK_BYTES)
    assert changed.covers(DISK_BYTES, DISK_BYTES)


@pytest.mark.parametrize("version", ["5.5", "8.0.3.0"])
def test_d1_the_lie_of_old_releases_about_a_disk_that_grew_is_not_believed(
    simulated_host_factory: HostFactory, version: str
) -> None:
    """A disk that grew past 128 GiB: an old host forgets what was written beyond, a new one does not."""
    gib = 1 << 30
    old = version == "5.5"
    host = simulated_host_factory(machines=0, scenario=Scenario(api_version=version, cbt_growth_fault=old))
    machine = host.inventory.create_machine("vm1", "datastore1", [DiskSpec(127 * gib)])
    machine.set_change_tracking(True)
    machine.power_on()
    with logged_in(host) as session:
        since = next_id(session)
        machine.grow_disk(KEY, 257 * gib)
        edges = (128 * gib, 256 * gib)
        beyond = write(host, *(edge + step * UNIT for edge in edges for step in (-1, 0, 1)))
        vm = the_machine(session)
        with snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken:
            machine_areas = session.managed(vim.VirtualMachine, vm.moref).QueryChangedDiskAreas(
                vim.vm.Snapshot(taken.moref), KEY, 0, since
            )
            told = RangeSet((one.start, one.length) for one in machine_areas.changedArea)
            assert (beyond - told).total == (5 * UNIT if old else 0)
            with ChangeQuery(session, vm, taken.moref) as query:
                query.save_ids()
                if old:
                    with pytest.raises(TrackingReset, match="2090639"):
                        query.changed_ranges(KEY, since, since_capacity=127 * gib)
                    query.full(KEY)
                else:
                    found = query.changed_ranges(KEY, since, since_capacity=127 * gib)
                    assert all(found.covers(*area) for area in beyond)
                    assert found.covers(127 * gib, 130 * gib)
                assert query.next_id(KEY)
    assert host.internal_errors == []


def test_a_reset_in_the_middle_of_a_map_gives_no_half_map(host: SimulatedHost, session: Session) -> None:
    """Somebody switches tracking off and on while the pages come: what came before must not pass for all."""
    tracking.enable(session, the_machine(session), run="e")
    since = next_id(session)
    write(host, *(block * UNIT for block in range(0, 100, 2)))
    host.scenario.areas_per_page = 7
    vm = the_machine(session)
    with (
        snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken,
        ChangeQuery(session, vm, taken.moref) as query,
    ):
        query.save_ids()
        areas = query.changed_areas(KEY, since)
        assert next(areas) == (0, UNIT)
        host.machine("vm1").set_change_tracking(False)
        host.machine("vm1").set_change_tracking(True)
        with pytest.raises(ChangeTrackingError):
            list(areas)
        query.full(KEY)


def test_the_id_of_another_disk_or_snapshot_is_never_answered(
    simulated_host_factory: HostFactory,
) -> None:
    host = simulated_host_factory()
    machine = host.machine("vm1")
    machine.add_disk(1 << 20)
    host.inventory.create_machine("other", "datastore1", [DiskSpec(1 << 20)])
    for one in host.inventory.machines:
        one.set_change_tracking(True)
    with logged_in(host) as session:
        vm = the_machine(session)
        since = next_id(session)
        with snapshots.temporary_snapshot(session, vm, NAME, DESCRIPTION) as taken:
            with ChangeQuery(session, vm, taken.moref) as query:
                query.save_ids()
                with pytest.raises(TrackingReset, match="tracking was reset"):
                    query.changed_areas(KEY + 1, since)
                query.full(KEY + 1)
            # The snapshot of another machine: its own disk has the same key.
            other = the_machine(session, "other")
            with ChangeQuery(session, other, taken.moref) as query:
                query.save_ids()
                with pytest.raises(ChangeTrackingError, match="snapshot"):
                    query.changed_ranges(KEY, since)
    assert host.internal_errors == []
