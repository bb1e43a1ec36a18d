"""Damaged and hostile volumes: a clear error each, bounded reads, and never another file's bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from vdkit.errors import (
    CorruptDisk,
    FormatError,
    LimitExceeded,
    NotADisk,
    NotFound,
    UnsupportedVersion,
    VixError,
)
from vdkit.testing.vmfsimage import VmfsImage
from vdkit.testing.vmfslayout import block_address, large_address, pointer_address, sub_block_address
from vdkit.vmfs import VmfsStore, Volume, check_file
from vdkit.vmfs.directory import MAX_ENTRIES
from vmfsfixtures import MIB, Fixture, VmfsOptions, read

#: Reads that looking at everything of a small damaged volume may cost.
MAX_READS = 20_000


def fill(image: VmfsImage) -> None:
    image.folder("vm")
    image.folder("vm/inner")
    image.small("vm/small", b"small")
    image.disk("vm/f", 80 * MIB, "ddddd" + "h" * 5 + "D" * 70)
    image.disk("vm/other", 4 * MIB, "dddd")
    image.disk("vm/deep", 12 * MIB, "d" * 12, levels=1)
    image.disk("vm/deeper", 12 * MIB, "dhhhhdd", levels=2)


@pytest.fixture(params=[5, 6])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(VmfsOptions(request.param, members=(1,)), fill)


def everything(volume: Volume) -> None:
    """All that a user may ask of a volume."""
    reads = 0
    plain = volume.device._read_into

    def counted(offset: int, view: memoryview) -> None:
        nonlocal reads
        reads += 1
        assert reads < MAX_READS, f"{reads} reads"
        plain(offset, view)

    volume.device._read_into = counted  # type: ignore[method-assign]
    for path, descriptor in volume.walk():
        check_file(volume, descriptor, path)
        with volume.file(descriptor, path) as device:
            read(device, max(0, device.capacity - 4096), min(4096, device.capacity))


def refused(fixture: Fixture, message: str, kind: type[VixError] = CorruptDisk) -> None:
    with pytest.raises(kind, match=message), fixture.open() as volume:
        everything(volume)


# -- addresses -----------------------------------------------------------------------------------


def test_a_block_outside_the_volume(fixture: Fixture) -> None:
    version = fixture.options.version
    fixture.pointer("vm/f", 3, block_address(version, 256))  # the first behind the end
    refused(fixture, r"\] vm/f: an address outside the volume's 268435456 bytes")
    with fixture.open() as volume, VmfsStore(volume).open("vm/f") as device:
        assert read(device, 0, 3 * MIB) == fixture.manifest.files["vm/f"].read(0, 3 * MIB)
        with pytest.raises(CorruptDisk, match="outside the volume"):
            read(device, 3 * MIB, 512)
        with pytest.raises(CorruptDisk, match="outside the volume"):
            list(device.extents())  # all at once says the same


@pytest.mark.parametrize("block", [1 << 24, (1 << 26) - 1])
def test_far_away_blocks_are_no_arithmetic_accident(fixture: Fixture, block: int) -> None:
    fixture.pointer("vm/f", 60, block_address(fixture.options.version, block))
    refused(fixture, "outside the volume")
    fixture.pointer("vm/f", 60, (1 << (64 if fixture.six else 32)) - 8 + 1)
    refused(fixture, "vm/f: ")


def test_addresses_of_a_wrong_kind(fixture: Fixture) -> None:
    version = fixture.options.version
    for value in (
        sub_block_address(version, 0, 1),
        pointer_address(version, 3, 0, 1),
        0x00400004,  # a descriptor
        6,  # a journal block
        *((large_address(0),) if version == 5 else ()),
    ):
        fixture.pointer("vm/f", 2, value & (0xFFFFFFFFFFFFFFFF if fixture.six else 0xFFFFFFFF))
        refused(fixture, "block 2 |of kind 7")


def test_an_address_without_a_kind_is_no_hole(fixture: Fixture) -> None:
    fixture.pointer("vm/f", 2, 0x40)
    refused(fixture, "block 2 has the address 0x40, which is no block's")


def test_a_pointer_block_of_a_wrong_kind(fixture: Fixture) -> None:
    version = fixture.options.version
    for value, message in (
        (block_address(version, 40), "is no address of a pointer block"),
        (sub_block_address(version, 0, 63 if version == 5 else 255) | 0xFFF << 6, "nowhere"),
    ):
        fixture.pointer("vm/deep", 0, value)
        refused(fixture, f"vm/deep: .*{message}" if version == 6 or "kind" in message else "vm/deep: ")


def test_more_small_blocks_than_a_cluster_has() -> None:
    fixture = Fixture(VmfsOptions(6, members=(1,)), fill)
    fixture.pointer("vm/f", 1, 1 | 0 << 15 | 600 << 51)
    refused(fixture, "small block 600 of 512 of a cluster")


def test_pointer_blocks_that_name_themselves_end(fixture: Fixture) -> None:
    """There are two levels and no more, so a loop is only a wrong address."""
    expected = fixture.manifest.files["vm/deeper"]
    with fixture.open() as volume:
        top = volume.resolve("vm/deeper").pointers(volume.super_block)[0]
        places = volume._places(volume._pools)
        at, _ = places.locate(places.decode(top), "")
    fixture.write(at, int(top).to_bytes(8 if fixture.six else 4, "little"))
    assert expected.length
    refused(fixture, "vm/deeper: ")


def test_holes_at_every_level(fixture: Fixture) -> None:
    size = 8 if fixture.six else 4
    with fixture.open() as volume:
        top = volume.resolve("vm/deeper").pointers(volume.super_block)[0]
        places = volume._places(volume._pools)
        at, _ = places.locate(places.decode(top), "")
        leaf, _ = places.locate(places.decode(int.from_bytes(read(volume.device, at, size), "little")), "")
    fixture.write(leaf, bytes(size))  # the first block
    with fixture.open() as volume, VmfsStore(volume).open("vm/deeper") as device:
        assert read(device, 0, 5 * MIB) == bytes(5 * MIB)
        assert read(device, 5 * MIB, MIB) == fixture.manifest.files["vm/deeper"].read(5 * MIB, MIB)
    fixture.write(at, bytes(size))  # all of the leaf
    with fixture.open() as volume, VmfsStore(volume).open("vm/deeper") as device:
        assert read(device, 0, device.capacity) == bytes(device.capacity)
        assert [(e.length, e.kind.value) for e in device.extents()] == [(12 * MIB, "zero")]


def test_a_map_that_tells_a_block_twice_is_found_by_the_check(fixture: Fixture) -> None:
    version = fixture.options.version
    block = fixture.manifest.files["vm/f"].blocks[0].volume_offset // MIB
    fixture.pointer("vm/f", 40, block_address(version, block))
    with fixture.open() as volume:
        problems = check_file(volume, volume.resolve("vm/f"), "vm/f").problems
        assert problems == (f"two of its blocks lie at volume offset {block * MIB}",)


def test_a_map_that_leads_into_the_volumes_own_files_is_found_by_the_check(fixture: Fixture) -> None:
    fixture.pointer("vm/other", 1, block_address(fixture.options.version, 7 if fixture.six else 4))
    fixture.pointer("vm/other", 2, 0)
    with fixture.open() as volume:
        first, second = check_file(volume, volume.resolve("vm/other"), "vm/other").problems
        assert first == "its descriptor counts 4 blocks as allocated, its map 3"
        assert second.endswith("lies in .fdc.sf")


# -- descriptors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (0x00, "I", 0x00400004, "says that it is 0x00400004"),
        (0x04, "I", 7, "means generation [0-9]+ of its descriptor, which is at 7"),
        (0x0C, "I", 2, "the directory says type 3, the descriptor 2"),
        (0x0C, "I", 9, "of type 9"),
        (0x44, "I", 4, "and layout 4"),
        (0x44, "I", 0x10D2, "which are not known"),
        (0x14, "Q", 1 << 62, "a length of"),
        (0x14, "Q", 1 << 45, "are more than its descriptor can lead to"),
        (0x1C, "Q", 0, "blocks of 0 bytes"),
        (0x1C, "Q", 513, "blocks of 513 bytes"),
        (0x1C, "Q", 1 << 63, "blocks of"),
        (0x44, "I", 2, "blocks of 1048576 bytes"),
        (0x44, "I", 0x10D1, "said to be inside the descriptor"),
    ],
)
def test_descriptors_that_lie(fixture: Fixture, offset: int, form: str, value: int, message: str) -> None:
    fixture.field("vm/f", offset, form, value)
    refused(fixture, message, FormatError)


def test_a_descriptor_that_is_not_where_it_says(fixture: Fixture) -> None:
    fixture.write(fixture.descriptor_at("vm/f") + 4, struct.pack("<Q", 512))
    refused(fixture, "says that it is at 512")


def test_a_descriptor_that_is_none(fixture: Fixture) -> None:
    fixture.write(fixture.descriptor_at("vm/f"), bytes(4))
    refused(fixture, "no file descriptor at address")


def test_what_one_file_hides_does_not_hide_the_others(fixture: Fixture) -> None:
    fixture.field("vm/f", 0, "I", 0)
    with fixture.open() as volume, VmfsStore(volume).open("vm/other") as device:
        assert read(device, 0, 4 * MIB) == fixture.manifest.files["vm/other"].read(0, 4 * MIB)


# -- the volume's own files ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [6, 4, 2])
def test_resource_files_may_only_use_those_before_them(fixture: Fixture, number: int) -> None:
    """A pool that lies in itself, or in one that is found through it, is no loop but an error."""
    layout = 5 if number == 6 else 3
    size = 8 if fixture.six else 4
    start = (8192 - 2560) if fixture.six else 1024
    base = 4096 if fixture.six else 512
    at = fixture.system(number)
    fixture.write(at + base + 0x44, struct.pack("<I", layout))
    own = sub_block_address(fixture.options.version, 0, 0) if number == 4 else pointer_address(
        fixture.options.version, 5 if number == 6 else 3, 0, 0
    )  # fmt: skip
    fixture.write(at + start, own.to_bytes(size, "little"))
    refused(fixture, r"\.(pb2|sbc|fdc)\.sf: ")


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0), (0, 1 << 20), (4, 0), (4, 1 << 30), (12, 512), (12, 1 << 31), (16, 0), (16, 1)],
)
def test_geometry_that_cannot_be(fixture: Fixture, offset: int, value: int) -> None:
    fdc = 7 * MIB if fixture.six else 4 * MIB
    fixture.write(fdc + offset, struct.pack("<I", value))
    refused(fixture, r"\.fdc\.sf: ")


@pytest.mark.parametrize(
    ("offset", "form", "value", "kind"),
    [
        (0x00, "I", 0x2FABF160, NotADisk),
        (0x04, "I", 12, UnsupportedVersion),
        (0x04, "I", 99, UnsupportedVersion),
        (0xA1, "Q", 0, CorruptDisk),
        (0xA1, "Q", 1000, CorruptDisk),
        (0xA1, "Q", 1 << 40, CorruptDisk),
        (0xD1, "I", 1 << 31, CorruptDisk),
        (0xD5, "I", 0, CorruptDisk),
        (0xD9, "I", 3, CorruptDisk),
        (0xD9, "I", 1 << 30, CorruptDisk),
    ],
)
def test_superblocks(fixture: Fixture, offset: int, form: str, value: int, kind: type[VixError]) -> None:
    fixture.write(0x200000 + offset, struct.pack(f"<{form}", value))
    with pytest.raises(kind, match="lun0"):
        fixture.open()


@pytest.mark.parametrize(
    ("offset", "form", "value", "kind"),
    [
        (0x111, "B", 1, UnsupportedVersion),
        (0x134, "I", 513, CorruptDisk),
        (0x134, "I", 1 << 31, CorruptDisk),
        (0x138, "H", 0, CorruptDisk),
        (0x138, "H", 60, CorruptDisk),
    ],
)
def test_superblocks_of_vmfs_6(offset: int, form: str, value: int, kind: type[VixError]) -> None:
    fixture = Fixture(VmfsOptions(6, members=(1,)), fill)
    fixture.write(0x200000 + offset, struct.pack(f"<{form}", value))
    with pytest.raises(kind, match="lun0"):
        fixture.open()


# -- directories ---------------------------------------------------------------------------------


def directory_at(fixture: Fixture, path: str) -> int:
    """Volume offset of a directory's data, which is one piece."""
    with fixture.open() as volume:
        descriptor = volume.resolve(path)
        (run,) = volume.blocks(descriptor, path).runs(0, descriptor.length)
        assert run.volume_offset is not None
        return run.volume_offset


