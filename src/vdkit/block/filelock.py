"""Locks on bytes of open files, and marks on those that are open for writing.

All are advisory locks of the open file (fcntl(2), F_OFD_SETLK): they end with the process, however it ends,
and two openings of one file are strangers even within a process. The marks are shared locks, so that nobody
is kept out by them. Facts on qemu: its locks are in bytes 100 to 299, as lslocks(8) shows.
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
        try_lock(descriptor, _MINE, 1, shared=True)


def is_locked(descriptor: int) -> bool:
    """Whether an open file other than this one has been marked, by us or by qemu."""
    try:
        return find_lock(descriptor, *_ASKED) is not None
    except (OSError, AttributeError):
        return False


def try_lock(descriptor: int, start: int, length: int, *, shared: bool = False) -> bool:
    """Lock bytes for this open file, beyond the file's end too; False if another one has any of them.

    Raises OSError where there are no locks, AttributeError where the system has none of this kind.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LAYOUT.pack(kind, os.SEEK_SET, start, length, 0))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as POSIX has it
        return False
    return True


def unlock(descriptor: int, start: int, length: int) -> None:
    """Let go of bytes of this open file; a length of 0 goes to the end of all files."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LAYOUT.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))


def find_lock(descriptor: int, start: int, length: int) -> tuple[int, int] | None:
    """Start and end of a lock of another open file in this range, not always the first; None if free."""
    wanted = _LAYOUT.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind, _, first, size, _ = _LAYOUT.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted))
    if kind == fcntl.F_UNLCK:
        return None
    return first, first + size if size else start + length
