"""Real VMFS volumes, read by us, by dissect.vmfs and by vmfs-tools: the same names, sizes and bytes.

Where vmfs-tools are known to be wrong (two levels of pointers, blocks to be zeroed, what follows a hole) they
are not asked.
"""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import vmfsimages
from vdkit.block.device import BlockDevice
from vdkit.block.local import open_file
from vdkit.block.memory import MemoryDevice
from vdkit.disklib.lun import open_luns
from vdkit.errors import MissingParent, NotADisk, NotFound, NotSupported, OutsideStore
from vdkit.vmdk import open_disk
from vdkit.vmfs import FileType, VmfsStore, Volume
from vdkit.vmfs.lvm import LogicalVolume, read_member

#: Files up to this size are compared byte by byte.
WHOLE = 8 << 20
#: Bytes compared at each end of what is allocated of a larger one.
BORDER = 1 << 16


@pytest.fixture(params=sorted(vmfsimages.VOLUMES))
def volume(request: pytest.FixtureRequest) -> Iterator[Volume]:
    with open_luns(vmfsimages.images(request.param)) as opened:
        yield opened


def read(device: BlockDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.read_into(offset, data)
    return bytes(data)


def run(tool: str, image: Path, *arguments: str) -> bytes:
    return subprocess.run([tool, str(image), *arguments], capture_output=True, check=True, timeout=60).stdout


def sampled(device: BlockDevice) -> list[tuple[int, int]]:
    """What of a device to compare: all, or the borders of its extents."""
    if device.capacity <= WHOLE:
        step = 1 << 20
        return [(at, min(step, device.capacity - at)) for at in range(0, device.capacity, step)]
    places = []
    for extent in device.extents():
        for start in (extent.offset, max(extent.offset, extent.end - BORDER)):
            places.append((start, min(BORDER, extent.end - start)))
    return places


@pytest.mark.witness("dissect.vmfs")
def test_dissect_reads_the_same(volume: Volume) -> None:
    from dissect.vmfs import lvm, vmfs

    with ExitStack() as stack:
        handles = [
            stack.enter_context(Path(member.device.name).open("rb")) for member in volume.device.members
        ]
        if volume.device.members[0].version:
            theirs = vmfs.VMFS(lvm.LVM(handles).volumes[0].open())
        else:
            theirs = vmfs.VMFS(handles[0])
        assert theirs.label == volume.label
        compared = 0
        for path, descriptor in vmfsimages.walk(volume):
            other = theirs.get(f"/{path}")
            assert other.size == descriptor.length, path
            if descriptor.type is not FileType.SYSTEM:
                assert other.is_dir() == (descriptor.type is FileType.DIRECTORY), path
            assert other.is_rdm() == (descriptor.type is FileType.RDM), path
            if descriptor.type not in (FileType.FILE, FileType.SYMLINK, FileType.SYSTEM):
                continue
            with volume.file(descriptor, path) as device:
                stream = other.open()
                for offset, length in sampled(device):
                    stream.seek(offset)
                    assert stream.read(length) == read(device, offset, length), f"{path} at {offset}"
            compared += 1
        assert compared >= 7


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        pytest.param("vmfs5", "debugvmfs", marks=pytest.mark.witness("debugvmfs")),
        pytest.param("vmfs6", "debugvmfs6", marks=pytest.mark.witness("debugvmfs6")),
    ],
)
def test_vmfs_tools_read_the_same(name: str, tool: str) -> None:
    (path,) = vmfsimages.images(name)
    with open_luns([path]) as volume:
        for wanted in ("small", "big", "normal.vmdk", "rdm.vmdk", "directory/file1", "directory/file100"):
            theirs = run(tool, path, "cat", f"/{wanted}")
            if tool == "debugvmfs6":  # it talks before the data
                theirs = theirs.removeprefix(b"VMFS version: 6\n")
            with volume.file(volume.resolve(wanted), wanted) as device:
                assert theirs == read(device, 0, device.capacity), wanted
        told = run(tool, path, "ls", "/directory").decode()
        names = {line for line in told.splitlines() if line.startswith("file")}
        assert names == set(VmfsStore(volume).list("directory"))