def test_folders_that_contain_themselves(fixture: Fixture) -> None:
    """An entry below ``vm`` that is ``vm`` itself: no endless walk."""
    with fixture.open() as volume:
        own, inner = volume.resolve("vm"), volume.resolve("vm/inner")
        at = directory_at(fixture, "vm")
        raw = read(volume.device, at, own.length)
    where = raw.find(struct.pack("<III", 2, inner.address, inner.generation))
    fixture.write(at + where, struct.pack("<III", 2, own.address, own.generation))
    refused(fixture, "vm/inner: this folder is in another one too")


@pytest.mark.parametrize("name", [b"a/b", b"/etc/passwd", b"", b"../x"])
def test_names_that_are_none(fixture: Fixture, name: bytes) -> None:
    at = directory_at(fixture, "vm")
    with fixture.open() as volume:
        raw = read(volume.device, at, volume.resolve("vm").length)
    where = raw.find(b"small")
    fixture.write(at + where, name.ljust(5, b"\0"))
    refused(fixture, "the directory holds an entry named")


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (0x00, "I", 0xF50002, "version 0xf50002"),
        (0x0C, "I", 129, "129 maps"),
        (0x10, "I", 1 << 31, "is outside it"),
        (0x10, "I", 1, "is no map"),
        (0x10000 + 4096 + 2, "H", 2, "does not hold"),
        (0x10000 + 4096 + 4, "H", 65535, "does not hold 65535 entries"),
        (0x10000 + 4096 + 64 + 16, "Q", 5, "says that it is at 5"),
    ],
)
def test_directories_of_vmfs_6(offset: int, form: str, value: int, message: str) -> None:
    fixture = Fixture(VmfsOptions(6, members=(1,)), fill)
    root = next(r for r in [directory_at(fixture, "")])
    fixture.write(root + offset, struct.pack(f"<{form}", value))
    refused(fixture, message)


