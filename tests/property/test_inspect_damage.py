"""Whatever the bytes are, taking a file apart gives an answer, in bounded work."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vdkit.block.memory import MemoryStore
from vdkit.errors import VixError
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk
from vdkit.vmdk.inspect import inspect_file, locate

KIB = 1 << 10


def _files() -> dict[str, bytes]:
    """One small file of each form."""
    store = MemoryStore()
    with create_disk(store, "sparse.vmdk", 2048 * KIB, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        disk.write_from(65536, b"x" * 65536)
    with StreamWriter(store, "stream.vmdk", 2048 * KIB) as writer:
        writer.append(writer.encode(0, memoryview(bytes(range(256)) * 512)))
        writer.finish()
    create_child(store, "sparse.vmdk", "cowd.vmdk")
    with open_disk(store, "cowd.vmdk", writable=True) as disk:
        disk.write_from(512, b"y" * 512)
    found = {}
    for name in ("sparse.vmdk", "stream.vmdk", "cowd.vmdk", "cowd-delta.vmdk"):
        with store.open(name) as file:
            data = bytearray(file.capacity)
            file.read_into(0, data)
            found[name] = bytes(data)
    return found


FILES = _files()
EDITS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 600), st.integers(0, 1 << 18)),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\1"])),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(FILES)), edits=EDITS, cut=st.one_of(st.none(), st.integers(0, 1 << 18)))
def test_an_answer_for_any_bytes(name: str, edits: list[tuple[int, bytes]], cut: int | None) -> None:
    data = bytearray(FILES[name])
    for offset, patch in edits:
        at = offset % len(data)
        data[at : at + len(patch)] = patch[: len(data) - at]
    store = MemoryStore()
    with store.create(name) as file:
        kept = bytes(data[:cut])
        file.resize(len(kept))
        if kept:
            file.write_from(0, kept)
    found = inspect_file(store, name, tables=True)
    assert found.size == len(kept)
    for offset in (0, 65536, 2048 * KIB - 1):
        try:
            spots = locate(store, name, offset)
        except VixError:
            continue
        for spot in spots:
            assert spot.kind in ("data", "compressed", "zero", "absent", "unknown")
            if spot.kind == "data":
                assert spot.file_offset is not None and spot.file_offset < len(kept)
