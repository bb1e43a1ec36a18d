"""Whatever a machine goes through, the areas reported from one moment to another cover every difference."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vdkit.block.extent import RangeSet
from vdkit.block.memory import MemoryStore
from vdkit.sim import links
from vdkit.sim.clock import ManualClock
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.faults import FileFault, ModelFault
from vdkit.sim.inventory import Inventory
from vdkit.sim.snapshot import DiskSpec, Snapshot
from vdkit.sim.tracking import GRANULARITY as G

KEY = 2000
BLOCKS = 8
CAPACITY = BLOCKS * G

sectors = st.integers(0, CAPACITY // 512 - 1)
lengths = st.sampled_from([1, 2, 7, 127, 128, 129, 300])
operations = st.one_of(
    st.tuples(st.just("write"), sectors, lengths, st.integers(1, 255)),
    st.tuples(st.just("write"), sectors, lengths, st.integers(1, 255)),
    st.tuples(st.just("zero"), sectors, lengths),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("remove"), st.integers(0, 9)),
    st.tuples(st.just("revert"), st.integers(0, 9)),
    st.tuples(st.just("power")),
    st.tuples(st.just("retrack")),
    st.tuples(st.just("consolidate")),
)


@dataclass
class Moment:
    """A change id that a client saved, and what the disk held then."""

    change_id: str
    content: bytes


@dataclass
class World:
    """A machine, and what its disk must hold."""

    page: int
    content: bytearray = field(default_factory=lambda: bytearray(CAPACITY))
    moments: list[Moment] = field(default_factory=list)
    frozen: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inventory = Inventory(clock=ManualClock())
        self.inventory.areas_per_page = self.page
        self.inventory.add_datastore(Datastore("ds", MemoryStore("ds")))
        self.machine = self.inventory.create_machine("vm", "ds", [DiskSpec(CAPACITY)])
        self.machine.set_change_tracking(True)
        self.machine.power_on()

    def apply(self, operation: tuple[object, ...]) -> None:
        match operation:
            case ("write", int(sector), int(count), int(value)):
                self._put(sector * 512, count * 512, value)
            case ("zero", int(sector), int(count)):
                self._put(sector * 512, count * 512, 0)
            case ("snapshot",):
                if len(list(self.machine.snapshots())) < 5:
                    self._snapshot()
            case ("remove", int(which)):
                if (victim := self._pick(which)) is not None:
                    self.machine.remove_snapshot(victim)
            case ("revert", int(which)):
                if (target := self._pick(which)) is not None:
                    self.machine.revert_to_snapshot(target)
                    self.content[:] = self.frozen[target.uid]
                    self.moments.clear()
                    self.machine.power_on()
            case ("power",):
                self.machine.power_off()
                self._check_current()
                self.machine.power_on()
            case ("retrack",):
                self.machine.set_change_tracking(False)
                self.machine.set_change_tracking(True)
                self.machine.power_off()
                self._check_unknown()
                self.moments.clear()
                self.machine.power_on()
            case _:
                self.machine.consolidate()

    def _put(self, offset: int, length: int, value: int) -> None:
        length = min(length, CAPACITY - offset)
        guest = self.machine.disk(KEY).guest()
        if value:
            guest.write_from(offset, bytes([value]) * length)
        else:
            guest.write_zeroes(offset, length)
        self.content[offset : offset + length] = bytes([value]) * length

    def _pick(self, which: int) -> Snapshot | None:
        present = list(self.machine.snapshots())
        return present[which % len(present)] if present else None

    def _snapshot(self) -> None:
        snapshot = self.machine.create_snapshot("s")
        self.frozen[snapshot.uid] = bytes(self.content)
        change_id = snapshot.disks[KEY].change_id
        assert change_id is not None
        for moment in self.moments:
            self._check(moment, bytes(self.content), self._areas(moment.change_id, snapshot))
        self.moments.append(Moment(change_id, bytes(self.content)))

    def _areas(self, change_id: str, snapshot: Snapshot | None) -> RangeSet:
        start, found = 0, []
        while start < CAPACITY:
            answer = self.machine.changed_areas(KEY, start, change_id, snapshot)
            assert answer.length > 0
            assert len(answer.areas) <= self.page
            found += answer.areas
            start += answer.length
        return RangeSet(found)

    def _check(self, moment: Moment, now: bytes, areas: RangeSet) -> None:
        for block in range(BLOCKS):
            old, new = moment.content[block * G : (block + 1) * G], now[block * G : (block + 1) * G]
            assert old == new or areas.covers(block * G, G), f"block {block} changed and is not reported"

    def _check_current(self) -> None:
        for moment in self.moments:
            self._check(moment, bytes(self.content), self._areas(moment.change_id, None))

    def _check_unknown(self) -> None:
        for moment in self.moments:
            try:
                self._areas(moment.change_id, None)
            except FileFault:
                continue
            raise AssertionError("an id from before tracking began anew is believed")

    def check_contents(self) -> None:
        seen = bytearray(CAPACITY)
        self.machine.disk(KEY).guest().read_into(0, seen)
        assert seen == self.content
        for snapshot in self.machine.snapshots():
            name = split_path(snapshot.disks[KEY].file)[1]
            with links.open_frozen(self.machine.datastore, name) as device:
                device.read_into(0, seen)
            assert seen == self.frozen[snapshot.uid], f"snapshot {snapshot.uid} is not what it was"
        in_use = self.machine.disk(KEY).in_use()
        for block in range(BLOCKS):
            assert not any(self.content[block * G : (block + 1) * G]) or in_use.covers(block * G, G)


@settings(max_examples=40)
@given(st.lists(operations, min_size=4, max_size=25), st.integers(1, 4))
def test_the_areas_cover_every_difference_and_snapshots_stay_what_they_were(
    sequence: list[tuple[object, ...]], page: int
) -> None:
    world = World(page)
    try:
        for operation in sequence:
            world.apply(operation)
        world.check_contents()
        world.machine.remove_all_snapshots()
        world.check_contents()
        assert world.machine.disk(KEY).file == "[ds] vm/vm.vmdk"
    except ModelFault as error:  # none is expected: say what it was
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    finally:
        world.inventory.close()
