"""seSparse against a model: whatever grains a delta holds, reading and map are what the model says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vdkit.block.copy import copy
from vdkit.block.extent import ExtentKind
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.testing.sesparse import GRAIN, Hollow, write_sesparse
from vdkit.vmdk import DiskType, create_disk, open_disk
from vdkit.vmdk.sesparse import ENTRIES_PER_TABLE
from vdkit.vmdk.template import Parent

#: Around the border of two tables, so that both are used; the disk ends inside a grain.
TABLES = 3
CAPACITY = TABLES * ENTRIES_PER_TABLE * GRAIN - 1536
LAST = -(-CAPACITY // GRAIN) - 1
NUMBERS = st.one_of(
    st.integers(0, 20),
    st.integers(ENTRIES_PER_TABLE - 10, ENTRIES_PER_TABLE + 10),
    st.integers(LAST - 10, LAST),
)
GRAINS = st.dictionaries(
    NUMBERS,
    st.one_of(st.sampled_from(Hollow), st.integers(1, 255).map(lambda b: bytes([b]) * GRAIN)),
    max_size=30,
)


@given(
    grains=GRAINS,
    below=st.dictionaries(NUMBERS, st.integers(1, 255), max_size=10),
    spans=st.lists(st.tuples(st.integers(0, CAPACITY - 1), st.integers(1, 40 * GRAIN)), max_size=6),
    seed=st.integers(0, 1 << 16),
)
def test_reading_and_map_follow_the_model(
    grains: dict[int, bytes | Hollow], below: dict[int, int], spans: list[tuple[int, int]], seed: int
) -> None:
    store = MemoryStore("m")
    base = MemoryDevice(CAPACITY)
    for number, value in below.items():
        base.write_from(number * GRAIN, (bytes([value]) * GRAIN)[: CAPACITY - number * GRAIN])
    with create_disk(store, "vm.vmdk", CAPACITY, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        copy(base, disk, target_is_zero=True)
        cid = disk.info.cid
    write_sesparse(store, "d.vmdk", CAPACITY, grains, parent=Parent(cid, "vm.vmdk"), seed=seed)

    def model(number: int) -> bytes:
        grain = grains.get(number)
        if isinstance(grain, Hollow):
            return bytes(GRAIN)
        return grain if grain is not None else bytes([below.get(number, 0)]) * GRAIN

    near = [(max(0, number - 1) * GRAIN + 7, 3 * GRAIN) for number in [*grains, *below]]
    with open_disk(store, "d.vmdk") as disk:
        for start, length in [*spans, *near]:
            end = min(CAPACITY, start + length)
            seen = bytearray(max(0, end - start))
            disk.read_into(start, seen)
            first = start // GRAIN
            whole = b"".join(model(number) for number in range(first, -(-end // GRAIN)))
            assert seen == whole[start - first * GRAIN : end - first * GRAIN]
    with open_disk(store, "d.vmdk", single_link=True) as link:
        kinds: dict[int, ExtentKind] = {}
        position = 0
        for run in link.extents():
            assert run.offset == position and run.offset % GRAIN == 0
            position = run.end
            if run.kind is not ExtentKind.ABSENT:
                for number in range(run.offset // GRAIN, -(-run.end // GRAIN)):
                    kinds[number] = run.kind
        assert position == CAPACITY
        assert kinds == {
            number: ExtentKind.ZERO if isinstance(grain, Hollow) else ExtentKind.DATA
            for number, grain in grains.items()
        }
