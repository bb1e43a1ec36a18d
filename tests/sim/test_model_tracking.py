"""Change tracking by itself: ids, epochs, pages, and the faults of a disk that cannot answer."""

from __future__ import annotations

import pytest

from vdkit.block.extent import RangeSet
from vdkit.sim.blockmap import BlockMap
from vdkit.sim.faults import FileFault, InvalidArgument
from vdkit.sim.tracking import GRANULARITY as G
from vdkit.sim.tracking import ChangeTracker, page_of

GIB = 1 << 30


def tracker(capacity: int = GIB, in_use: tuple[tuple[int, int], ...] = ()) -> ChangeTracker:
    return ChangeTracker("[ds] vm/vm.vmdk", capacity, in_use)


def test_a_change_id_is_a_uuid_as_hosts_write_it_and_a_number() -> None:
    change_id = tracker().change_id
    name, _, number = change_id.partition("/")
    assert name.startswith("52 ")
    assert len(name) == 47
    assert number == "0"


def test_writes_widen_to_blocks_and_belong_to_the_open_epoch() -> None:
    found = tracker()
    first = found.freeze()
    found.record(1, 1)
    found.record(3 * G - 1, 2)
    second = found.freeze()
    found.record(9 * G, 1)
    assert list(found.changed_since(first, second)) == [(0, G), (2 * G, 2 * G)]
    assert list(found.changed_since(second)) == [(9 * G, G)]
    assert list(found.changed_since(first)) == [(0, G), (2 * G, 2 * G), (9 * G, G)]


def test_an_earlier_snapshot_is_answered_exactly_though_a_block_was_written_again() -> None:
    found = tracker()
    first = found.freeze()
    found.record(5 * G, 1)
    second = found.freeze()
    found.record(5 * G, 1)
    found.record(6 * G, 1)
    third = found.freeze()
    assert list(found.changed_since(first, second)) == [(5 * G, G)]
    assert list(found.changed_since(second, third)) == [(5 * G, 2 * G)]


def test_the_id_of_the_running_disk_never_hides_a_change() -> None:
    found = tracker()
    found.record(0, 1)
    saved = found.change_id
    found.record(2 * G, 1)
    until = found.freeze()
    assert found.changed_since(saved, until).covers(2 * G, G)


def test_data_that_was_there_before_tracking_began_is_in_the_first_map() -> None:
    found = tracker(in_use=((7 * G + 5, 10),))
    start = found.change_id
    assert list(found.changed_since(start, found.freeze())) == [(7 * G, G)]


def test_the_tail_of_a_disk_is_clipped() -> None:
    found = tracker(capacity=G + 512)
    start = found.change_id
    found.record(G, 512)
    assert list(found.changed_since(start)) == [(G, 512)]


@pytest.mark.parametrize("boundary", [128 * GIB, 256 * GIB, 2048 * GIB])
def test_a_disk_grown_over_a_boundary_of_128_gib_tells_the_right_areas(boundary: int) -> None:
    found = tracker(capacity=boundary - G)
    before = found.freeze()
    found.record(boundary - 3 * G, 1)
    found.grow(boundary + GIB)
    found.record(boundary - 1, 2)
    found.record(boundary + GIB - 512, 512)
    wanted = [(boundary - 3 * G, G), (boundary - G, 2 * G), (boundary + GIB - G, G)]
    assert list(found.changed_since(before)) == wanted


def test_unknown_ids_are_a_file_fault_and_nonsense_an_invalid_argument() -> None:
    found = tracker()
    old = found.freeze()
    found.reset()
    with pytest.raises(FileFault, match=r"\[ds\] vm/vm.vmdk"):
        found.changed_since(old)
    name = found.change_id.partition("/")[0]
    with pytest.raises(FileFault):
        found.changed_since(f"{name}/17")
    for text in ("", "17", "52 xx/1", f"{name}/-1", f"{name}/1/2"):
        with pytest.raises(InvalidArgument) as caught:
            found.changed_since(text)
        assert caught.value.invalid_property == "changeId"


def test_tracking_lost_by_a_hot_remove_is_an_invalid_device_key_until_it_begins_anew() -> None:
    found = tracker()
    start = found.change_id
    found.lose()
    with pytest.raises(InvalidArgument, match="A specified parameter was not correct: deviceKey"):
        found.changed_since(start)
    found.reset()
    assert not found.changed_since(found.change_id)


def test_pages_cover_the_disk_without_gap_or_overlap() -> None:
    ranges = RangeSet((i * 4 * G, G) for i in range(25))
    capacity = 1000 * G
    start, seen, pages = 0, [], 0
    while start < capacity:
        answer = page_of(ranges, start, capacity, page=4)
        assert answer.start == start
        assert answer.length > 0
        assert len(answer.areas) <= 4
        assert all(start <= o and o + n <= start + answer.length for o, n in answer.areas)
        seen += answer.areas
        start += answer.length
        pages += 1
    assert start == capacity
    assert pages == 7
    assert RangeSet(seen) == ranges


def test_a_page_may_begin_inside_an_area() -> None:
    answer = page_of(RangeSet([(0, 10 * G)]), 3 * G, 20 * G)
    assert answer.areas == [(3 * G, 7 * G)]
    assert answer.start + answer.length == 20 * G


@pytest.mark.parametrize("start", [-1, 20 * G, 21 * G])
def test_a_start_outside_the_disk_is_refused_by_name(start: int) -> None:
    with pytest.raises(InvalidArgument, match="startOffset"):
        page_of(RangeSet(), start, 20 * G)


def test_a_block_map_over_62_tib_is_small_and_joins_runs_over_its_words() -> None:
    found = BlockMap()
    last = (62 << 40) // G - 1
    found.add(4094, 4097)
    found.add(last - 1, last)
    found.add(10, 10)
    assert list(found.runs()) == [(10, 1), (4094, 4), (last - 1, 2)]
    assert list(found.runs(4096)) == [(4096, 2), (last - 1, 2)]
    assert found.count() == 7
    assert 4097 in found
    assert 4098 not in found
