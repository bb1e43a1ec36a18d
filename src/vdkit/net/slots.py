"""A file of numbered slots that all processes of this machine share, each slot held by a lock of the kernel.

The locks alone say what is in use: bytes of the file are locked by whoever holds them (fcntl(2), locks of the
open file), so a process that dies, by SIGKILL too, has let go of everything at that moment, and there is no
daemon, no count that could be wrong, and nothing to repair. What the file contains is believed nowhere: the
process ids in it only make a message better. The file may be empty, garbage or gone.

Every opening is a holder of its own, in one process too. Two lines of slots: *connections*, each a record of
eight bytes with the holder's process id in it, and *units* of memory, which lie far behind the file's end.

The file is made for everybody (mode 0666) in a folder for everybody (sticky, like ``/tmp``). Symbolic links
are not followed, only a regular file is used, and a file with two names is not written to. The last holder
removes it; whoever has locked something in a file that has been removed meanwhile starts again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vdkit.block.filelock import find_lock, try_lock, unlock
from vdkit.errors import AccessDenied, StoreError, from_os_error
from vdkit.net.limits import UNIT, HostLimits

#: Where the units begin, and the one byte that those lock who have less than their share.
_UNITS: Final = 1 << 20
_HUNGRY: Final = 1 << 40
#: A byte that nobody locks but who locks the whole file, to take it away.
_LAST: Final = 1 << 41
_RECORD: Final = struct.Struct("<q")
#: Largest process id of any Linux.
_MAX_PID: Final = 1 << 22
#: Times that a file is opened that others make and remove meanwhile.
_ATTEMPTS: Final = 50
#: Seconds until a file that is just being made has one name only.
_MOMENT: Final = 0.002

#: Folders that exist for this, in the order of preference; on some systems the first one is root's only.
_FOLDERS: Final = ("/run/lock", "/dev/shm", "/tmp")


@dataclass(frozen=True, slots=True)
class Usage:
    """What is held: connections, bytes, and the processes as far as they can be told."""

    connections: int
    memory: int
    pids: tuple[int, ...]


def shared_folder() -> Path | None:
    """The folder that every user of this machine may make files in; the same one for all of them."""
    for name in _FOLDERS:
        try:
            mode = Path(name).stat().st_mode
        except OSError:
            continue
        # Not "may I write here": root may everywhere, and would be alone there.
        if stat.S_ISDIR(mode) and mode & stat.S_ISVTX and mode & stat.S_IWOTH:
            return Path(name)
    return None


class Slots:
    """One holder: a connection, its floor, and any number of other units."""

    def __init__(self, path: Path, limits: HostLimits) -> None:
        """Open the file, made if need be. Raises StoreError and its kinds; see :meth:`enter`."""
        self._path, self._limits = path, limits
        self._per_floor = limits.floor // UNIT
        self._first_common = self._per_floor * limits.connections
        self._count = limits.memory // UNIT
        self._descriptor = _open(path)
        #: In the order of taking: the last ones go first, so that neighbours stay together.
        self._held: dict[int, None] = {}
        self._next = self._first_common
        #: A connection was free, and others who were told of other limits had its memory.
        self.short_of_memory = False

    def enter(self) -> bool:
        """Get a connection with its floor; False if there is none, or the file has been removed."""
        for number in range(self._limits.connections):
            place, first = number * _RECORD.size, number * self._per_floor
            if not try_lock(self._descriptor, place, _RECORD.size):
                continue
            if try_lock(self._descriptor, _UNITS + first, self._per_floor):
                if not self._still_there():
                    break
                self._sign(place)
                return True
            self.short_of_memory = True
            unlock(self._descriptor, place, _RECORD.size)
        unlock(self._descriptor, 0, 0)
        return False

    # -- units -----------------------------------------------------------------------------------

    @property
    def units(self) -> int:
        """Held beyond the floor."""
        return len(self._held)

    def take(self, count: int) -> bool:
        """Get that many more units, all or none. It tries each free place once and never waits."""
        got: list[int] = []
        position, tried, span = self._next, 0, self._count - self._first_common
        while len(got) < count and tried < span:
            if position >= self._count:
                position = self._first_common
            run = self._run(position, min(count - len(got), span - tried), got)
            if not run:
                step = 1
            elif taken := self._lock_run(position, run):
                got += range(position, position + taken)
                step = taken
            elif (found := find_lock(self._descriptor, _UNITS + position, 1)) is not None:
                # Neighbours that one holder has are one lock: a step over all of them.
                step = max(1, min(found[1] - _UNITS, self._count) - position)
            else:
                step = 1
            position, tried = position + step, tried + step
        if len(got) < count:
            self._unlock(got)
            return False
        self._held.update(dict.fromkeys(got))
        return True

    def _run(self, position: int, most: int, got: Sequence[int]) -> int:
        """How many units from ``position`` on, up to ``most``, are not ours already."""
        run = 0
        while run < most and position + run < self._count:
            if position + run in self._held or position + run in got:
                break
            run += 1
        return run

    def _lock_run(self, position: int, run: int) -> int:
        """Lock neighbours in one call if they are free, else one alone; how many it got."""
        if try_lock(self._descriptor, _UNITS + position, run):
            return run
        return int(run > 1 and try_lock(self._descriptor, _UNITS + position, 1))

    def give(self, count: int) -> None:
        """Let go of that many units; they are where the next search begins."""
        gone = [self._held.popitem()[0] for _ in range(count)]
        self._unlock(gone)
        if gone:
            self._next = min(gone)

    def _unlock(self, units: Sequence[int]) -> None:
        """Neighbours in one call."""
        ordered = sorted(units)
        start = 0
        for index, unit in enumerate(ordered):
            if index + 1 == len(ordered) or ordered[index + 1] != unit + 1:
                unlock(self._descriptor, _UNITS + ordered[start], index + 1 - start)
                start = index + 1

    # -- those who have little -------------------------------------------------------------------

    def complain(self, hungry: bool) -> None:
        """Tell those who have more than their share that we have less and want some, or no longer."""
        if hungry:
            try_lock(self._descriptor, _HUNGRY, 1, shared=True)
        else:
            unlock(self._descriptor, _HUNGRY, 1)

    def others_complain(self) -> bool:
        return find_lock(self._descriptor, _HUNGRY, 1) is not None

    def share(self) -> int:
        """Units of each if all that are connected had the same of what the floors leave."""
        others = sum(self._is_used(number) for number in range(self._limits.connections))
        return (self._count - self._first_common) // (1 + others)

    # -- who else --------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """What all other holders have, as far as our limits reach."""
        used = [number for number in range(self._limits.connections) if self._is_used(number)]
        units = sum(find_lock(self._descriptor, _UNITS + unit, 1) is not None for unit in range(self._count))
        pids = sorted({pid for number in used if (pid := self._signature(number)) is not None})
        return Usage(len(used), units * UNIT, tuple(pids))

    def is_going(self) -> bool:
        """True while the last holder takes the file away: it has all of it for a moment."""
        return find_lock(self._descriptor, _LAST, 1) is not None or not self._still_there()

    def _is_used(self, number: int) -> bool:
        return find_lock(self._descriptor, number * _RECORD.size, _RECORD.size) is not None

    def _sign(self, place: int) -> None:
        with contextlib.suppress(OSError):  # a full disk must not keep anybody from working
            if os.fstat(self._descriptor).st_nlink == 1:
                os.pwrite(self._descriptor, _RECORD.pack(os.getpid()), place)

    def _signature(self, number: int) -> int | None:
        try:
            data = os.pread(self._descriptor, _RECORD.size, number * _RECORD.size)
        except OSError:
            return None
        if len(data) != _RECORD.size:
            return None
        pid = int(_RECORD.unpack(data)[0])
        return pid if 0 < pid <= _MAX_PID and Path(f"/proc/{pid}").exists() else None

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of everything; the last one takes the file away. Twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            # Not left to the closing: a forked child may have the same opening.
            unlock(descriptor, 0, 0)
            if try_lock(descriptor, 0, 0) and _is_at(self._path, descriptor):
                self._path.unlink()
        except OSError:
            pass  # somebody else's file, in a folder where only they may remove it
        finally:
            os.close(descriptor)

    def abandon(self) -> None:
        """In a forked child: close, but let nothing go, for it is the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _still_there(self) -> bool:
        return _is_at(self._path, self._descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def _open(path: Path) -> int:
    for attempt in range(_ATTEMPTS):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            _make(path)
            continue
        except OSError as error:
            raise from_os_error(error, f"{path}: opening the shared limits of a host") from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise AccessDenied(f"{path}: not a regular file", remedy="remove it")
        if status.st_nlink != 1 and attempt < _ATTEMPTS // 2:
            # Just made, or just removed.
            os.close(descriptor)
            time.sleep(_MOMENT)
            continue
        return descriptor
    raise StoreError(f"{path}: others keep making and removing it", remedy="try again")


def _make(path: Path) -> None:
    """It appears with the mode that all need: between two steps nobody could open it."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o666)  # whatever the umask is
            # A file system without such locks is told here, not at the first disk.
            try_lock(descriptor, 0, 1)
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.close(descriptor)
            draft.unlink()
    except OSError as error:
        raise from_os_error(error, f"{path}: making the shared limits of a host") from error
    except AttributeError as error:
        raise StoreError(f"{path}: this system has no locks of open files") from error
