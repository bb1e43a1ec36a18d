"""A new disk gets its name only once it is complete.

Its files are written under their names with a suffix, and are renamed at the end: data first, the file that
the disk is opened by last. So a process that is killed at any moment, and a machine that loses power, leaves
no half disk under the name that was asked for; what it leaves has the suffix and is written over by the next
attempt. The files of a disk that is replaced go when the new one is there, so that one of the two is always
complete, if need be under names with a suffix. A file that is being written is locked, so that two attempts
at once do not spoil each other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.forward import Forwarding
from vdkit.block.local import FolderStore
from vdkit.block.store import Store
from vdkit.errors import (
    AlreadyExists,
    FileLocked,
    FormatError,
    NotFound,
    NotSupported,
    OutsideStore,
    UsageError,
    VixError,
    from_os_error,
)
from vdkit.vmdk import Disk, DiskInfo, list_files
from vdkit.vmdk.inuse import children_of, refuse_locked
from vdkit.vmdk.link import read_descriptor
from vdkit.vmdk.names import Place

#: Ends the names of files that are not complete.
SUFFIX: Final = ".vdkit-partial"
#: Ends the names of an old disk's files for the moment in which the new one takes theirs.
OLD: Final = ".vdkit-old"
#: The file system keeps no locks: two attempts at once cannot be told apart there.
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class PartialStore:
    """A folder in which what is created has :data:`SUFFIX` until :meth:`publish`.

    A :class:`~vdkit.block.store.Store`: who writes to it uses the final names throughout, so that what is
    written inside the files carries them. ``replaced`` are names of the old disk that may be taken.
    """

    def __init__(self, inner: FolderStore, replaced: frozenset[str] = frozenset()) -> None:
        self._inner = inner
        self._replaced = replaced
        self._claims: dict[str, int] = {}

    @property
    def name(self) -> str:
        return self._inner.name

    def _at(self, name: str) -> str:
        return name + SUFFIX if name in self._claims else name

    def open(self, name: str) -> BlockDevice:
        return self._inner.open(self._at(name))

    def open_writable(self, name: str) -> WritableDevice:
        return self._inner.open_writable(self._at(name), shown=name)

    def create(self, name: str, size: int = 0) -> WritableDevice:
        if name in self._claims or (name not in self._replaced and self._inner.exists(name)):
            raise AlreadyExists(f"{self.name}/{name}: it exists already", remedy=self._remedy())
        descriptor = self._claim(name)
        self._claims[name] = descriptor
        file = self._inner.open_writable(name + SUFFIX, shown=name)
        try:
            file.resize(size)
        except BaseException:
            file.close()
            raise
        return file

    def _remedy(self) -> str:
        """A kill between two renames leaves data under its final name, and the rest with the suffix."""
        left = [name for name in self._inner.list() if name.endswith((SUFFIX, OLD))]
        if not left:
            return "choose another name or remove it first"
        return f"remove it first if it belongs to an attempt that was killed and left {', '.join(left[:4])}"

    def exists(self, name: str) -> bool:
        return name in self._claims or self._inner.exists(name)

    def list(self, folder: str = "") -> list[str]:
        return self._inner.list(folder)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self._inner.rename(self._at(old), self._at(new), replace=replace)
        if old in self._claims and new not in self._claims:
            self._claims[new] = self._claims.pop(old)
        elif old in self._claims:
            os.close(self._claims.pop(old))

    def remove(self, name: str) -> None:
        self._inner.remove(self._at(name))
        if name in self._claims:
            os.close(self._claims.pop(name))

    def make_folder(self, name: str) -> None:
        self._inner.make_folder(name)

    def substore(self, folder: str) -> Store:
        return self._inner.substore(folder)

    # -- claiming --------------------------------------------------------------------------------

    def _claim(self, name: str) -> int:
        """The file with the suffix, empty and locked; one that nobody has locked was left by the dead."""
        path = f"{self.name}/{name}{SUFFIX}"
        while True:
            try:
                descriptor = os.open(
                    path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
                )
            except OSError as error:
                raise from_os_error(error, f"{self.name}/{name}: creating") from error
            try:
                if self._is_mine(descriptor, path):
                    os.ftruncate(descriptor, 0)
                    return descriptor
            except BaseException as error:
                os.close(descriptor)
                if isinstance(error, OSError):
                    raise from_os_error(error, f"{self.name}/{name}: creating") from error
                raise
            os.close(descriptor)

    @staticmethod
    def _is_mine(descriptor: int, path: str) -> bool:
        """Lock it; False if it got its final name, or was removed, before it was locked."""
        opened = os.fstat(descriptor)
        if not stat.S_ISREG(opened.st_mode):
            raise OutsideStore(f"{path}: not a regular file", remedy="remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileLocked(
                f"{path}: somebody is writing this disk", remedy="wait for it or choose another name"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)

    # -- the end ---------------------------------------------------------------------------------

    def publish(self, last: str) -> None:
        """Give every file its name, ``last`` after all others, and remove what is left of the old disk.

        What fails on the way is taken back: then the old disk is there as it was.
        """
        others = sorted(name for name in self._claims if name != last)
        taken = [name for name in others if name in self._replaced]
        # Where old and new share names of data files, no moment may show the old descriptor over new data.
        aside = [name for name in (last, *taken) if self._inner.exists(name)] if taken else []
        try:
            for name in aside:  # what has that name was left by a kill, behind a disk that is complete
                self._inner.rename(name, name + OLD, replace=True)
            for name in [*others, last]:
                self._inner.rename(name + SUFFIX, name, replace=name in self._replaced)
        except BaseException:
            if last in self._replaced and not aside and self._arrived(last):
                raise  # it took the old one's place in one step: the new disk is complete, the old one gone
            self._take_back([last, *others], aside)
            raise
        for name in aside:
            self._inner.remove(name + OLD)
        for name in sorted(self._replaced - set(others) - {last}):
            with suppress(NotFound):
                self._inner.remove(name)

    def _arrived(self, name: str) -> bool:
        """True if it has its own name; asked rather than noted, since a renaming may fail once it is done."""
        return not self._inner.exists(name + SUFFIX)

    def _take_back(self, names: Sequence[str], aside: Sequence[str]) -> None:
        """Undo the renamings that were done, descriptors first out of sight and last to come back.

        If that fails too, all files stay: those of the old disk and those of the new one.
        """
        with suppress(VixError):
            for name in names:
                if self._arrived(name):
                    self._inner.rename(name, name + SUFFIX)
            for name in reversed(aside):
                if not self._inner.exists(name):
                    self._inner.rename(name + OLD, name)
            self.abandon()

    def abandon(self) -> None:
        """Remove every file that has not got its name."""
        for name in list(self._claims):
            with suppress(VixError):
                self._inner.remove(name + SUFFIX)
            os.close(self._claims.pop(name))

    def release(self) -> None:
        """Let go of the locks."""
        while self._claims:
            os.close(self._claims.popitem()[1])


@contextmanager
def publishing(
    target: Path, *, overwrite: bool = False, source: BlockDevice | None = None
) -> Iterator[PartialStore]:
    """``with publishing(path) as store:`` make the disk ``path.name`` in ``store``; it appears at the end.

    If the block fails, an interruption too, nothing of it is left. ``overwrite`` lets it take the place of
    a disk of that name, whose files go only once the new disk is complete; a file that the old disk does not
    name is never touched, and neither is one of ``source``. Raises AlreadyExists, FileLocked and what the
    block raises.
    """
    folder = FolderStore(target.parent)
    replaced: frozenset[str] = frozenset()
    if folder.exists(target.name):
        if not overwrite:
            raise AlreadyExists(
                f"{target}: it exists already", remedy="choose another name or remove it first"
            )
        replaced = old_files(folder, target.name)
        if source is not None:
            _refuse_own(source, folder, replaced)
        _refuse_needed(Place(folder, target.name))
    store = PartialStore(folder, replaced)
    try:
        try:
            yield store
        except BaseException:
            store.abandon()
            raise
        store.publish(target.name)
    finally:
        store.release()


def _refuse_needed(old: Place) -> None:
    """A disk in use is not replaced, and neither is one whose children would be worthless without it."""
    refuse_locked(old)
    try:
        cid = read_descriptor(old)[0].cid
    except FormatError:
        return  # no VMDK, or none that a child could be read through
    children = children_of(old, cid)
    if children:
        raise NotSupported(
            f"{old}: it is the parent of {', '.join(children[:3])}, which would no longer open",
            remedy="choose another name, or delete it first (vdkit delete --force)",
        )


def _refuse_own(source: BlockDevice, folder: FolderStore, replaced: frozenset[str]) -> None:
    """A disk must not be replaced by a copy of itself, nor a parent by what is read through it."""
    for path in _files_of(source):
        for name in replaced:
            old = Path(folder.name, name)
            if old.exists() and path.exists() and old.samefile(path):
                raise UsageError(
                    f"{old}: it belongs to the disk that is copied and cannot be replaced by the copy",
                    remedy="choose another name",
                )


def _files_of(device: BlockDevice) -> list[Path]:
    """Paths of the local files that a device is read from, as far as they are known."""
    while isinstance(device, Forwarding):
        device = device.inner
    return local_files(device.info) if isinstance(device, Disk) else [Path(device.name)]


def local_files(info: DiskInfo) -> list[Path]:
    """Paths of the files of a local disk and its parents; of those beside their descriptors."""
    found = []
    for link in info.links:
        folder = link.name.removesuffix(link.files[0])
        found += [Path(folder, name) for name in link.files]
    return found


def old_files(folder: FolderStore, name: str) -> frozenset[str]:
    """The files that go when the disk ``name`` is replaced; of a file that is no VMDK only itself."""
    try:
        return frozenset(list_files(folder, name))
    except FormatError:
        return frozenset((name,))
