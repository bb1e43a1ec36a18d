"""Two system calls that Python does not offer: punching a hole, and renaming without replacing.

Flags and signatures: fallocate(2), renameat2(2). Both are reached through glibc.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_RENAME_NOREPLACE = 1
#: The file system or kernel cannot do it; another way is needed.
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes  # loaded on first use: most runs never punch

    return ctypes.CDLL(None, use_errno=True)


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Make the range read as zeroes and give its space back; False if that cannot be done here."""
    import ctypes

    function = getattr(_libc(), "fallocate", None)
    if function is None:
        return False
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    while function(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def rename_exclusive(old_folder: int, old: str, new_folder: int, new: str) -> None:
    """Rename in one atomic step that fails with ``EEXIST`` where the new name is taken."""
    import ctypes

    function = getattr(_libc(), "renameat2", None)
    if function is not None:
        names = os.fsencode(old), os.fsencode(new)
        if function(old_folder, names[0], new_folder, names[1], _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _CANNOT:
            raise OSError(code, os.strerror(code))
    # A hard link is exclusive too. Dying between the two steps leaves both names, each of them complete.
    os.link(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder, follow_symlinks=False)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(old, dir_fd=old_folder)
