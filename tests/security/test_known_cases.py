"""The known vulnerabilities of programs that read VMDKs: one test per class, by name.

Each builds what the reports describe and shows that it is refused, in bounded memory. Facts: the public
advisories.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from bounds import bounded_memory
from opened_paths import recorded_opens

import smallimages
from smallimages import SECTOR, stored
from vdkit.block.copy import copy
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.errors import CorruptDisk, FormatError, NotADisk, OutsideStore, VixError
from vdkit.vmdk import DiskType, create_disk, open_disk


def read_all(store: MemoryStore | FolderStore, name: str) -> bytes:
    with open_disk(store, name) as disk:
        data = bytearray(disk.capacity)
        disk.read_into(0, data)
        return bytes(data)


def test_cve_2022_47951_a_flat_descriptor_names_a_file_of_the_host(tmp_path: Path) -> None:
    """An uploaded image was a descriptor whose flat extent was the server's own file; converting it leaked
    the file.
    """
    (tmp_path / "image.vmdk").write_bytes(smallimages.text("monolithicFlat", 'RW 1 FLAT "/etc/passwd" 0'))
    target = MemoryStore("out")
    with recorded_opens(tmp_path), pytest.raises(OutsideStore, match="not in the folder"):
        source = open_disk(FolderStore(tmp_path), "image.vmdk")
        copy(source, create_disk(target, "o.vmdk", 512, disk_type=DiskType.MONOLITHIC_FLAT))
    assert target.list() == []


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(
            smallimages.text("streamOptimized", 'RW 1 FLAT "/etc/passwd" 0'), id="a type that was allowed"
        ),
        pytest.param(
            smallimages.text("monolithicSparse", 'RW 1 SPARSE "d.vmdk"', 'RW 1 FLAT "/etc/passwd" 0'),
            id="behind an extent that is harmless",
        ),
        pytest.param(
            smallimages.text("monolithicFlat", 'rdonly 1  vmfs\t"/etc/passwd"'), id="spelled unusually"
        ),
        pytest.param(
            b"\xef\xbb\xbf# Disk DescriptorFile\r\rversion=1\rCID=1\rparentCID=ffffffff\r"
            b'createType="vmfs"\rRW 1 VMFS "/etc/passwd"\r',
            id="byte order mark and old line ends",
        ),
        pytest.param(
            smallimages.text("monolithicFlat", 'RW 1 FLAT "/etc/passwd" 0').ljust(2048, b"\0") + b"KDMV",
            id="NULs behind the text",
        ),
    ],
)
def test_cve_2024_32498_and_40767_the_same_in_disguise(tmp_path: Path, image: bytes) -> None:
    """The first fixes looked at the type only, or at one spelling."""
    (tmp_path / "image.vmdk").write_bytes(image)
    (tmp_path / "d.vmdk").write_bytes(smallimages.sparse())
    with recorded_opens(tmp_path), pytest.raises(VixError):
        read_all(FolderStore(tmp_path), "image.vmdk")


@pytest.mark.parametrize("line", ['RW 1 FLAT "/etc/passwd" 0', 'RW 1 FLAT "e.vmdk" 0'])
def test_an_embedded_descriptor_names_nothing_but_its_own_file(tmp_path: Path, line: str) -> None:
    image = bytearray(smallimages.sparse())
    image[SECTOR : 2 * SECTOR] = smallimages.sector(smallimages.text("monolithicSparse", line))
    (tmp_path / "image.vmdk").write_bytes(image)
    (tmp_path / "e.vmdk").write_bytes(bytes(SECTOR))
    with recorded_opens(tmp_path), pytest.raises(FormatError, match="its own sparse extent"):
        open_disk(FolderStore(tmp_path), "image.vmdk")


def test_cve_2026_2243_a_grain_marker_at_the_end_of_the_file() -> None:
    """A size check that forgot the marker read 12 bytes past the end."""
    whole = smallimages.stream(at_end=False, grains=(0, 3))
    record = smallimages.grain_record(24, b"D" * 8 * SECTOR)
    start = len(whole) - SECTOR - len(record)
    assert whole[start : start + len(record)] == record
    (size,) = struct.unpack_from("<I", record, 8)
    for length in range(start, start + 12 + size):
        with pytest.raises(CorruptDisk):
            read_all(stored({"d.vmdk": whole[:length]}), "d.vmdk")
    # A size that reaches exactly to the end of the file if the marker's 12 bytes are forgotten.
    for extra in range(13):
        image = bytearray(whole[: start + 12 + size])
        struct.pack_into("<I", image, start + 8, size + 1 + extra)
        with pytest.raises(CorruptDisk):
            read_all(stored({"d.vmdk": bytes(image)}), "d.vmdk")


def test_cve_2026_24708_the_data_of_a_flat_disk_is_never_probed(tmp_path: Path) -> None:
    """A guest wrote the header of another format into its raw disk, and the host believed it."""
    store = FolderStore(tmp_path)
    written = smallimages.text("monolithicFlat", 'RW 1 FLAT "/etc/passwd" 0').ljust(16 * SECTOR, b"\0")
    for data in (written, smallimages.sparse().ljust(16 * SECTOR, b"\0")):
        (tmp_path / "data").write_bytes(data[: 16 * SECTOR])
        (tmp_path / "vm.vmdk").write_bytes(smallimages.text("vmfs", 'RW 16 VMFS "data"'))
        assert read_all(store, "vm.vmdk") == data[: 16 * SECTOR]


def test_cve_2026_27211_a_parent_is_a_vmdk_in_its_place(tmp_path: Path) -> None:
    """A parent that is any file at all, or anywhere at all, hands that file to the guest."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "other").write_bytes(bytes(16 * SECTOR))
    (tmp_path / "disk" / "secret").write_bytes(b"a secret of the host".ljust(16 * SECTOR))
    for hint, error in (("../other", OutsideStore), ("secret", NotADisk), ("/etc/passwd", OutsideStore)):
        (tmp_path / "disk" / "c.vmdk").write_bytes(smallimages.sparse(parent="00000001", hint=hint))
        with recorded_opens(tmp_path / "disk"), pytest.raises(error):
            open_disk(FolderStore(tmp_path / "disk"), "c.vmdk")


