"""Local files, block devices and folders as devices and stores.

A :class:`FolderStore` never leaves its folder: every part of a name is opened relative to the part before it
with ``O_NOFOLLOW``, so a symbolic link, planted at whatever moment, is refused rather than followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from vdkit.block import punch
from vdkit.block.device import BaseWritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.memory import split_name
from vdkit.errors import (
    AlreadyExists,
    CorruptDisk,
    NotFound,
    OutsideStore,
    StoreError,
    UsageError,
    from_os_error,
)

#: Runs of the map that are asked of the kernel per visit, so that a close need not wait long.
_EXTENTS_PER_VISIT = 256
#: The kernel's own limit on buffers per call (IOV_MAX).
_MAX_VECTORS = 1024
#: Bytes of zeroes written per call where no hole can be punched.
_ZEROES = bytes(1 << 20)
#: ioctl that tells the size in bytes of a block device (linux/fs.h).
_BLKGETSIZE64 = 0x80081272
#: A disk image holds a whole machine: private to its owner, as VMware's own tools make it.
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for its other end; it does nothing to a regular file.
_OPEN_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


#: A buffer of this size stays in the second-level cache between being read and being written.
_IO_BATCH = 1 << 18


class FileDevice(BaseWritableDevice):
    """An open file or block device; made by :class:`FolderStore` or :func:`open_file`."""

    def __init__(
        self,
        descriptor: int,
        *,
        name: str,
        capacity: int,
        sector_size: int = 1,
        writable: bool = False,
        is_file: bool = True,
        folder: int | None = None,
    ) -> None:
        """Takes over both descriptors; ``folder`` is a new file's: the first flush makes the name durable."""
        super().__init__(name=name, capacity=capacity, sector_size=sector_size, writable=writable)
        self._descriptor = descriptor
        self._is_file = is_file
        self._folder = folder
        self._folder_lock = threading.Lock()

    @property
    def io_batch(self) -> int:
        return _IO_BATCH

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_vectors(offset, [view])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        for offset, views in _adjacent(pieces):
            self._read_vectors(offset, views)

    def _read_vectors(self, offset: int, views: list[memoryview]) -> None:
        while views:
            try:
                count = os.preadv(self._descriptor, views, offset)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: reading at offset {offset}") from error
            if count == 0:
                raise CorruptDisk(
                    f"{self.name}: the file ends at or before offset {offset}, "
                    f"{self.capacity} bytes were expected",
                    remedy="it was cut short after it was opened or made",
                )
            offset += count
            views = _rest(views, count)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_vectors(offset, [view])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        for offset, views in _adjacent(pieces):
            self._write_vectors(offset, views)

    def _write_vectors(self, offset: int, views: list[memoryview]) -> None:
        while views:
            try:
                count = os.pwritev(self._descriptor, views, offset)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: writing at offset {offset}") from error
            if count == 0:
                raise StoreError(f"{self.name}: writing at offset {offset} made no progress")
            offset += count
            views = _rest(views, count)

    def _write_zeroes(self, offset: int, length: int) -> None:
        for run in list(self._allocated(offset, length)):
            try:
                done = punch.punch_hole(self._descriptor, run.offset, run.length)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: clearing at offset {run.offset}") from error
            if not done:
                self._write_zero_bytes(run.offset, run.length)

    def _allocated(self, offset: int, length: int) -> Iterator[Extent]:
        """What a punch must touch: a file's data, all of a block device."""
        if not self._is_file:
            yield Extent(offset, length, ExtentKind.DATA)
            return
        end = offset + length
        while offset < end:
            for run in self._some_extents(offset, end):
                if run.kind is ExtentKind.DATA:
                    yield run
                offset = run.end

    def _write_zero_bytes(self, offset: int, length: int) -> None:
        zeroes = memoryview(_ZEROES)
        end = offset + length
        while offset < end:
            step = min(end - offset, len(zeroes))
            self._write_vectors(offset, [zeroes[:step]])
            offset += step

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        if not self._is_file:
            yield Extent(offset, length, ExtentKind.DATA)
            return
        end = offset + length
        while offset < end:
            self._enter_call()
            try:
                some = self._some_extents(offset, end)
            finally:
                self._leave_call()
            yield from some
            offset = some[-1].end

    def _some_extents(self, offset: int, end: int) -> list[Extent]:
        """The next few runs of ``[offset, end)``, at least one."""
        found: list[Extent] = []
        while offset < end and len(found) < _EXTENTS_PER_VISIT:
            try:
                data = min(os.lseek(self._descriptor, offset, os.SEEK_DATA), end)
            except OSError as error:
                if error.errno != errno.ENXIO:  # a file system that cannot tell: all of it may be data
                    found.append(Extent(offset, end - offset, ExtentKind.DATA))
                    return found
                self._refuse_short(end)
                data = end
            if data > offset:
                found.append(Extent(offset, data - offset, ExtentKind.ZERO))
            if data == end:
                return found
            try:
                hole = min(os.lseek(self._descriptor, data, os.SEEK_HOLE), end)
            except OSError:  # changed under us
                hole = end
            found.append(Extent(data, hole - data, ExtentKind.DATA))
            offset = hole
        return found

    def _refuse_short(self, end: int) -> None:
        size = os.fstat(self._descriptor).st_size
        if size < end:
            raise CorruptDisk(
                f"{self.name}: the file ends at {size}, {self.capacity} bytes were expected",
                remedy="it was cut short after it was opened or made",
            )

    def _flush(self) -> None:
        try:
            os.fdatasync(self._descriptor)
            with self._folder_lock:
                if self._folder is not None:
                    os.fsync(self._folder)
                    os.close(self._folder)
                    self._folder = None
        except OSError as error:
            raise from_os_error(error, f"{self.name}: flushing") from error

    def _resize(self, capacity: int) -> None:
        if not self._is_file:
            super()._resize(capacity)
        try:
            os.ftruncate(self._descriptor, capacity)
        except OSError as error:
            raise from_os_error(error, f"{self.name}: resizing to {capacity} bytes") from error

    def _close(self) -> None:
        try:
            if self._folder is not None:
                os.close(self._folder)
        finally:
            # A network file system may tell of a failed write only here.
            try:
                os.close(self._descriptor)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: closing") from error


