"""Change tracking cannot be misused: the regressions of other programs, by their number in our notes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from vdkit.block.extent import RangeSet
from vdkit.errors import (
    ChangeTrackingError,
    ConnectionLost,
    TrackingOff,
    TrackingReset,
    UsageError,
)
from vdkit.vsphere.hardware import diagnose, disks
from vdkit.vsphere.known_faults import losing_changes
from vdkit.vsphere.model import Backing, Snapshot, Tracking
from vdkit.vsphere.session import About
from vdkit.vsphere.tracking import ChangeQuery, enable
from vsphere_fakes import FakeStub, devices, disk_device, fake_machine, fake_session

GIB = 1 << 30
UNIT = 1 << 16
HISTORY = "52 aa bb"
SNAPSHOT = "7-snapshot-3"

Pager = Callable[[int, str], Any]


def page(start: int, length: int, areas: list[tuple[int, int]]) -> Any:
    info = vim.VirtualMachine.DiskChangeInfo
    return info(
        startOffset=start,
        length=length,
        changedArea=[info.DiskChangeExtent(start=o, length=n) for o, n in areas],
    )


def host(
    pager: Pager | None = None, *, capacity: int = GIB, change_id: str | None = f"{HISTORY}/5", **vm: Any
) -> tuple[FakeStub, ChangeQuery]:
    """A machine ``7`` with one disk, its snapshot, and an answer to QueryChangedDiskAreas."""
    stub = FakeStub()
    stub.objects["7"] = {"runtime.consolidationNeeded": False, **vm}
    stub.objects[SNAPSHOT] = {
        "config.hardware.device": devices(disk_device(2000, capacity, change_id)),
        "config.changeTrackingEnabled": True,
    }

    def query(moref: str, snapshot: Any, key: int, offset: int, since: str) -> Any:
        assert (moref, snapshot._GetMoId(), key) == ("7", SNAPSHOT, 2000)
        # Row 10: hosts answer a question at the capacity with a fault.
        if offset >= capacity:
            raise vmodl.fault.InvalidArgument(invalidProperty="startOffset")
        return pager(offset, since) if pager else page(offset, capacity - offset, [])

    stub.methods["QueryChangedDiskAreas"] = query
    return stub, ChangeQuery(fake_session(stub), fake_machine(), SNAPSHOT)


def slices(changed: RangeSet, capacity: int, areas_per_page: int) -> Pager:
    """Answers as a host gives them: a bounded number of areas, and how far they speak."""

    def answer(offset: int, since: str) -> Any:
        rest = list(changed.clip(offset, capacity - offset))
        some = rest[:areas_per_page]
        end = sum(some[-1]) if len(rest) > areas_per_page else capacity
        return page(offset, end - offset, some)

    return answer


def test_row_8_every_page_of_a_fragmented_map_is_asked_for() -> None:
    """One answer describes only a part of the disk; stopping after it loses writes silently."""
    capacity = 40_000 * UNIT
    changed = RangeSet((block * UNIT, UNIT) for block in range(0, 40_000, 2))
    stub, query = host(slices(changed, capacity, 2000), capacity=capacity)
    query.save_ids()
    assert RangeSet(query.changed_areas(2000, f"{HISTORY}/4")) == changed
    assert stub.calls.count("QueryChangedDiskAreas") == 10


def test_row_8_the_wildcard_is_not_an_id() -> None:
    """``*`` speaks of allocation: it must not stand for a difference, nor drive a full backup."""
    _, query = host()
    query.save_ids()
    for wildcard in ("*", ""):
        with pytest.raises(UsageError, match="full"):
            query.changed_areas(2000, wildcard)


def test_row_9_a_disk_of_more_than_two_tib_is_covered_to_its_end() -> None:
    capacity = 62 << 40
    last = capacity - UNIT
    changed = RangeSet([(0, UNIT), (2 << 40, UNIT), (last, UNIT)])
    _, query = host(slices(changed, capacity, 1), capacity=capacity)
    query.save_ids()
    assert RangeSet(query.changed_areas(2000, f"{HISTORY}/4")) == changed


def test_row_10_the_host_is_never_asked_at_the_capacity() -> None:
    asked: list[int] = []

    def answer(offset: int, since: str) -> Any:
        asked.append(offset)
        return page(offset, UNIT, [(offset, UNIT)])

    _, query = host(answer, capacity=4 * UNIT)
    query.save_ids()
    assert RangeSet(query.changed_areas(2000, f"{HISTORY}/4")) == RangeSet([(0, 4 * UNIT)])
    assert asked == [0, UNIT, 2 * UNIT, 3 * UNIT]


def test_row_10_an_empty_disk_is_not_asked_about() -> None:
    stub, query = host(capacity=0)
    query.save_ids()
    assert list(query.changed_areas(2000, f"{HISTORY}/4")) == []
    assert "QueryChangedDiskAreas" not in stub.calls


def test_row_11_a_map_that_breaks_off_is_a_reset_and_gives_no_id() -> None:
    """80 per cent of the map, then a fault: the part that came must not pass for the whole."""

    def answer(offset: int, since: str) -> Any:
        if offset >= 8 * UNIT:
            raise vmodl.fault.InvalidArgument(msg="A specified parameter was not correct: startOffset")
        return page(offset, 4 * UNIT, [(offset, UNIT)])

    _, query = host(answer, capacity=10 * UNIT)
    query.save_ids()
    areas = query.changed_areas(2000, f"{HISTORY}/4")
    assert [next(areas), next(areas)] == [(0, UNIT), (4 * UNIT, UNIT)]
    with pytest.raises(TrackingReset, match=f"byte {8 * UNIT} of {10 * UNIT}"):
        next(areas)
    with pytest.raises(UsageError, match="must not be saved"):
        query.next_id(2000)
    with pytest.raises(UsageError, match="already"):
        query.changed_areas(2000, f"{HISTORY}/4")
    query.full(2000)
    assert query.next_id(2000) == f"{HISTORY}/5"


def test_row_12_enabled_but_not_started_is_told_apart_and_cured() -> None:
    """ "Not enabled on disk 2000" although it is: tracking starts with the next stun."""
    state = diagnose(Backing.FLAT, "persistent", shared=False, change_id=None, enabled=True, supported=True)
    assert state.tracking is Tracking.PENDING
    assert "snapshot" in (state.remedy or "")
    _, query = host(change_id=None)
    query.save_ids()
    with pytest.raises(TrackingOff, match=r"has not started.*make and remove a snapshot"):
        query.changed_areas(2000, f"{HISTORY}/4")


def test_row_12_enabling_makes_and_removes_a_snapshot_where_it_is_needed() -> None:
    stub = FakeStub()
    machine: dict[str, Any] = {
        "name": "web",
        "config.changeTrackingEnabled": False,
        "config.hardware.device": devices(disk_device(2000)),
        "runtime.powerState": "poweredOn",
    }
    stub.objects.update({"7": machine, "views": {}, "root": {}, "task": {"info.state": "success"}})
    stub.methods["CreateContainerView"] = lambda *_: vim.view.ContainerView("view", stub)
    stub.methods["DestroyView"] = lambda *_: None
    stub.objects["view"] = {}

    def reconfigure(moref: str, spec: Any) -> Any:
        machine["config.changeTrackingEnabled"] = spec.changeTrackingEnabled
        return vim.Task("task", stub)

    def create(moref: str, name: str, description: str, memory: bool, quiesce: bool) -> Any:
        assert name.startswith("vdkit")
        assert "vdkit:run-1" in description
        stub.objects["made"] = {"info.state": "success", "info.result": vim.vm.Snapshot("s", stub)}
        return vim.Task("made", stub)

    def remove(moref: str, children: bool, consolidate: bool) -> Any:
        assert (moref, children, consolidate) == ("s", False, True)
        machine["config.hardware.device"] = devices(disk_device(2000, change_id=f"{HISTORY}/1"))
        return vim.Task("task", stub)

    stub.methods.update(ReconfigVM_Task=reconfigure, CreateSnapshot_Task=create, RemoveSnapshot_Task=remove)
    vm = fake_machine(
        disks=(),
        change_tracking=False,
    )
    after = enable(fake_session(stub), vm, run="run-1")
    assert after.change_tracking
    assert [disk.tracking.tracking for disk in after.disks] == [Tracking.ACTIVE]


@pytest.mark.parametrize("on", [False, True])
def test_row_12_tracking_never_begins_above_snapshots(on: bool) -> None:
    """Whether it is off or has not started: the snapshots are named, and nothing is changed."""
    stub = FakeStub()
    (disk,) = disks([disk_device(2000)], enabled=on, supported=True)
    above = (Snapshot("s1", "before the update", "", children=(Snapshot("s2", "after", ""),)),)
    vm = fake_machine(disks=(disk,), change_tracking=on, snapshots=above)
    with pytest.raises(ChangeTrackingError, match=r"'before the update', 'after'; delete them"):
        enable(fake_session(stub), vm, run="r")
    assert stub.calls == []


def test_tracking_that_runs_is_left_alone_whatever_snapshots_there_are() -> None:
    stub = FakeStub()
    (disk,) = disks([disk_device(2000, change_id=f"{HISTORY}/1")], enabled=True, supported=True)
    vm = fake_machine(disks=(disk,), change_tracking=True, snapshots=(Snapshot("s1", "s", ""),))
    assert enable(fake_session(stub), vm, run="r") is vm
    assert stub.calls == []


def test_row_13_ids_come_from_the_snapshot_that_is_read() -> None:
    """Reading the id at another moment corrupted guests: only this snapshot's own id can be had, and only
    after its map was read."""
    stub, query = host(change_id=f"{HISTORY}/5")
    with pytest.raises(UsageError, match="save_ids"):
        query.changed_areas(2000, f"{HISTORY}/4")
    saved = query.save_ids()
    assert saved[2000].change_id == f"{HISTORY}/5"
    with pytest.raises(UsageError, match="must not be saved"):
        query.next_id(2000)
    # What happens to the running machine afterwards makes no difference.
    stub.objects[SNAPSHOT]["config.hardware.device"] = devices(disk_device(2000, GIB, f"{HISTORY}/9"))
    assert list(query.changed_areas(2000, f"{HISTORY}/4")) == []
    assert query.next_id(2000) == f"{HISTORY}/5"


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        ("52 zz zz/4", "tracking was reset"),
        (f"{HISTORY}/6", "back in time"),
    ],
)
def test_row_13_an_id_of_another_history_is_a_reset(since: str, reason: str) -> None:
    stub, query = host()
    query.save_ids()
    with pytest.raises(TrackingReset, match=reason):
        query.changed_areas(2000, since)
    assert "QueryChangedDiskAreas" not in stub.calls


def test_row_14_a_snapshot_made_while_disks_merge_is_a_reset() -> None:
    """What changes during a consolidation can be lost: it is detected, never a silent gap."""
    _, query = host(**{"runtime.consolidationNeeded": True})
    query.save_ids()
    with pytest.raises(TrackingReset, match="consolidation"):
        query.changed_areas(2000, f"{HISTORY}/4")
    stub = host()[0]
    stub.objects["7"]["recentTask"] = vim.Task.Array([vim.Task("merge", stub)])
    stub.objects["merge"] = {
        "info.state": "running",
        "info.descriptionId": "VirtualMachine.consolidateDisks",
    }
    query = ChangeQuery(fake_session(stub), fake_machine(), SNAPSHOT)
    query.save_ids()
    with pytest.raises(TrackingReset, match="merge"):
        query.changed_areas(2000, f"{HISTORY}/4")


def test_row_14_hosts_known_to_lose_changes_are_a_reset() -> None:
    stub, _ = host()
    about = About("VMware ESXi 6.0.0", "HostAgent", "6.0", "6.0.0", "2494585", None)
    query = ChangeQuery(fake_session(stub, about=about), fake_machine(), SNAPSHOT)
    query.save_ids()
    with pytest.raises(TrackingReset, match="2136854"):
        query.changed_areas(2000, f"{HISTORY}/4")


@pytest.mark.parametrize(
    ("version", "build", "before", "now", "lost"),
    [
        ("6.0.0", "3247719", None, GIB, True),
        ("6.0.0", "3247720", None, GIB, False),
        ("6.5.0", "1", None, GIB, False),
        ("5.5.0", "1", 100 * GIB, 127 * GIB, False),
        ("5.5.0", "1", 100 * GIB, 128 * GIB, True),
        ("5.5.0", "1", None, 128 * GIB, True),
        ("5.5.0", "1", None, 127 * GIB, False),
        ("8.0.3", "24022510", 100 * GIB, 300 * GIB, False),
        ("", "", None, GIB, False),
    ],
)
def test_known_faulty_releases(version: str, build: str, before: int | None, now: int, lost: bool) -> None:
    assert (losing_changes(version, build, capacity=now, since_capacity=before) is not None) is lost


@pytest.mark.parametrize(
    "answer",
    [
        lambda o: page(o + UNIT, UNIT, []),
        lambda o: page(o, 0, []),
        lambda o: page(o, -UNIT, []),
        lambda o: page(o, GIB + UNIT, []),
        lambda o: page(o, GIB, [(GIB, UNIT)]),
        lambda o: page(o, GIB, [(2 * UNIT, UNIT), (UNIT, UNIT)]),
        lambda o: page(o, GIB, [(0, 2 * UNIT), (UNIT, UNIT)]),
        lambda o: page(o, GIB, [(0, -UNIT)]),
        lambda o: page(o, 2 * UNIT, [(2 * UNIT, UNIT)]),
        lambda o: page(o, GIB, [(-UNIT, UNIT)]),
        lambda o: page(o, GIB, [(UNIT, 0)]),
    ],
)
def test_a_map_that_cannot_be_true_is_refused(answer: Callable[[int], Any]) -> None:
    _, query = host(lambda offset, since: answer(offset))
    query.save_ids()
    with pytest.raises(ChangeTrackingError):
        list(query.changed_areas(2000, f"{HISTORY}/4"))
    with pytest.raises(UsageError):
        query.next_id(2000)


def test_a_page_is_asked_again_after_a_lost_connection() -> None:
    failures = [ConnectionResetError(104, "reset"), vim.fault.NotAuthenticated(msg="expired")]

    def answer(offset: int, since: str) -> Any:
        if offset and failures:
            raise failures.pop(0)
        return page(offset, GIB // 2, [(offset, UNIT)])

    stub, query = host(answer)
    stub.methods["RetrieveServiceContent"] = lambda *_: query._session.content
    stub.methods["Login"] = lambda *_: None
    query.save_ids()
    assert list(query.changed_areas(2000, f"{HISTORY}/4")) == [(0, UNIT), (GIB // 2, UNIT)]
    assert not failures


def test_an_unreachable_host_is_not_a_reset() -> None:
    def answer(offset: int, since: str) -> Any:
        raise ConnectionResetError(104, "reset")

    _, query = host(answer)
    query.save_ids()
    with pytest.raises(ConnectionLost):
        query.changed_ranges(2000, f"{HISTORY}/4")


def test_after_a_reset_the_caller_may_still_read_all_and_save_the_id() -> None:
    _, query = host()
    query.save_ids()
    with pytest.raises(TrackingReset, match="reset"):
        query.changed_ranges(2000, "other/1")
    query.full(2000)
    assert query.next_id(2000) == f"{HISTORY}/5"


def test_space_by_which_a_disk_grew_is_read() -> None:
    _, query = host(lambda o, s: page(o, GIB - o, [(UNIT, UNIT)]))
    query.save_ids()
    changed = query.changed_ranges(2000, f"{HISTORY}/4", since_capacity=GIB // 2)
    assert changed == RangeSet([(UNIT, UNIT), (GIB // 2, GIB // 2)])
    _, query = host()
    query.save_ids()
    with pytest.raises(TrackingReset, match="shrunk"):
        query.changed_ranges(2000, f"{HISTORY}/4", since_capacity=2 * GIB)


@pytest.mark.parametrize(
    ("kind", "mode", "shared", "supported", "part"),
    [
        (Backing.FLAT, "persistent", False, False, "hardware version"),
        (Backing.RAW_MAPPING_PHYSICAL, "persistent", False, True, "physical mode"),
        (Backing.OTHER, "persistent", False, True, "kind of disk"),
        (Backing.FLAT, "independent_persistent", False, True, "independent persistent"),
        (Backing.FLAT, "persistent", True, True, "several machines"),
    ],
)
def test_unsupported_disks_say_why(
    kind: Backing, mode: str, shared: bool, supported: bool, part: str
) -> None:
    state = diagnose(kind, mode, shared=shared, change_id=None, enabled=True, supported=supported)
    assert state.tracking is Tracking.UNSUPPORTED
    assert part in f"{state.reason} {state.remedy}"


CALLS = ["save_ids", "start", "step", "finish", "full", "next_id", "capacity", "close"]
ORDERS = st.builds(
    lambda start, rest: [*start, *rest],
    st.sampled_from([[], ["save_ids"], ["save_ids", "start"], ["save_ids", "start", "step"]]),
    st.lists(st.sampled_from(CALLS), max_size=10),
)


class Model:
    """Which calls are allowed, and what follows from them; the map has two pages of one area each."""

    def __init__(self) -> None:
        self.state, self.disk, self.steps = "fresh", "unasked", -1

    def allows(self, call: str) -> bool:
        saved = self.state == "saved"
        match call:
            case "save_ids":
                return self.state == "fresh"
            case "start":
                return saved and self.disk == "unasked"
            case "step":
                # The second area is on a page that has to be asked for; so is the end.
                return self.steps in (-1, 3) or saved
            case "finish":
                return self.steps in (-1, 3) or saved
            case "full":
                return saved and self.disk != "complete"
            case "next_id":
                return saved and self.disk == "complete"
            case "capacity":
                return saved
            case _:
                return True

    def follow(self, call: str) -> None:
        match call:
            case "save_ids":
                self.state = "saved"
            case "start":
                self.disk, self.steps = "mapping", 0
            case "step" if self.steps >= 0:
                self.steps = min(3, self.steps + 1)
            case "finish" if self.steps >= 0:
                self.steps = 3
            case "full":
                self.disk = "complete"
            case "close":
                self.state = "closed"
        if self.steps == 3 and self.disk == "mapping":
            self.disk = "complete"


@given(ORDERS)
def test_any_other_order_of_calls_is_refused(calls: list[str]) -> None:
    """A model of the order beside the real thing: what the model allows works, all else raises UsageError."""
    _, query = host(lambda o, s: page(o, GIB // 2, [(o, UNIT)]))
    model = Model()
    areas: Any = iter(())
    for call in calls:
        act: dict[str, Callable[[], object]] = {
            "save_ids": query.save_ids,
            "start": lambda: query.changed_areas(2000, f"{HISTORY}/4"),
            "step": lambda: next(areas, None),  # noqa: B023  called at once
            "finish": lambda: list(areas),  # noqa: B023  called at once
            "full": lambda: query.full(2000),
            "next_id": lambda: query.next_id(2000),
            "capacity": lambda: query.capacity(2000),
            "close": query.close,
        }
        if model.allows(call):
            result = act[call]()
            areas = result if call == "start" else areas
            assert call != "next_id" or result == f"{HISTORY}/5"
            model.follow(call)
        else:
            with pytest.raises(UsageError):
                act[call]()
            if call in ("step", "finish"):
                # A generator that raised has ended, and can no longer complete the map.
                model.steps, areas = -1, iter(())
