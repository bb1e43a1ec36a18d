"""Local files, block devices and folders as devices and stores.

A :class:`FolderStore` never leaves its folder: every part of a name is opened relative to the part before it
with ``O_NOFOLLOW``, so a symbolic link, planted at whatever moment, is refused rather than followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vdkit.block import punch
from vdkit.block.file import FileDevice
from vdkit.block.filelock import is_locked, mark_writer
from vdkit.block.memory import split_name
from vdkit.errors import (
    AlreadyExists,
    NotFound,
    OutsideStore,
    StoreError,
    UsageError,
    from_os_error,
)

#: ioctl that tells the size in bytes of a block device (linux/fs.h).
_BLKGETSIZE64 = 0x80081272
#: A disk image holds a whole machine: private to its owner, as VMware's own tools make it.
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for its other end; it does nothing to a regular file.
_OPEN_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK

__all__ = ["FileDevice", "FolderStore", "open_file"]


def open_file(path: str | os.PathLike[str], *, writable: bool = False) -> FileDevice:
    """A raw disk image or block device that the user named; symbolic links are followed.

    A block device's capacity is asked of the kernel; a plain file's is its size.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, (os.O_RDWR if writable else os.O_RDONLY) | _OPEN_FLAGS)
    except OSError as error:
        raise from_os_error(error, f"{name}: opening") from error
    try:
        status = os.fstat(descriptor)
        is_file = stat.S_ISREG(status.st_mode)
        if is_file:
            capacity = status.st_size
        elif stat.S_ISBLK(status.st_mode):
            capacity = _block_device_size(descriptor, name)
        else:
            raise UsageError(f"{name}: {_kind(status.st_mode)}, not a file or a block device")
        return FileDevice(
            descriptor, name=name, capacity=capacity, sector_size=512, writable=writable, is_file=is_file
        )
    except BaseException:
        os.close(descriptor)
        raise


def _block_device_size(descriptor: int, name: str) -> int:
    import fcntl

    answer = bytearray(8)
    try:
        fcntl.ioctl(descriptor, _BLKGETSIZE64, answer)
    except OSError as error:
        raise from_os_error(error, f"{name}: asking for the size of the block device") from error
    return int.from_bytes(answer, "little")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