@pytest.mark.parametrize(
    ("names", "size"),
    [
        ("lvm/lvm3.bin", 512),
        ("lvm/span/lvm5-span-1.bin lvm/span/lvm5-span-0.bin", 1024),
        ("lvm/span/lvm6-span-1.bin lvm/span/lvm6-span-0.bin", 1024),
    ],
)
def test_logical_volumes_have_their_known_content(names: str, size: int) -> None:
    """Every mebibyte of them is filled with its number."""
    devices = [open_file(vmfsimages.image(name)) for name in names.split()]
    members = [member for member in map(read_member, devices) if member is not None]
    with LogicalVolume(members) as volume:
        assert volume.capacity == size << 20
        for number in range(size):
            start = number << 20
            assert read(volume, start, 512) == bytes([number % 256]) * 512
            assert read(volume, start + (1 << 20) - 512, 512) == bytes([number % 256]) * 512


@pytest.mark.parametrize("version", [5, 6])
def test_a_volume_of_64_tib_is_mapped_through_all_its_tables(version: int) -> None:
    name = f"lvm/huge/lvm{version}.csv"
    device = MemoryDevice(64 << 40, name=name)
    end = 0
    with vmfsimages.image(name).open(newline="") as file:
        csv.field_size_limit(1 << 28)
        for offset, text in csv.reader(file):
            data = bytes.fromhex(text)
            device.write_from(int(offset), data)
            end = max(end, int(offset) + len(data))
    member = read_member(device)
    assert member is not None
    assert member.runs[0][0] == 0
    with LogicalVolume([member]) as volume:
        assert volume.capacity > 63 << 40
        assert {read(volume, tib << 40, 8) for tib in (0, 16, 32, 48)} != {bytes(8)}


def test_a_missing_member_is_named() -> None:
    first, second = vmfsimages.images("vmfs5-span")
    with pytest.raises(MissingParent, match=r"has 2 members, 1 are here.*QM000"):
        open_luns([first])
    with pytest.raises(MissingParent, match="name all the LUNs"):
        open_luns([second])
    with open_luns([second, first, first]) as volume:  # any order; two paths to one LUN
        assert volume.label == "vmfs5-span"


def test_files_of_two_volumes_are_not_mixed() -> None:
    with pytest.raises(NotADisk, match="no VMFS found"):
        open_luns([vmfsimages.image("lvm/huge/lvm6.csv")])


@pytest.mark.parametrize("name", ["vmfs5", "vmfs6"])
def test_a_thin_disk_opens_through_its_descriptor(name: str) -> None:
    with open_luns(vmfsimages.images(name)) as volume:
        with open_disk(VmfsStore(volume), "normal.vmdk") as disk:
            assert disk.capacity == 69 << 30
            data = [extent for extent in disk.extents() if extent.kind.value == "data"]
            assert [(extent.offset, extent.length) for extent in data] == [(42 << 30, 1 << 20)]
            assert read(disk, 42 << 30, 512) == b"\x42" * 512
            assert read(disk, 0, 4096) == bytes(4096)
        store = VmfsStore(volume)
        assert store.exists("directory/file7")
        assert store.substore("directory").list()[0] == "file1"
        with store.substore("directory").open("file7") as device:
            assert read(device, 0, device.capacity) == b"File 7\n"
        with pytest.raises(OutsideStore, match="symbolic link"):
            store.open("symlink")
        with pytest.raises(NotFound):
            store.open("no-such-file")
        with pytest.raises(NotSupported, match="raw device mapping"):
            store.open("rdm-rdm.vmdk")
        for change in (
            lambda: store.create("x"),
            lambda: store.remove("small"),
            lambda: store.open_writable("small"),
            lambda: store.rename("small", "large"),
            lambda: store.make_folder("x"),
        ):
            with pytest.raises(NotSupported, match="only read"):
                change()


def test_where_a_file_lies_is_told_by_lun_and_offset() -> None:
    """The two places that the notes on VMFS give."""
    for name, path, place in (
        ("vmfs5", "normal-flat.vmdk", 1625292800),
        ("vmfs6", "normal-flat.vmdk", 926941184),
        ("vmfs5", "large-flat.vmdk", 1626341376),
        ("vmfs6", "large-flat.vmdk", 927989760),
    ):
        with open_luns(vmfsimages.images(name)) as volume:
            descriptor = volume.resolve(path)
            runs = [
                run
                for run in volume.blocks(descriptor, path).runs(0, descriptor.length)
                if run.volume_offset is not None
            ]
            assert len(runs) == 1
            assert runs[0].volume_offset is not None
            found = list(volume.device.places(runs[0].volume_offset, runs[0].length))
            assert found == [(str(vmfsimages.image(f"vmfs/{name}.bin")), place, 1 << 20)]
