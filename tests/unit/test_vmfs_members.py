"""Damaged and missing members and partition tables: a clear error each, and every device closed."""

from __future__ import annotations

import struct
import zlib

import pytest

from vdkit.block.memory import MemoryDevice
from vdkit.errors import Ambiguous, CorruptDisk, MissingParent, NotADisk, VixError
from vdkit.testing.vmfsimage import VmfsImage
from vdkit.vmfs import open_volume
from vmfsfixtures import MIB, Fixture, VmfsOptions, copy_of, read


def fill(image: VmfsImage) -> None:
    image.folder("vm")
    image.small("vm/small", b"small")
    image.disk("vm/f", 4 * MIB, "dhdD")


@pytest.fixture(params=[5, 6])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(VmfsOptions(request.param, members=(1,)), fill)


def refused(fixture: Fixture, message: str, kind: type[VixError] = CorruptDisk) -> None:
    with pytest.raises(kind, match=message):
        fixture.open()


HEADER, PE5, PE6 = 0x100000, 0x180600, 0x182000


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (HEADER + 4, "I", 9, "volume manager version 9"),
        (HEADER + 0x6A, "I", 1 << 31, "are believed"),
        (HEADER + 0x6A, "I", 0, "end at 0 in its tables"),
        ("entry", "I", 0, "a volume of 0 members"),
        ("entry", "I", 1 << 20, "members"),
        ("state", "I", 2, "in state 2: a copy that waits for a new signature"),
        ("size", "Q", 1 << 60, "end at 536870912 in its tables"),
        ("physical", "Q", 1 << 40, "outside the partition's"),
        ("logical", "Q", 512, "gap at offset 0"),
    ],
)
@pytest.mark.parametrize("version", [5, 6])
def test_members_that_lie(version: int, offset: int | str, form: str, value: int, message: str) -> None:
    fixture = Fixture(VmfsOptions(version, members=(2,)), lambda image: None)  # type: ignore[arg-type]
    entry, table = (HEADER + 4096, PE6) if version == 6 else (HEADER + 512, PE5)
    places = {
        "entry": entry + 0x90,
        "state": entry + 0x10,
        "size": entry,
        "physical": table + 9,
        "logical": table + 17,
    }
    at = places[offset] if isinstance(offset, str) else offset
    fixture.write_device(at, struct.pack(f"<{form}", value))
    refused(fixture, message, VixError)


def test_tables_that_map_two_places_to_the_same_bytes() -> None:
    fixture = Fixture(VmfsOptions(5, members=(2,)), lambda image: None)
    fixture.write_device(PE5 + 128 + 9, struct.pack("<Q", 17 * MIB))
    refused(fixture, "lies on bytes of another one")
    fixture.write_device(PE5 + 128 + 9, struct.pack("<QQ", (17 + 256) * MIB, 0))
    refused(fixture, "two places at offset")


def test_metadata_regions_that_go_in_circles() -> None:
    """The next region is the first: its entries are counted, so the walk ends."""
    fixture = Fixture(VmfsOptions(5, members=(1,)), lambda image: None)
    fixture.write_device(HEADER + 0x6A, struct.pack("<I", 1 << 18))
    fixture.write_device(HEADER + 0xBE, struct.pack("<IQ", 1, HEADER))
    refused(fixture, "a table at|no metadata region|metadata regions", VixError)


@pytest.mark.parametrize("capacity", [0, 511, MIB, 17 * MIB, 18 * MIB, 19 * MIB + 100, 25 * MIB, 100 * MIB])
@pytest.mark.parametrize("table", ["none", "gpt"])
def test_images_that_are_cut(fixture: Fixture, capacity: int, table: str) -> None:
    image = VmfsImage.in_memory(VmfsOptions(fixture.options.version, members=(1,), table=table))  # type: ignore[arg-type]
    fill(image)
    image.finish()
    with pytest.raises((CorruptDisk, NotADisk)):
        open_volume([copy_of(image.devices[0], capacity=capacity)])


