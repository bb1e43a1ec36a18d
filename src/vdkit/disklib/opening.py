"""Disks in local files: VMDKs of every kind that can be opened, and raw images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from vdkit.block.device import BlockDevice
from vdkit.block.local import FolderStore, open_file
from vdkit.errors import NotFound, UsageError
from vdkit.vmdk import open_disk
from vdkit.vmdk.header import MAGIC, UNFINISHED_MAGIC

#: How files begin that hold a disk of VMware, or describe one.
_MAGICS: Final = (MAGIC, UNFINISHED_MAGIC, b"COWD", b"\xbe\xba\xfe\xca", b"# Disk DescriptorFile")
_SUFFIX: Final = ".vmdk"
#: Bytes of a file that are looked at to tell what it is.
_PROBE: Final = 32


def open_local(
    path: str | Path,
    *,
    writable: bool = False,
    source_format: str | None = None,
    single_link: bool = False,
    allow_paths: Sequence[str] = (),
    ignore_journal: bool = False,
    store: FolderStore | None = None,
) -> BlockDevice:
    """Open a disk in a local file, with all its parents unless ``single_link``.

    ``source_format`` is ``vmdk``, ``raw`` or None to find out: a file that is neither named nor built as a
    VMDK is a raw image. ``allow_paths`` are the folders that its descriptor may lead to besides its own.
    ``store`` is another way to open the files of its folder. ``ignore_journal`` opens an seSparse disk that
    was not closed properly, without what its journal holds. Raises NotFound, NotADisk, OutsideStore,
    ChainError and its kinds.
    """
    place = Path(path)
    match detect(place) if source_format is None else source_format:
        case "raw":
            return open_file(place, writable=writable)
        case "vmdk":
            return open_disk(
                store or FolderStore(place.parent),
                place.name,
                writable=writable,
                single_link=single_link,
                allow_paths=allow_paths,
                ignore_journal=ignore_journal,
            )
        case other:
            raise UsageError(f"{path}: format {other!r} is not known", remedy="use vmdk or raw")


def detect(path: Path) -> Literal["vmdk", "raw"]:
    """What a file is. A name that ends in ``.vmdk`` decides, so that a damaged VMDK is never read as raw."""
    if path.suffix.lower() == _SUFFIX:
        return "vmdk"
    if not path.exists():
        raise NotFound(f"{path}: no such file", remedy="check the path")
    with open_file(path) as device:
        head = bytearray(min(_PROBE, device.capacity))
        device.read_into(0, head)
    return "vmdk" if bytes(head).startswith(_MAGICS) else "raw"
