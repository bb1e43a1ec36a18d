"""Reading an untrusted VMDK never reads a file outside its folder, whatever its names say.

A canary lies outside; everything that is opened is recorded by where it really led.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opened_paths import recorded_opens

import smallimages
from vdkit.block.local import FolderStore
from vdkit.errors import VixError
from vdkit.vmdk import DiskType, create_child, delete_disk, list_files, open_disk
from vdkit.vmdk.admin import grow_disk, rename_disk
from vdkit.vmdk.check import check_disk, repair_disk

SECTORS = 16
CANARY = b"CANARY--" * 64 * SECTORS


class Yard:
    """A folder ``disk`` that may be read, and a canary outside that may not."""

    def __init__(self, root: Path) -> None:
        self.canary = root / "canary.vmdk"
        self.canary.write_bytes(CANARY)
        self.secret_disk = root / "secret-flat.vmdk"
        self.secret_disk.write_bytes(CANARY)
        # A parent outside that would be right in every other way.
        (root / "parent.vmdk").write_bytes(
            smallimages.text("monolithicFlat", f'RW {SECTORS} FLAT "secret-flat.vmdk" 0', cid="00000001")
        )
        self.disk = root / "disk"
        self.disk.mkdir()
        (self.disk / "data.vmdk").write_bytes(b"inside--" * 64 * SECTORS)
        (self.disk / "inside.vmdk").write_bytes(
            smallimages.text("monolithicFlat", f'RW {SECTORS} FLAT "data.vmdk" 0', cid="00000001")
        )
        (self.disk / "sub").mkdir()
        (self.disk / "link.vmdk").symlink_to("../canary.vmdk")
        (self.disk / "linked-folder").symlink_to(root)
        (self.disk / "device.vmdk").symlink_to("/dev/zero")
        (self.disk / "proc").symlink_to("/proc/self")
        os.mkfifo(self.disk / "pipe.vmdk")
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(self.disk / "socket.vmdk"))

    def check(self) -> None:
        assert self.canary.read_bytes() == CANARY
        assert self.secret_disk.read_bytes() == CANARY


@contextmanager
def yard() -> Iterator[Yard]:
    root = Path(tempfile.mkdtemp())
    try:
        yield Yard(root)
    finally:
        shutil.rmtree(root)


def hostile(root: Path) -> list[str]:
    return [
        str(root / "canary.vmdk"),
        "../canary.vmdk",
        "..\\canary.vmdk",
        "sub/../../canary.vmdk",
        "sub\\..\\..\\canary.vmdk",
        "./../canary.vmdk",
        "disk/../../canary.vmdk",
        "linked-folder/canary.vmdk",
        "link.vmdk",
        "device.vmdk",
        "pipe.vmdk",
        "socket.vmdk",
        "sub",
        ".",
        "..",
        "/",
        "proc/environ",
        "/proc/self/environ",
        "/proc/self/root/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "/dev/fd/0",
        "\\\\.\\PhysicalDrive0",
        "\\\\host\\share\\canary.vmdk",
        "C:\\canary.vmdk",
        "c:/canary.vmdk",
        "file:///etc/passwd",
        f"file://{root}/canary.vmdk",
        "http://127.0.0.1:1/x.vmdk",
        "nbd:unix:/run/x.sock",
        "nbd://127.0.0.1/x",
        "json:{}",
        "vsan://52e6",
        "fd:0",
        "~/canary.vmdk",
        "$HOME/canary.vmdk",
        "%2e%2e/canary.vmdk",
        "canary.vmdk",
        "a\tb",
        "x" * 5000,
    ]


def as_flat(name: str) -> bytes:
    return smallimages.text("monolithicFlat", f'RW {SECTORS} FLAT "{name}" 0')


def as_vmfs(name: str) -> bytes:
    return smallimages.text("vmfs", f'RW {SECTORS} VMFS "{name}"')


def as_sparse(name: str) -> bytes:
    return smallimages.text("twoGbMaxExtentSparse", f'RW {SECTORS} SPARSE "{name}"')


def as_delta(name: str) -> bytes:
    return smallimages.text(
        "vmfsSparse", f'RW {SECTORS} VMFSSPARSE "{name}"', parent="00000001", hint="inside.vmdk"
    )


def as_parent(name: str) -> bytes:
    return smallimages.sparse(parent="00000002", hint=name)


def as_second_extent(name: str) -> bytes:
    return smallimages.text("custom", 'RW 8 FLAT "data.vmdk" 0', f'RDONLY 8 FLAT "{name}" 0')


ROLES: list[Callable[[str], bytes]] = [as_flat, as_vmfs, as_sparse, as_delta, as_parent, as_second_extent]


def everything(folder: Path, name: str) -> bytes:
    """Whatever a user may do with a disk that came from somewhere; the bytes that were read."""
    store = FolderStore(folder)
    found = bytearray()

    def read(**how: bool) -> None:
        with open_disk(store, name, **how) as disk:
            for extent in disk.extents():
                data = bytearray(min(extent.length, 1 << 20))
                with_it = memoryview(data)
                disk.read_into(extent.offset, with_it)
                found.extend(data)

    acts: list[Callable[[], object]] = [
        read,
        lambda: read(writable=True),
        lambda: read(recover=True),
        lambda: read(single_link=True),
        lambda: list_files(store, name),
        lambda: list_files(store, name, chain=True),
        lambda: create_child(store, name, "made-child.vmdk", disk_type=DiskType.MONOLITHIC_SPARSE),
        lambda: check_disk(store, name, deep=True),
        lambda: repair_disk(store, name, target="mended.vmdk", accept_loss=True),
        lambda: repair_disk(store, name, in_place=True, accept_loss=True, force=True),
        lambda: grow_disk(store, name, 1 << 20),
        lambda: rename_disk(store, name, "renamed.vmdk"),
        lambda: rename_disk(store, "renamed.vmdk", name),
        lambda: delete_disk(store, name),
    ]
    for act in acts:
        try:
            act()
        except VixError as error:
            assert "\n" not in str(error)
    return bytes(found)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.__name__)
def test_names_that_lead_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Callable[[str], bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    there = Yard(tmp_path)
    for name in hostile(tmp_path):
        (there.disk / "untrusted.vmdk").write_bytes(role(name))
        with recorded_opens(there.disk) as seen:
            found = everything(there.disk, "untrusted.vmdk")
        assert seen, "the recorder sees what is opened"
        assert b"CANARY" not in found, name
        there.check()


def test_the_recorder_sees_an_escape(tmp_path: Path) -> None:
    there = Yard(tmp_path)
    with recorded_opens(there.disk), pytest.raises(AssertionError, match="outside"):
        FolderStore(tmp_path).open("canary.vmdk")
    with recorded_opens(there.disk), pytest.raises(AssertionError, match="built-in"):
        open(there.canary)  # noqa: SIM115


def test_deleting_an_untrusted_disk_deletes_nothing_outside(tmp_path: Path) -> None:
    there = Yard(tmp_path)
    tracked = 'changeTrackPath="../canary.vmdk"'
    for line in (f'RW {SECTORS} FLAT "../canary.vmdk" 0', f'RW {SECTORS} FLAT "link.vmdk" 0'):
        (there.disk / "untrusted.vmdk").write_bytes(smallimages.text("monolithicFlat", line))
        with pytest.raises(VixError):
            delete_disk(FolderStore(there.disk), "untrusted.vmdk")
        there.check()
        assert (there.disk / "untrusted.vmdk").exists()
    (there.disk / "untrusted.vmdk").write_bytes(
        smallimages.text("monolithicFlat", f'RW {SECTORS} FLAT "data.vmdk" 0', tracked)
    )
    with pytest.raises(VixError):
        delete_disk(FolderStore(there.disk), "untrusted.vmdk")
    there.check()
    assert (there.disk / "data.vmdk").exists(), "all names are looked at before anything is removed"


PIECES = st.sampled_from(
    ["..", ".", "/", "\\", "canary.vmdk", "disk", "sub", "link.vmdk", "linked-folder", "proc", "environ", ":",
     "C:", "file:", "json:", "nbd:", "//", "data.vmdk", "pipe.vmdk", "device.vmdk", "%2e", "\u2024", "\uff0e",
     "\u2215", "\uff0f", " ", "~", "\u202e", "parent.vmdk", "dev", "etc", "passwd", "secret-flat.vmdk"]
)  # fmt: skip
NAMES = st.lists(PIECES, min_size=1, max_size=7).map("".join)


@given(
    role=st.sampled_from(ROLES),
    name=NAMES,
    charset=st.sampled_from(["UTF-8", "GBK", "Shift_JIS", "windows-1252", None]),
    extra=st.lists(
        st.one_of(
            NAMES.map(lambda name: f'changeTrackPath="{name}"'),
            NAMES.map(lambda name: f'parentFileNameHint="{name}"'),
            NAMES.map(lambda name: f'RW 4 FLAT "{name}" 0'),
            NAMES.map(lambda name: f'RDONLY 4 SPARSE "{name}" 9'),
            st.just('ddb.uuid = "x"'),
        ),
        max_size=2,
    ),
)
def test_no_descriptor_reads_outside_its_folder(
    role: Callable[[str], bytes], name: str, charset: str | None, extra: list[str]
) -> None:
    with yard() as there:
        data = role(name)
        if role is not as_parent:
            lines = [*extra, *([f'encoding="{charset}"'] if charset else [])]
            data += "".join(line + "\n" for line in lines).encode("utf-8")
        (there.disk / "untrusted.vmdk").write_bytes(data)
        with recorded_opens(there.disk):
            found = everything(there.disk, "untrusted.vmdk")
        assert b"CANARY" not in found
        there.check()