def test_members_that_are_missing_twice_there_or_foreign() -> None:
    options = VmfsOptions(6, members=(1, 1, 1))
    first = Fixture(options, fill)
    other = Fixture(VmfsOptions(6, members=(1, 1, 1), seed=9), fill)

    def luns(fixture: Fixture, *numbers: int) -> list[MemoryDevice]:
        return [copy_of(fixture.image.devices[number]) for number in numbers]

    with pytest.raises(MissingParent, match=r"has 3 members, 2 are here .*FIXTURE_00001:1"):
        open_volume(luns(first, 0, 2))
    with pytest.raises(MissingParent, match="has 3 members, 1 are here"):
        open_volume(luns(first, 1))
    with pytest.raises(Ambiguous, match="2 volumes: "):
        open_volume(luns(first, 0, 1, 2) + luns(other, 0))
    with pytest.raises(NotADisk, match=r"^stranger: no VMFS found"):
        open_volume([*luns(first, 0, 1, 2), MemoryDevice(64 * MIB, name="stranger")])
    changed = luns(first, 1)
    changed[0].write_from(PE6 + 9, struct.pack("<Q", 18 * MIB))
    changed[0].resize(changed[0].capacity + MIB)
    with pytest.raises(Ambiguous, match="both say that they are device"):
        open_volume([*luns(first, 0, 1, 2), *changed])


def test_devices_are_closed_whatever_happens(fixture: Fixture) -> None:
    good, bad = copy_of(fixture.image.devices[0]), MemoryDevice(64 * MIB, name="bad")
    with pytest.raises(NotADisk):
        open_volume([good, bad])
    assert good.closed and bad.closed
    damaged = copy_of(fixture.image.devices[0])
    damaged.write_from(17 * MIB + 0x200000, bytes(4))
    with pytest.raises(NotADisk):
        open_volume([damaged])
    assert damaged.closed


@pytest.mark.parametrize("table", ["gpt", "gpt4k"])
def test_a_damaged_partition_table_has_a_second_copy(table: str) -> None:
    fixture = Fixture(VmfsOptions(6, members=(1,), table=table), fill)  # type: ignore[arg-type]
    device = fixture.image.devices[0]
    sector = 512 if table == "gpt" else 4096
    device.write_from(sector + 80, b"\xff\xff")
    with fixture.open() as volume:
        assert volume.resolve("vm/small").length == 5
    device.write_from(device.capacity - sector + 80, b"\xff\xff")
    with pytest.raises(CorruptDisk, match="does not match its checksum, and so in its second copy"):
        fixture.open()
    device.write_from(sector, bytes(8))
    device.write_from(device.capacity - sector, bytes(8))
    with pytest.raises(CorruptDisk, match="without a partition table behind it"):
        fixture.open()


def _signed(header: bytearray) -> bytes:
    header[16:20] = bytes(4)
    header[16:20] = struct.pack("<I", zlib.crc32(header[:92]))
    return bytes(header)


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (80, "I", 1 << 30, "a partition table of 1073741824 entries"),
        (84, "I", 12, "of 12 bytes"),
        (72, "Q", 1 << 50, "its partition table is outside the device"),
    ],
)
def test_partition_tables_that_lie(offset: int, form: str, value: int, message: str) -> None:
    fixture = Fixture(VmfsOptions(5, members=(1,), table="gpt"), fill)
    device = fixture.image.devices[0]
    header = bytearray(read(device, 512, 92))
    struct.pack_into(f"<{form}", header, offset, value)
    device.write_from(512, _signed(header))
    with pytest.raises(CorruptDisk, match=message):
        fixture.open()


def test_partitions_past_the_end(fixture: Fixture) -> None:
    image = VmfsImage.in_memory(VmfsOptions(fixture.options.version, members=(1,), table="mbr"))
    image.finish()
    image.devices[0].write_from(446 + 12, struct.pack("<I", 0xFFFFFFFF))
    with pytest.raises(CorruptDisk, match="partition 1 reaches past the device's"):
        open_volume([copy_of(image.devices[0])])
    image.devices[0].write_from(446 + 4, b"\x83")
    with pytest.raises(NotADisk, match="no VMFS found"):
        open_volume([copy_of(image.devices[0])])
