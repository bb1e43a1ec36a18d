"""Whatever a disk lives through, the map covers what was written, or the verdict is a reset.

The host here is a model of its own: epochs of written blocks, histories that break, pages of any size, and
answers that cannot be true. What was really written since the last saved point is kept beside it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from vdkit.block.extent import RangeSet
from vdkit.errors import ChangeTrackingError, TrackingReset
from vdkit.vsphere.session import About
from vdkit.vsphere.tracking import ChangeQuery, gather
from vsphere_fakes import FakeStub, devices, disk_device, fake_machine, fake_session

UNIT = 1 << 16
KEY = 2000
SNAPSHOT = "s"


class Host:
    """One disk: blocks written in each epoch of each history."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.histories = 0
        self.epochs: dict[int, set[int]] = {1: set()}
        self.open = 1
        self.written: set[int] = set()
        self.page = 2
        self.spoil: str | None = None
        self.frozen: tuple[int, dict[int, set[int]], int] = (0, {}, 0)

    def write(self, block: int) -> None:
        self.epochs[self.open].add(block % self.blocks)
        self.written.add(block % self.blocks)

    def reset(self) -> None:
        self.histories += 1
        self.epochs, self.open = {1: set()}, 1

    def revert(self) -> None:
        """Every block may differ from what was saved, and the history is another one."""
        self.reset()
        self.written |= set(range(self.blocks))

    def freeze(self) -> str:
        taken = self.open
        self.frozen = (self.blocks, {n: set(found) for n, found in self.epochs.items()}, taken)
        self.open += 1
        self.epochs[self.open] = set()
        return f"{self.histories:x}a/{taken}"

    def query(self, offset: int, since: str) -> Any:
        blocks, epochs, taken = self.frozen
        history, _, number = since.partition("/")
        if history != f"{self.histories:x}a" or int(number) > taken:
            raise vim.fault.FileFault(file="[ds] x.vmdk", msg="unknown change id")
        changed = set().union(*(found for n, found in epochs.items() if int(number) < n <= taken))
        ranges = list(
            RangeSet((block * UNIT, UNIT) for block in changed).clip(offset, blocks * UNIT - offset)
        )
        some, more = ranges[: self.page], len(ranges) > self.page
        end = sum(some[-1]) if more else blocks * UNIT
        return self._answer(offset, end - offset, some)

    def _answer(self, start: int, length: int, areas: list[tuple[int, int]]) -> Any:
        match self.spoil:
            case "fault" if start:
                raise vmodl.fault.InvalidArgument(invalidProperty="startOffset", msg="startOffset")
            case "stuck":
                length = 0
            case "elsewhere":
                start += UNIT
            case "beyond":
                length += UNIT
            case "backwards":
                areas = [(start + UNIT, UNIT), (start, UNIT)]
            case "overlap":
                areas = [(start, UNIT), (start + UNIT // 2, UNIT)]
            case "empty area":
                areas = [*areas[:1], (start + length - 512, 0)]
            case "outside":
                areas = [(start + length, UNIT)]
            case _:
                pass
        info = vim.VirtualMachine.DiskChangeInfo
        extents = [info.DiskChangeExtent(start=o, length=n) for o, n in areas]
        return info(startOffset=start, length=length, changedArea=extents)


SPOILS = ("fault", "stuck", "elsewhere", "beyond", "backwards", "overlap", "empty area", "outside")
#: Wrong in every answer, whatever was asked.
ALWAYS = frozenset(SPOILS) - {"fault"}
OPERATIONS = st.one_of(
    # Many and scattered, or no map would ever need a second page.
    st.tuples(st.just("write"), st.sets(st.integers(0, 63), min_size=1, max_size=16)),
    st.tuples(st.just("reset"), st.none()),
    st.tuples(st.just("revert"), st.none()),
    st.tuples(st.just("grow"), st.integers(1, 8)),
    st.tuples(st.just("page"), st.integers(1, 5)),
    st.tuples(st.just("merge"), st.booleans()),
    st.tuples(st.just("backup"), st.sampled_from((None, None, None, *SPOILS))),
)


def ask(host: Host, stub: FakeStub, since: tuple[str, int] | None) -> tuple[RangeSet | None, str | None]:
    """What a backup does: the ranges to read (None for all of the disk) and the id to save."""
    change_id = host.freeze()
    capacity = host.blocks * UNIT
    stub.objects[SNAPSHOT] = {
        "config.hardware.device": devices(disk_device(KEY, capacity, change_id)),
        "config.changeTrackingEnabled": True,
    }
    with ChangeQuery(fake_session(stub), fake_machine(), SNAPSHOT) as query:
        query.save_ids()
        ranges: RangeSet | None = None
        if since is not None:
            with contextlib.suppress(ChangeTrackingError):
                ranges = query.changed_ranges(KEY, since[0], since_capacity=since[1])
        if ranges is None:
            query.full(KEY)
        return ranges, query.next_id(KEY)


@given(st.lists(OPERATIONS, max_size=40), st.integers(1, 40))
@example([("backup", None), ("write", {0, 2, 4, 6, 8}), ("page", 1)], 16)
@example([("backup", None), ("write", {0, 2, 4, 6, 8}), ("grow", 3)], 16)
@example([("backup", None), ("write", {1, 9}), ("reset", None), ("write", {3})], 16)
def test_the_map_covers_what_was_written_or_says_reset(
    operations: list[tuple[str, Any]], blocks: int
) -> None:
    host, stub = Host(blocks), FakeStub()
    stub.objects["7"] = {"runtime.consolidationNeeded": False}
    stub.methods["QueryChangedDiskAreas"] = lambda moref, snapshot, key, offset, since: host.query(
        offset, since
    )
    saved: tuple[str, int] | None = None
    for act, value in [*operations, ("backup", None)]:
        match act:
            case "write":
                for block in value:
                    host.write(block)
            case "reset":
                host.reset()
            case "revert":
                host.revert()
            case "grow":
                host.blocks += value
            case "page":
                host.page = value
            case "merge":
                stub.objects["7"]["runtime.consolidationNeeded"] = value
            case "backup":
                host.spoil = value
                asked = saved is not None and saved[0].startswith(f"{host.histories:x}a/")
                ranges, next_id = ask(host, stub, saved)
                if ranges is not None:
                    assert asked
                    assert value not in ALWAYS
                    assert not stub.objects["7"]["runtime.consolidationNeeded"]
                    truth = RangeSet((block * UNIT, UNIT) for block in host.written)
                    assert all(ranges.covers(offset, length) for offset, length in truth)
                    assert saved is not None
                    assert ranges.covers(saved[1], host.blocks * UNIT - saved[1])
                    assert ranges.end <= host.blocks * UNIT
                assert next_id is not None
                saved = (next_id, host.blocks * UNIT)
                host.written = set()


@pytest.mark.parametrize("version", ["5.5.0", "6.0.0", "8.0.3"])
@given(st.integers(1, 600), st.integers(0, 600), st.booleans())
def test_d1_growth_past_a_boundary_of_128_gib(version: str, before: int, more: int, told: bool) -> None:
    """Old releases answer wrongly then, and the answer is a reset; new ones are asked, and all is covered."""
    gib = 1 << 30
    capacity = (before + more) * gib
    crossed = (before + more) // 128 > (before // 128 if told else 0)
    areas = [(offset, UNIT) for offset in range(0, capacity, 128 * gib)]
    stub = FakeStub()
    stub.objects["7"] = {"runtime.consolidationNeeded": False}
    stub.objects[SNAPSHOT] = {
        "config.hardware.device": devices(disk_device(KEY, capacity, "aa/5")),
        "config.changeTrackingEnabled": True,
    }
    info = vim.VirtualMachine.DiskChangeInfo
    extents = [info.DiskChangeExtent(start=o, length=n) for o, n in areas]
    stub.methods["QueryChangedDiskAreas"] = lambda *_: info(
        startOffset=0, length=capacity, changedArea=extents
    )
    about = About(f"VMware ESXi {version}", "HostAgent", version, version, "24022510", None)
    with ChangeQuery(fake_session(stub, about=about), fake_machine(), SNAPSHOT) as query:
        query.save_ids()
        since_capacity = before * gib if told else None
        if version == "5.5.0" and crossed:
            with pytest.raises(TrackingReset, match="2090639"):
                query.changed_ranges(KEY, "aa/4", since_capacity=since_capacity)
            return
        ranges = query.changed_ranges(KEY, "aa/4", since_capacity=since_capacity)
    assert all(ranges.covers(*area) for area in areas)
    assert not told or ranges.covers(before * gib, more * gib)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=60),
    st.integers(1, 8),
)
def test_a_map_kept_coarser_only_grows(steps: list[tuple[int, int]], most: int) -> None:
    areas, at = [], 0
    for gap, length in steps:
        areas.append((at + gap * 512, length * 512))
        at += (gap + length) * 512
    kept = gather(areas, most)
    assert len(kept) <= most
    assert all(kept.covers(*area) for area in areas)
    assert kept.end == RangeSet(areas).end
    assert gather(areas, 100) == RangeSet(areas)


def test_a_map_of_hundreds_of_thousands_of_areas_is_kept_in_bounds() -> None:
    """Every second block: nothing is lost, and no more is kept apart than was allowed."""
    blocks = 400_000
    areas = ((block * UNIT, UNIT) for block in range(0, 2 * blocks, 2))
    kept = gather(areas, 100_000)
    assert len(kept) <= 100_000
    assert all(kept.covers(block * UNIT, UNIT) for block in range(0, 2 * blocks, 2222))
