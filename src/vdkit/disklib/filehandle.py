"""Handles of disks in local files, buffered or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vdkit.block.device import BlockDevice
from vdkit.block.direct import DirectFile, DirectStore, cannot, open_file_direct
from vdkit.block.local import FolderStore
from vdkit.disklib.handle import DiskHandle, Origin
from vdkit.disklib.opening import detect, open_local


def open_file_handle(
    path: str | Path,
    *,
    writable: bool,
    single_link: bool = False,
    unbuffered: bool = False,
    allow_paths: Sequence[str] = (),
    ignore_journal: bool = False,
) -> DiskHandle:
    """Open a disk in a local file. Raises as :func:`~vdkit.disklib.opening.open_local`."""
    place = Path(path)
    kind = detect(place)
    if unbuffered and kind == "raw":
        raw = open_file_direct(place, writable=writable)
        refused = () if isinstance(raw, DirectFile) else (cannot(raw),)
        return DiskHandle(raw, "file", str(path), local=True, notes=refused)
    if kind == "raw":
        raw_device = open_local(place, source_format="raw", writable=writable)
        return DiskHandle(raw_device, "file", str(path), local=True)
    store: FolderStore = DirectStore(place.parent) if unbuffered else FolderStore(place.parent)

    def opened() -> BlockDevice:
        return open_local(
            place,
            source_format="vmdk",
            writable=writable,
            single_link=single_link,
            allow_paths=allow_paths,
            ignore_journal=ignore_journal,
            store=store,
        )

    def reopened() -> BlockDevice:
        """After an attach a single link has a parent: it is opened with all of them."""
        return open_local(
            place, source_format="vmdk", writable=writable, allow_paths=allow_paths, store=store
        )

    device = opened()
    origin = Origin(store, place.name, reopened if single_link else opened, tuple(allow_paths))
    notes = tuple(store.notes) if isinstance(store, DirectStore) else ()
    return DiskHandle(device, "file", str(path), origin=origin, local=True, notes=notes)