def test_cloud_hypervisor_8713_links_do_not_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(SECTOR))
    (folder / "there").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    for name in ("there", "up/secret", "../secret", "up/disk/../secret"):
        (folder / "d.vmdk").write_bytes(smallimages.text("vmfs", f'RW 1 VMFS "{name}"'))
        with recorded_opens(folder), pytest.raises(OutsideStore):
            open_disk(FolderStore(folder), "d.vmdk")


def test_cloud_hypervisor_8885_a_descriptor_without_end(tmp_path: Path) -> None:
    """Text that goes on for a terabyte is not read to see whether it ends."""
    path = tmp_path / "d.vmdk"
    path.write_bytes(smallimages.text())
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with bounded_memory(4 << 20), pytest.raises(VixError):
        open_disk(FolderStore(tmp_path), "d.vmdk")
    embedded = smallimages.header(descriptor_sectors=1 << 32, capacity=16)
    with bounded_memory(4 << 20), pytest.raises(VixError):
        open_disk(stored({"d.vmdk": embedded}), "d.vmdk")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("vmfs", 'RW 1 VMFS "/vmfs/volumes/other/vm-flat.vmdk"'),
        ("vmfsRaw", 'RW 1 VMFSRAW "/vmfs/devices/disks/naa.6000"'),
        ("fullDevice", 'RW 1 FLAT "/dev/sda" 0'),
        ("fullDevice", 'RW 1 FLAT "\\\\.\\PhysicalDrive0" 0'),
        ("partitionedDevice", 'RW 1 FLAT "/dev/sda" 63'),
        ("custom", 'RW 1 FLAT "/dev/sda" 0'),
    ],
)
def test_vmdk_has_left_the_building_devices_and_datastores(tmp_path: Path, kind: str, line: str) -> None:
    """Uploaded descriptors gave a guest the disks of its host (ERNW, 2012)."""
    (tmp_path / "d.vmdk").write_bytes(smallimages.text(kind, line))
    with recorded_opens(tmp_path), pytest.raises(VixError):
        open_disk(FolderStore(tmp_path), "d.vmdk")


def test_afl9_a_header_that_asks_for_a_huge_directory() -> None:
    """A fuzzed header of qemu's test suite: other readers allocate what it asks for (the image itself is
    tried in test_sample_images).
    """
    for capacity in (1 << 32, 1 << 45, (1 << 53) - 1, 1 << 53, 1 << 63, (1 << 64) - 1):
        for grain in (1, 2, 128, 1 << 62, 0, 3):
            head = smallimages.header(capacity=capacity, grain=grain)
            image = head + smallimages.sector(smallimages.text()) + bytes(20 * SECTOR)
            with bounded_memory(1 << 20), pytest.raises(VixError):
                open_disk(stored({"d.vmdk": image}), "d.vmdk")