def test_a_directory_is_not_believed_to_be_huge(fixture: Fixture) -> None:
    fixture.field("vm", 0x44, "I", 0x10D0)
    fixture.field("vm", 0x1C, "Q", MIB)
    fixture.field("vm", 0x14, "Q", 2 << 30)
    with fixture.open() as volume, pytest.raises(LimitExceeded, match="a directory of 2147483648 bytes"):
        volume.entries(volume.resolve("vm"), "vm")
    assert MAX_ENTRIES == 1 << 20


# -- all together -----------------------------------------------------------------------------


def test_random_damage_never_gets_past_our_errors(fixture: Fixture) -> None:
    """A word here and there in the metadata: a volume that still reads, or an error of ours."""
    import random

    chosen = random.Random(fixture.options.version)
    device = fixture.image.devices[0]
    first = 17 * MIB + (0x720000 if fixture.six else 0x420000)
    ends: dict[str, int] = {}
    for _ in range(60):
        place = chosen.choice(
            (
                MIB,
                MIB + (0x1000 if fixture.six else 0x200),
                17 * MIB + 0x200000,
                first,
                first + 0x8000,
                first - 0x20000,
            )
        )
        at = place + chosen.randrange(0, 0x1000 if fixture.six else 0x400) // 4 * 4
        before = read(device, at, 4)
        device.write_from(at, chosen.choice((b"\xff" * 4, bytes(4), chosen.randbytes(4))))
        try:
            with fixture.open() as volume:
                everything(volume)
            ends["read"] = ends.get("read", 0) + 1
        except VixError as error:
            ends[type(error).__name__] = ends.get(type(error).__name__, 0) + 1
        device.write_from(at, before)
    assert ends["read"] > 5 and len(ends) > 1
    everything(fixture.open())


def test_missing_files_are_told_by_name(fixture: Fixture) -> None:
    calls: list[Callable[[Volume], object]] = [
        lambda volume: volume.resolve("vm/no"),
        lambda volume: volume.resolve("vm/small/no"),
    ]
    with fixture.open() as volume:
        for call in calls:
            with pytest.raises(NotFound, match="vm/"):
                call(volume)