class FolderStore:
    """A local folder as a :class:`~vdkit.block.store.Store`."""

    def __init__(self, path: str | os.PathLike[str], *, devices: bool = False) -> None:
        """``path`` must be a folder that exists; it is the user's, so links on the way to it are followed.

        ``devices``: block devices in it are opened too, as whole disks; nothing else about them is allowed.
        """
        self._root = str(Path(path).absolute())
        self._devices = devices
        self._prefix: tuple[str, ...] = ()
        os.close(self._open_folder(()))

    @property
    def name(self) -> str:
        return "/".join((self._root, *self._prefix))

    def __repr__(self) -> str:
        return f"<FolderStore {self.name!r}>"

    def open(self, name: str) -> FileDevice:
        return self._open(name, writable=False)

    def open_writable(self, name: str, *, shown: str | None = None) -> FileDevice:
        """``shown`` is what messages call it, for a file that does not have its final name yet."""
        return self._open(name, writable=True, shown=shown)

    def _open(self, name: str, *, writable: bool, shown: str | None = None) -> FileDevice:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | _OPEN_FLAGS | os.O_NOFOLLOW
        what = f"{self.name}/{shown or name}"
        with self._parent_of(name) as (folder, base):
            try:
                descriptor = os.open(base, flags, dir_fd=folder)
            except OSError as error:
                self._refuse_special(folder, base, what)
                if error.errno == errno.EISDIR:
                    raise _not_a_file(what, stat.S_IFDIR) from error
                raise from_os_error(error, f"{what}: opening") from error
        try:
            status = os.fstat(descriptor)
            if self._devices and stat.S_ISBLK(status.st_mode):
                size = _block_device_size(descriptor, what)
                return FileDevice(
                    descriptor, name=what, capacity=size, sector_size=512, writable=writable, is_file=False
                )
            if not stat.S_ISREG(status.st_mode):
                raise _not_a_file(what, status.st_mode)
            if writable:
                mark_writer(descriptor)
            return FileDevice(descriptor, name=what, capacity=status.st_size, writable=writable)
        except BaseException:
            os.close(descriptor)
            raise

    def create(self, name: str, size: int = 0) -> FileDevice:
        what = f"{self.name}/{name}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS | os.O_NOFOLLOW
        with self._parent_of(name) as (folder, base):
            try:
                descriptor = os.open(base, flags, _FILE_MODE, dir_fd=folder)
            except OSError as error:
                raise from_os_error(error, f"{what}: creating") from error
            try:
                os.ftruncate(descriptor, size)
                mark_writer(descriptor)
                return FileDevice(descriptor, name=what, capacity=size, writable=True, folder=os.dup(folder))
            except BaseException as error:
                os.close(descriptor)
                os.unlink(base, dir_fd=folder)
                if isinstance(error, OSError):
                    raise from_os_error(error, f"{what}: creating with {size} bytes") from error
                raise

    def exists(self, name: str) -> bool:
        try:
            with self._parent_of(name) as (folder, base):
                mode = os.lstat(base, dir_fd=folder).st_mode
        except (NotFound, FileNotFoundError):
            return False
        except OSError as error:
            raise from_os_error(error, f"{self.name}/{name}: looking") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise _not_a_file(f"{self.name}/{name}", mode)
        return True

    def is_written(self, name: str) -> bool:
        """Whether somebody, in this process or another, has a file open for writing and says so."""
        with self._parent_of(name) as (folder, base):
            try:
                descriptor = os.open(base, os.O_RDONLY | _OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
            except OSError as error:
                raise from_os_error(error, f"{self.name}/{name}: opening") from error
            try:
                return is_locked(descriptor)
            finally:
                os.close(descriptor)

    def list(self, folder: str = "") -> list[str]:
        parts = split_name(self.name, folder) if folder else ()
        descriptor = self._open_folder(parts)
        try:
            names = []
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        names.append(f"{entry.name}/")
                    elif entry.is_file(follow_symlinks=False):
                        names.append(entry.name)
            return sorted(names)
        except OSError as error:
            raise from_os_error(error, f"{self.name}/{folder}: listing") from error
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        what = f"{self.name}/{old}: renaming to {new}"
        with self._parent_of(old) as (old_folder, old_base), self._parent_of(new) as (new_folder, new_base):
            try:
                # The bytes first: a name must never become visible before what it names.
                if replace:
                    _take_over_owner(old_folder, old_base, new_folder, new_base)
                self._sync_entry(old_folder, old_base, f"{self.name}/{old}")
                if replace:
                    os.rename(old_base, new_base, src_dir_fd=old_folder, dst_dir_fd=new_folder)
                else:
                    punch.rename_exclusive(old_folder, old_base, new_folder, new_base)
                os.fsync(new_folder)
                os.fsync(old_folder)
            except OSError as error:
                if error.errno in (errno.EISDIR, errno.ENOTEMPTY):
                    raise AlreadyExists(f"{what}: a folder of that name exists") from error
                raise from_os_error(error, what) from error

    def _sync_entry(self, folder: int, base: str, what: str) -> None:
        try:
            descriptor = os.open(base, os.O_RDONLY | _OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
        except OSError:
            self._refuse_special(folder, base, what)
            raise
        try:
            mode = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise _not_a_file(what, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        what = f"{self.name}/{name}"
        with self._parent_of(name) as (folder, base):
            try:
                mode = os.lstat(base, dir_fd=folder).st_mode
                if stat.S_ISDIR(mode):
                    os.rmdir(base, dir_fd=folder)
                elif stat.S_ISREG(mode):
                    os.unlink(base, dir_fd=folder)
                else:
                    raise _not_a_file(what, mode)
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    raise StoreError(f"{what}: the folder is not empty") from error
                raise from_os_error(error, f"{what}: removing") from error

    def make_folder(self, name: str) -> None:
        what = f"{self.name}/{name}"
        descriptor = self._open_root()
        for part in (*self._prefix, *split_name(self.name, name)):
            try:
                os.mkdir(part, _FOLDER_MODE, dir_fd=descriptor)
                os.fsync(descriptor)
            except FileExistsError:
                pass
            except OSError as error:
                os.close(descriptor)
                raise from_os_error(error, f"{what}: making the folder") from error
            descriptor = self._step(descriptor, part, what)
        os.close(descriptor)

    def substore(self, folder: str) -> FolderStore:
        parts = split_name(self.name, folder)
        os.close(self._open_folder(parts))
        made = FolderStore(self._root, devices=self._devices)
        made._prefix = (*self._prefix, *parts)
        return made

    # -- names -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _parent_of(self, name: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that ``name`` lies in, and the last part of the name."""
        *folders, base = split_name(self.name, name)
        descriptor = self._open_folder(tuple(folders))
        try:
            yield descriptor, base
        finally:
            os.close(descriptor)

    def _open_root(self) -> int:
        try:
            return os.open(self._root, _FOLDER_FLAGS)
        except OSError as error:
            raise from_os_error(error, f"{self._root}: opening the folder") from error

    def _open_folder(self, parts: tuple[str, ...]) -> int:
        descriptor = self._open_root()
        for part in (*self._prefix, *parts):
            descriptor = self._step(descriptor, part, "/".join((self.name, *parts)))
        return descriptor

    def _step(self, descriptor: int, part: str, what: str) -> int:
        """From a folder into one inside it; the outer descriptor is closed in any case."""
        try:
            return os.open(part, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
        except OSError as error:
            self._refuse_special(descriptor, part, what)
            raise from_os_error(error, f"{what}: opening the folder {part}") from error
        finally:
            os.close(descriptor)

    @staticmethod
    def _refuse_special(folder: int, base: str, what: str) -> None:
        """After a failed open: a link, pipe or the like gets a message of its own."""
        try:
            mode = os.lstat(base, dir_fd=folder).st_mode
        except OSError:
            return
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise _not_a_file(what, mode)


def _take_over_owner(folder: int, base: str, replaced_folder: int, replaced: str) -> None:
    """Who could use the file that goes can use the one that takes its place; as far as the system lets us."""
    try:
        before = os.lstat(replaced, dir_fd=replaced_folder)
        now = os.lstat(base, dir_fd=folder)
    except OSError:
        return  # nothing is replaced, or the renaming will say why not
    if not stat.S_ISREG(before.st_mode) or not stat.S_ISREG(now.st_mode):
        return
    if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
        try:
            os.chown(base, before.st_uid, before.st_gid, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return  # private to its new owner: the old mode might open it to another group
    descriptor = os.open(base, os.O_RDONLY | _OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
    try:
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode) & 0o777)
    finally:
        os.close(descriptor)


def _not_a_file(what: str, mode: int) -> OutsideStore:
    return OutsideStore(f"{what}: {_kind(mode)}, not a file", remedy="only regular files are opened here")
