"""Disks with snapshots on a VMFS volume, their links in two folders: open where allowed, and only there."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from vdkit.block.memory import MemoryStore
from vdkit.errors import NotFound, OutsideStore, VixError
from vdkit.testing.sesparse import write_sesparse
from vdkit.testing.vmfsimage import VmfsImage
from vdkit.vmdk import open_disk
from vdkit.vmdk.create import create_child, create_disk
from vdkit.vmdk.kinds import DiskType
from vdkit.vmdk.template import Parent
from vdkit.vmfs import VmfsStore
from vdkit.vmfs.lvm import uuid_text
from vmfsfixtures import MIB, Fixture, VmfsOptions, read

SIZE = 4 * MIB
HINTS = {"relative": "../base/base.vmdk", "uuid": "/vmfs/volumes/{uuid}/base/base.vmdk",
         "label": "/vmfs/volumes/fixture/base/base.vmdk"}  # fmt: skip


@cache
def files() -> tuple[dict[str, bytes], bytes, bytes]:
    """A base with two kinds of deltas, as bytes by name; what the deltas show."""
    store = MemoryStore()
    base, own = os.urandom(SIZE), os.urandom(4096)
    with create_disk(store, "base.vmdk", SIZE, disk_type=DiskType.VMFS_THIN) as disk:
        disk.write_from(0, base)
        cid = disk.info.links[0].cid
    create_child(store, "base.vmdk", "cowd.vmdk", disk_type=DiskType.VMFS_SPARSE)
    with open_disk(store, "cowd.vmdk", writable=True) as disk:
        disk.write_from(8192, own)
    write_sesparse(store, "se.vmdk", SIZE, {2: own}, parent=Parent(cid=cid, hint="base.vmdk"))
    found = {}
    for name in store.list():
        with store.open(name) as device:
            found[name] = read(device, 0, device.capacity)
    # A write to a child leaves its parent's id alone.
    return found, base, base[:8192] + own + base[12288:]


def volume_with(version: int, hint: str, *, folder: str = "snap") -> Fixture:
    options = VmfsOptions(version, members=(1,))  # type: ignore[arg-type]
    hint = hint.format(uuid=uuid_text(options.uuid("datastore")))
    made, _, _ = files()

    def fill(image: VmfsImage) -> None:
        image.folder("base")
        image.folder(folder)
        image.folder("secret")
        for name, data in made.items():
            place = f"{'base' if name.startswith('base') else folder}/{name}"
            if b"# Disk DescriptorFile" in data[:64] or len(data) < 2000:
                image.small(place, data.replace(b'"base.vmdk"', f'"{hint}"'.encode()))
            else:
                image.data(place, data, order="shuffled")
        for name in ("base.vmdk", "base-flat.vmdk"):
            image.small(f"secret/{name}", made[name][:1000])

    return Fixture(options, fill)


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize("hint", HINTS)
def test_a_chain_over_two_folders(version: int, hint: str) -> None:
    _, _, shown = files()
    fixture = volume_with(version, HINTS[hint])
    with fixture.open() as volume:
        store = VmfsStore(volume)
        for name in ("cowd.vmdk", "se.vmdk"):
            for allowed in (["base"], [f"/vmfs/volumes/{volume.uuid}/base"], ["base/base.vmdk"]):
                with open_disk(store, f"snap/{name}", allow_paths=allowed) as disk:
                    assert read(disk, 0, SIZE) == shown, (name, allowed)
                    assert len(disk.info.links) == 2
            for refused in ([], ["snap"], ["secret"], ["bas"], ["/base"], ["/vmfs/volumes/other/base"]):
                with pytest.raises(OutsideStore, match="--allow-path FOLDER"):
                    open_disk(store, f"snap/{name}", allow_paths=refused)


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize(
    "hint",
    [
        "../secret/base.vmdk",
        "../base/../secret/base.vmdk",
        "/vmfs/volumes/{uuid}/secret/base.vmdk",
        "/vmfs/volumes/{uuid}/base/../secret/base.vmdk",
        "/vmfs/volumes/other/base/base.vmdk",
        "../../etc/passwd",
        "../base/../../../../etc/passwd",
        "/etc/passwd",
        "../base\\\\..\\\\secret\\\\base.vmdk",
    ],
)
def test_no_hint_leads_out_of_the_allowed_folder(version: int, hint: str, tmp_path: Path) -> None:
    fixture = volume_with(version, hint)
    with fixture.open() as volume:
        for name in ("cowd.vmdk", "se.vmdk"):
            with pytest.raises((OutsideStore, NotFound)):
                open_disk(VmfsStore(volume), f"snap/{name}", allow_paths=["base", str(tmp_path)])


@pytest.mark.parametrize("version", [5, 6])
def test_links_on_the_volume_lead_nowhere(version: int) -> None:
    """A descriptor, an extent or a parent that is a symbolic link, even to an allowed place."""
    made, _, _ = files()

    def fill(image: VmfsImage) -> None:
        image.folder("vm")
        image.folder("real")
        image.small("real/base.vmdk", made["base.vmdk"])
        image.data("real/base-flat.vmdk", made["base-flat.vmdk"])
        image.small("vm/base.vmdk", made["base.vmdk"])
        image.symlink("vm/base-flat.vmdk", "../real/base-flat.vmdk")
        image.symlink("vm/link.vmdk", "/etc/passwd")

    with Fixture(VmfsOptions(version, members=(1,)), fill).open() as volume:  # type: ignore[arg-type]
        for name in ("vm/base.vmdk", "vm/link.vmdk"):
            with pytest.raises(VixError, match="symbolic link"):
                open_disk(VmfsStore(volume), name, allow_paths=["real", "vm"])
