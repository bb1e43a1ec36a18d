"""Disks on devices: opened only where the caller names the device; and disks that can only be described."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.errors import CorruptDisk, FormatError, NotFound, NotSupported, OutsideStore
from vdkit.vmdk import delete_disk, describe_only, list_files, open_disk

MIB = 1 << 20
SECTORS = MIB // 512
CONTENT = random.Random(6).randbytes(MIB)


def text(create_type: str, *extents: str, extra: str = "", version: int = 1) -> str:
    return (
        f"# Disk DescriptorFile\nversion={version}\nCID=0000abcd\nparentCID=ffffffff\n"
        f'createType="{create_type}"\n{extra}\n'
        + "".join(f"{line}\n" for line in extents)
        + 'ddb.adapterType = "lsilogic"\nddb.geometry.cylinders = "1"\n'
        'ddb.geometry.heads = "64"\nddb.geometry.sectors = "32"\nddb.uuid = "60 00"\n'
    )


def disk(folder: Path, *args: str, **options: str) -> FolderStore:
    folder.mkdir(exist_ok=True)
    (folder / "d.vmdk").write_text(text(*args, **options))
    return FolderStore(folder)


def contents(store: FolderStore, *allowed: str | Path) -> bytes:
    with open_disk(store, "d.vmdk", allow_paths=[str(path) for path in allowed]) as opened:
        data = bytearray(opened.capacity)
        opened.read_into(0, data)
        return bytes(data)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "lun.img").write_bytes(CONTENT)
    return folder / "lun.img"


@pytest.fixture
def loop(image: Path) -> Iterator[Path]:
    """The image as a block device, where this machine lets us make one."""
    tool = shutil.which("losetup")
    if tool is None or os.geteuid() != 0:
        pytest.skip("making a block device takes losetup and root")
    made = subprocess.run(
        [tool, "--find", "--show", str(image)], capture_output=True, text=True, timeout=30, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run([tool, "--detach", str(device)], timeout=30, check=True)


@pytest.mark.parametrize("kind", ["fullDevice", "vmfsRaw"])
def test_an_image_must_be_named(tmp_path: Path, image: Path, kind: str) -> None:
    form = "FLAT" if kind == "fullDevice" else "VMFSRAW"
    store = disk(tmp_path / "vm", kind, f'RW {SECTORS} {form} "{image}"' + (" 0" if form == "FLAT" else ""))
    for allowed in ([], [tmp_path / "vm"], [image.parent / "lun"], [image.parent / "other.img"]):
        with pytest.raises(OutsideStore, match="--allow-path DEVICE"):
            contents(store, *allowed)
    for path in (image, image.parent, tmp_path):
        assert contents(store, path) == CONTENT
    with pytest.raises(NotSupported, match="only read here"):
        open_disk(store, "d.vmdk", writable=True, allow_paths=[str(image)])


def test_a_link_is_followed_only_where_it_is_named_itself(tmp_path: Path, image: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "by-id").symlink_to(image)
    store = disk(tmp_path / "vm", "fullDevice", f'RW {SECTORS} FLAT "{links / "by-id"}" 0')
    with pytest.raises(OutsideStore):
        contents(store, links)
    assert contents(store, links / "by-id") == CONTENT
    assert contents(store, image) == CONTENT


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero", "/proc/self/environ"])
def test_what_is_no_block_device_is_not_opened(tmp_path: Path, name: str) -> None:
    store = disk(tmp_path / "vm", "fullDevice", f'RW 1 FLAT "{name}" 0')
    with pytest.raises(OutsideStore):
        contents(store)
    with pytest.raises((OutsideStore, CorruptDisk)):
        contents(store, name)


def test_a_block_device(tmp_path: Path, loop: Path) -> None:
    store = disk(tmp_path / "vm", "fullDevice", f'RW {SECTORS} FLAT "{loop}" 0')
    with pytest.raises(OutsideStore, match="device"):
        contents(store, tmp_path)
    assert contents(store, loop) == CONTENT
    assert contents(store, loop.parent) == CONTENT
    with open_disk(store, "d.vmdk", allow_paths=[str(loop)]) as opened:
        assert [extent.kind for extent in opened.extents()] == [ExtentKind.DATA]
    flat = disk(tmp_path / "flat", "monolithicFlat", f'RW {SECTORS} FLAT "{loop}" 0')
    with pytest.raises(OutsideStore, match="a device, not a file"):
        contents(flat, loop)  # a type that is made of files is not made of devices


def test_parts_of_a_device(tmp_path: Path, image: Path) -> None:
    (tmp_path / "vm").mkdir()
    table = random.Random(7).randbytes(126 * 512)
    (tmp_path / "vm" / "d-pt.vmdk").write_bytes(table)
    store = disk(
        tmp_path / "vm",
        "partitionedDevice",
        'RDONLY 63 FLAT "d-pt.vmdk" 0',
        f'RW 100 FLAT "{image}" 63',
        "RW 37 ZERO",
        'RDONLY 63 FLAT "d-pt.vmdk" 63',
        f'RW 50 FLAT "{image}" 200 partitionUUID {image}',
        "RW 9 ZERO",
    )
    expected = (
        table[: 63 * 512]
        + CONTENT[63 * 512 : 163 * 512]
        + bytes(37 * 512)
        + table[63 * 512 :]
        + CONTENT[200 * 512 : 250 * 512]
        + bytes(9 * 512)
    )
    assert contents(store, image) == expected
    with pytest.raises(OutsideStore):
        contents(store)
    with open_disk(store, "d.vmdk", allow_paths=[str(image)]) as opened:
        assert opened.info.files == ("d.vmdk", "d-pt.vmdk", "lun.img")
        zeroes = [(e.offset // 512, e.length // 512) for e in opened.extents() if e.kind is ExtentKind.ZERO]
        assert zeroes == [(163, 37), (313, 9)]


def test_deleting_leaves_the_device_alone(tmp_path: Path, image: Path) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "d-pt.vmdk").write_bytes(bytes(63 * 512))
    store = disk(
        tmp_path / "vm", "partitionedDevice", 'RW 63 FLAT "d-pt.vmdk" 0', f'RW 100 FLAT "{image}" 63'
    )
    assert list_files(store, "d.vmdk") == ["d.vmdk", "d-pt.vmdk"]
    delete_disk(store, "d.vmdk", allow_paths=[str(image), str(tmp_path)])
    assert store.list() == [] and image.read_bytes() == CONTENT
    disk(tmp_path / "vm", "vmfsRaw", 'RW 100 VMFSRAW "raw.img"')
    (tmp_path / "vm" / "raw.img").write_bytes(CONTENT)
    delete_disk(store, "d.vmdk")
    assert store.list() == ["raw.img"]


def test_a_device_of_windows_is_not_found_here(tmp_path: Path) -> None:
    store = disk(tmp_path / "vm", "fullDevice", 'RW 10 FLAT "\\\\.\\PhysicalDrive0" 0')
    with pytest.raises(OutsideStore, match="PhysicalDrive0"):
        contents(store, tmp_path)
    with pytest.raises(NotFound, match="PhysicalDrive0"):
        contents(store, "/")


def test_read_only_extents_are_read(tmp_path: Path) -> None:
    (tmp_path / "f.img").write_bytes(CONTENT)
    store = disk(tmp_path, "custom", f'RDONLY {SECTORS} FLAT "f.img" 0')
    assert contents(store) == CONTENT
    disk(tmp_path, "custom", f'NOACCESS {SECTORS} FLAT "f.img" 0')
    with pytest.raises(NotSupported, match="NOACCESS"):
        contents(store)


@pytest.mark.parametrize(
    ("kind", "extent", "text_of"),
    [
        ("vmfsRawDeviceMap", 'RW 2048 VMFSRDM "d-rdm.vmdk"', "the data is on|raw device mapping"),
        ("vmfsPassthroughRawDeviceMap", 'RW 2048 VMFSRDM "d-rdmp.vmdk"', "read the LUN"),
        ("custom", 'RW 2048 VMFSRDM "d-rdm.vmdk"', "raw device mapping"),
        ("vsanSparse", 'RW 2048 VMFS "vsan://52bc6a3c-0000"', "vSAN object"),
        ("custom", 'RW 2048 VSANSPARSE "vsan://52bc6a3c-0000"', "vSAN object"),
        ("vmfs", 'NOACCESS 2048 VMFS "d-flat.vmdk"', "NOACCESS"),
        ("vmfs", 'RW 2048 NEWFORM "d-flat.vmdk"', "'NEWFORM'"),
    ],
)
def test_what_cannot_be_opened_is_described(tmp_path: Path, kind: str, extent: str, text_of: str) -> None:
    store = disk(tmp_path, kind, extent, extra='changeTrackPath="d-ctk.vmdk"', version=3)  # type: ignore[arg-type]
    with pytest.raises(NotSupported, match=text_of) as caught:
        open_disk(store, "d.vmdk")
    info = describe_only(store, "d.vmdk")
    assert (info.create_type, info.capacity, info.adapter) == (kind, MIB, "lsilogic")
    assert info.cid == 0xABCD and info.parent_cid is None and info.uuid == "60 00"
    assert info.geometry is not None and info.geometry.heads == 64
    assert info.change_tracking == "d-ctk.vmdk"
    assert info.notes[0] == f"cannot be opened: {caught.value}"
    assert len(info.files) == 2
    if "VMFSRDM" in extent:
        assert "mapping file" in info.notes[1]


def test_encrypted_disks_are_described(tmp_path: Path) -> None:
    (tmp_path / "d-flat.vmdk").write_bytes(bytes(MIB))
    store = disk(
        tmp_path, "vmfs", f'RW {SECTORS} VMFS "d-flat.vmdk"', extra='encryptionKeys="vmware:key/list/(pair/)"'
    )
    with pytest.raises(NotSupported, match="encrypted"):
        open_disk(store, "d.vmdk")
    info = describe_only(store, "d.vmdk")
    assert info.capacity == MIB and "encrypted" in info.notes[0]


def test_describing_opens_no_extent_and_follows_no_name(tmp_path: Path) -> None:
    (tmp_path / "pipe.img").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe.img")
    store = disk(
        tmp_path,
        "custom",
        'RW 1 FLAT "gone.img" 0',
        'RW 1 FLAT "/etc/passwd" 0',
        'RW 1 FLAT "..\\secret" 0',
        'RW 1 FLAT "pipe.img" 0',
    )
    notes = describe_only(store, "d.vmdk").notes
    assert [word for note in notes for word in ("missing", "outside", "pipe") if word in note] == [
        "missing", "outside", "outside", "pipe",
    ]  # fmt: skip


def test_a_sound_disk_is_described_without_notes() -> None:
    store = MemoryStore("m")
    with store.create("d.vmdk", 0) as file:
        data = text("vmfs", f'RW {SECTORS} VMFS "d-flat.vmdk"').encode()
        file.resize(len(data))
        file.write_from(0, data)
    store.create("d-flat.vmdk", MIB).close()
    info = describe_only(store, "d.vmdk")
    assert info.notes == () and info.files == ("d.vmdk", "d-flat.vmdk")
    with open_disk(store, "d.vmdk") as opened:
        assert opened.info == info


def test_versions_of_descriptors(tmp_path: Path) -> None:
    (tmp_path / "f.img").write_bytes(CONTENT)
    for version in (1, 2, 3, 4):
        store = disk(tmp_path, "custom", f'RW {SECTORS} FLAT "f.img" 0', version=version)  # type: ignore[arg-type]
        assert contents(store) == CONTENT
    for version in (0, 5, 999999999):
        store = disk(tmp_path, "custom", f'RW {SECTORS} FLAT "f.img" 0', version=version)  # type: ignore[arg-type]
        with pytest.raises(FormatError, match=f"version '{version}'"):
            contents(store)
        assert "cannot be opened" in describe_only(store, "d.vmdk").notes[0]


@pytest.mark.parametrize("kind", ["monolithicSpares", "nextGenFlat", ""])
def test_an_unknown_type_is_judged_by_its_extents(tmp_path: Path, kind: str) -> None:
    (tmp_path / "f.img").write_bytes(CONTENT)
    store = disk(tmp_path, kind, f'RW {SECTORS} FLAT "f.img" 0')
    assert contents(store) == CONTENT
    with open_disk(store, "d.vmdk") as opened:
        assert len(opened.info.notes) == 1 and "unknown createType" in opened.info.notes[0]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_marks(tmp_path: Path, end: str, mark: str) -> None:
    (tmp_path / "f.img").write_bytes(CONTENT)
    made = mark + text("2GbMaxExtentFlat", f'rw {SECTORS} flat "f.img" 0', extra='someNewKey = "kept"')
    (tmp_path / "d.vmdk").write_bytes(made.replace("\n", end).encode())
    store = FolderStore(tmp_path)
    assert contents(store) == CONTENT
    with open_disk(store, "d.vmdk", writable=True) as opened:
        opened.write_from(0, b"changed")
    data = (tmp_path / "d.vmdk").read_bytes()
    assert f'someNewKey = "kept"{end}'.encode() in data and data.startswith(mark.encode())
    assert contents(store) == b"changed" + CONTENT[7:]


@pytest.mark.parametrize(
    ("cid", "number"), [("59b560f", 0x59B560F), ("ABCD", 0xABCD), ("1503238553", 0x03238553), ("0", 0)]
)
def test_content_ids_of_other_writers(tmp_path: Path, cid: str, number: int) -> None:
    (tmp_path / "f.img").write_bytes(CONTENT)
    store = disk(tmp_path, "custom", f'RW {SECTORS} FLAT "f.img" 0')
    path = tmp_path / "d.vmdk"
    path.write_text(path.read_text().replace("CID=0000abcd", f"CID={cid}"))
    assert describe_only(store, "d.vmdk").cid == number
    assert contents(store) == CONTENT
