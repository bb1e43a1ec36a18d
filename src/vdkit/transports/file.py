"""The ``file`` transport: a disk in a local folder. The opener, handed in, knows the formats."""

from __future__ import annotations

from collections.abc import Callable

from vdkit.block.device import BlockDevice

#: Opens a local path; the second argument says whether it will be written.
Opener = Callable[[str, bool], BlockDevice]


def open_file(path: str, opener: Opener, *, writable: bool = False) -> BlockDevice:
    """The disk at a local ``path``, opened by ``opener``; the caller closes it."""
    return opener(path, writable)
