"""Marks on local files that are open for writing, for whoever is about to rewrite them as a whole.

They are advisory locks of the open file (fcntl(2), F_OFD_SETLK), shared ones, so that nobody is kept out by
them and they end with the process. Facts on qemu: its locks are in bytes 100 to 299, as lslocks(8) shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

#: struct flock of 64-bit Linux: type, whence, start, length, process, padding.
_LAYOUT = struct.Struct("@hhqqi4x")
#: The byte of ours; with qemu's, all that is asked for.
_MINE = 300
_ASKED = (100, 201)


def mark_writer(descriptor: int) -> None:
    """Where the file system knows no locks, nothing is marked."""
    with contextlib.suppress(OSError, AttributeError):
        lock = _LAYOUT.pack(fcntl.F_RDLCK, os.SEEK_SET, _MINE, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)


def is_locked(descriptor: int) -> bool:
    """Whether an open file other than this one has been marked, by us or by qemu."""
    start, length = _ASKED
    try:
        wanted = _LAYOUT.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)
    except (OSError, AttributeError):
        return False
    return bool(_LAYOUT.unpack(answer)[0] != fcntl.F_UNLCK)
