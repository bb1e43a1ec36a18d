"""One writer per VM: a lock file that says who holds it.

In a local folder the kernel keeps the lock (``flock``): it ends with its process, however that ends, so what
the file says about an earlier holder only makes the message better. On any other store, the file itself is
the lock: it appears with its content in one atomic rename, and goes away on release. There a holder on this
machine that no longer runs is found by process id, start time and boot id, and taken over; a holder on
another machine is believed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from vdkit.backup.document import Fields, format_time, parse, read_object, write_object
from vdkit.backup.names import LOCK_FILE, PARTIAL
from vdkit.block.local import FolderStore
from vdkit.block.store import Store
from vdkit.errors import AlreadyExists, NotFound, RepositoryLocked, VixError, from_os_error

Notice = Callable[[str], None]

#: Bytes of a lock file.
_MAX_OWNER = 4096
_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_ATTEMPTS = 3


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. ``started`` (kernel ticks) tells a process from a later one with the same id."""

    pid: int
    host: str
    boot: str
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @classmethod
    def me(cls) -> Owner:
        return cls(
            pid=os.getpid(),
            host=platform.node(),
            boot=_boot_id(),
            started=_start_time(os.getpid()),
            since=format_time(datetime.now(UTC)),
            token=secrets.token_hex(8),
        )

    @classmethod
    def parse(cls, data: bytes) -> Owner | None:
        """None if this is not the text of an owner: empty after a release, or cut short."""
        try:
            fields = Fields(parse(data, LOCK_FILE), LOCK_FILE)
            return cls(
                pid=fields.integer("pid"),
                host=fields.text("host"),
                boot=fields.text("boot"),
                started=fields.text("started"),
                since=fields.text("since"),
                token=fields.text("token"),
            )
        except VixError:
            return None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    def is_gone(self) -> bool:
        """True only if the holder certainly does not run any more."""
        if self.host != platform.node():
            return False
        if self.boot != _boot_id():
            return True
        return _start_time(self.pid) != self.started


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """When a process started, in ticks since boot; empty if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The name, in brackets, may hold blanks and brackets: fields are counted after the last one.
    fields = status.rpartition(")")[2].split()
    is_running = len(fields) > 19 and fields[0] not in ("Z", "X")
    return fields[19] if is_running else ""


class Lock(Protocol):
    """Held from the moment it is made."""

    def release(self) -> None:
        """Let go; twice is fine."""


def acquire(store: Store, notice: Notice) -> Lock:
    """Lock the folder of one VM. Raises RepositoryLocked; ``notice`` hears of a lock that was taken over."""
    if isinstance(store, FolderStore):
        lock = _FlockedFile.acquire(store, notice)
        if lock is not None:
            return lock
    return _LockObject.acquire(store, notice)


class _FlockedFile:
    """The file stays for ever: removing a file that others may be about to lock would let two in."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, store: FolderStore, notice: Notice) -> _FlockedFile | None:
        """None where the file system has no locks."""
        what = f"{store.name}/{LOCK_FILE}"
        try:
            descriptor = os.open(what, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise from_os_error(error, f"{what}: opening") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            earlier = os.pread(descriptor, _MAX_OWNER, 0)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, Owner.me().encode(), 0)
        except BlockingIOError as error:
            holder = Owner.parse(os.pread(descriptor, _MAX_OWNER, 0))
            os.close(descriptor)
            raise _locked(what, holder, "wait until it has ended") from error
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_FLOCK:
                return None
            raise from_os_error(error, f"{what}: locking") from error
        if earlier:
            notice(f"{what}: taken over from {Owner.parse(earlier) or 'an unknown holder'}, which is gone")
        return cls(descriptor)

    def release(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):  # the lock ends with the descriptor, whatever the file says
                os.ftruncate(descriptor, 0)
            os.close(descriptor)


class _LockObject:
    def __init__(self, store: Store, owner: Owner) -> None:
        self._store = store
        self._owner: Owner | None = owner

    @classmethod
    def acquire(cls, store: Store, notice: Notice) -> _LockObject:
        what = f"{store.name}/{LOCK_FILE}"
        owner = Owner.me()
        for _ in range(_ATTEMPTS):
            mine = f"{LOCK_FILE}.{owner.token}{PARTIAL}"
            write_object(store, mine, owner.encode())
            try:
                store.rename(mine, LOCK_FILE)
                return cls(store, owner)
            except AlreadyExists:
                store.remove(mine)
            holder = _holder(store)
            if holder is not None and not holder.is_gone():
                raise _locked(
                    what, holder, f"wait until it has ended; if it is certain that it has, remove {what}"
                )
            if holder is None or _push_aside(store, holder, owner):
                notice(f"{what}: taken over from {holder or 'an unknown holder'}, which is gone")
        raise RepositoryLocked(f"{what}: others keep taking it", remedy="try again")

    def release(self) -> None:
        if self._owner is None:
            return
        owner, self._owner = self._owner, None
        holder = _holder(self._store)
        if holder is not None and holder.token == owner.token:
            self._store.remove(LOCK_FILE)


def _holder(store: Store) -> Owner | None:
    """None if nobody holds it any more."""
    try:
        data = read_object(store, LOCK_FILE, _MAX_OWNER)
    except NotFound:
        return None
    if not data:  # released by a process that used flock
        store.remove(LOCK_FILE)
        return None
    holder = Owner.parse(data)
    if holder is None:
        what = f"{store.name}/{LOCK_FILE}"
        raise _locked(what, None, f"if nothing writes to this folder, remove {what}")
    return holder


def _push_aside(store: Store, stale: Owner, owner: Owner) -> bool:
    """Take a dead holder's lock away; of several that try, one does it."""
    aside = f"{LOCK_FILE}.{owner.token}{PARTIAL}"
    try:
        store.rename(LOCK_FILE, aside)
    except NotFound:
        return False
    moved = Owner.parse(read_object(store, aside, _MAX_OWNER))
    if moved is not None and moved.token != stale.token:
        # Somebody else was quicker, and this is the lock of the living: give it back.
        store.rename(aside, LOCK_FILE)
        return False
    store.remove(aside)
    return True


def _locked(what: str, holder: Owner | None, remedy: str) -> RepositoryLocked:
    return RepositoryLocked(f"{what}: held by {holder or 'an unknown process'}", remedy=remedy)
