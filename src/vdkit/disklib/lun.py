"""LUNs by path: the volume on them, and the disks in it."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from vdkit.block.device import BlockDevice
from vdkit.block.direct import open_file_direct
from vdkit.block.forward import close_all
from vdkit.block.local import open_file
from vdkit.vmfs import Volume, open_volume


def open_luns(paths: Sequence[str | Path]) -> Volume:
    """The one volume on all these devices or images, for reading only.

    Block devices are read past the page cache, which knows nothing of what hosts write meanwhile. Raises
    NotADisk, Ambiguous, MissingParent, UnsupportedVersion, CorruptDisk, and what opening a file raises.
    """
    devices: list[BlockDevice] = []
    try:
        for path in paths:
            devices.append(_open(Path(path)))
    except BaseException:
        close_all(devices)
        raise
    return open_volume(devices)


def _open(path: Path) -> BlockDevice:
    try:
        block_device = stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        block_device = False  # opening it says what is wrong
    return open_file_direct(path) if block_device else open_file(path)