def _adjacent(pieces: Sequence[tuple[int, memoryview]]) -> Iterator[tuple[int, list[memoryview]]]:
    """Pieces that follow each other become one call."""
    start = end = -1
    views: list[memoryview] = []
    for offset, view in pieces:
        if offset != end or len(views) == _MAX_VECTORS:
            if views:
                yield start, views
            start, views = offset, []
            end = offset
        views.append(view)
        end += len(view)
    if views:
        yield start, views


def _rest(views: list[memoryview], count: int) -> list[memoryview]:
    """What is left after ``count`` bytes."""
    for i, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[i + 1 :]] if count else views[i:]
        count -= len(view)
    return []


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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """``path`` must be a folder that exists; it is the user's, so links on the way to it are followed."""
        self._root = str(Path(path).absolute())
        self._prefix: tuple[str, ...] = ()
        os.close(self._open_folder(()))

    @property
    def name(self) -> str:
        return "/".join((self._root, *self._prefix))

    def __repr__(self) -> str:
        return f"<FolderStore {self.name!r}>"

    def open(self, name: str) -> FileDevice:
        return self._open(name, writable=False)

    def open_writable(self, name: str) -> FileDevice:
        return self._open(name, writable=True)

    def _open(self, name: str, *, writable: bool) -> FileDevice:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | _OPEN_FLAGS | os.O_NOFOLLOW
        what = f"{self.name}/{name}"
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
            if not stat.S_ISREG(status.st_mode):
                raise _not_a_file(what, status.st_mode)
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
        made = FolderStore(self._root)
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


def _not_a_file(what: str, mode: int) -> OutsideStore:
    return OutsideStore(f"{what}: {_kind(mode)}, not a file", remedy="only regular files are opened here")
