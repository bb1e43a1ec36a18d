"""The memory and the connections of a host, shared by all processes of this machine.

A host that is asked for more than it bears fails requests, stalls or hangs, and says so late or not at all.
So what it bears is counted here, before anything is sent: every connection holds a :class:`Lease`. How the
processes share is told in :mod:`vdkit.net.slots`; how much there is, in :mod:`vdkit.net.limits`.

A lease holds one of the connections and with it a *floor* of memory, set aside for that connection only: a
connection that has been let in can always send. What the floors leave is common. A lease takes units of it as
requests are sent, without ever waiting, and keeps them while it is busy, which saves the calls. Who gets
nothing while having less than an equal share says so: until it has got some, nobody above an equal share
takes more, and they give back what is answered. So large windows shrink by themselves. At any moment, with
``requested`` what :meth:`Lease.take` has granted and :meth:`Lease.give` not taken back:

- the sum of ``requested`` over all leases is at most the host's memory, of leases at most its connections;
- a lease of which nothing is requested is granted any request up to its floor;
- when all leases have ended, by closing or by the death of their processes, everything is free.

The waiting is for a connection only, while a lease is made: visible, cancellable and with a deadline.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import random
import re
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from vdkit.block.workers import CancelToken
from vdkit.errors import HostOutOfMemory, StoreError, TooManyConnections, UsageError, VixError
from vdkit.net.connect import host_port, unbracket, without_zone
from vdkit.net.limits import MAX_MEMORY, UNIT, HostLimits, NfcServer
from vdkit.net.slots import Slots, Usage, shared_folder

_log = logging.getLogger(__name__)

#: Seconds that a lease is waited for by default: VDDK's time for a request.
DEFAULT_WAIT: Final = 180.0
#: Seconds between two tries, before the jitter.
PAUSE: Final = 0.1
#: Seconds after which those who wait are told again.
TELL_SECONDS: Final = 30.0
#: Seconds until a file that its last holder takes away is looked for again, and for how long at most when no
#: time is left: with many coming and going it may happen again and again.
_BLINK: Final = 0.001
_MOMENT: Final = 1.0
#: Seconds without another try after one that found nothing free, doubled each time up to the second number: a
#: search costs a tenth of a millisecond where many share.
_REST: Final = 0.005
_LONGEST_REST: Final = 0.16
#: Seconds that a count of leases is believed.
_COUNT_SECONDS: Final = 0.2
#: Characters of a host's name that are shown in the name of its file.
_MAX_SHOWN: Final = 60
#: Processes that a message names.
_MAX_NAMED: Final = 8

_KEYS: Final = "host_connections or host_memory (--host-connections, --host-memory)"


class Lease(Protocol):
    """A connection's part of what a host bears. Any method may be called from any thread."""

    @property
    def floor(self) -> int:
        """Bytes of the largest request that is always granted while nothing else is requested."""

    def take(self, size: int) -> bool:
        """Reserve memory for a request of ``size`` bytes that is about to be sent; never waits."""

    def give(self, size: int) -> None:
        """A request of ``size`` bytes has been answered or given up."""

    def close(self) -> None:
        """Let everything go; twice is fine. Nothing is granted any more."""


class HostLease:
    """Made by :meth:`HostBudget.lease`. ``waited`` is for how long, in seconds."""

    def __init__(self, slots: Slots, limits: HostLimits, waited: float, clock: Callable[[], float]) -> None:
        self._slots: Slots | None = slots
        self._floor = limits.floor
        self._clock = clock
        self._mutex = threading.Lock()
        self._requested = 0
        self._hungry = False
        self._rest, self._rested = _REST, 0.0
        self._share = (0, -_COUNT_SECONDS)
        self.waited = waited
        _leases.add(self)

    @property
    def floor(self) -> int:
        return self._floor

    @property
    def requested(self) -> int:
        """Bytes granted and not given back."""
        return self._requested

    @property
    def granted(self) -> int:
        """Bytes held: the floor and whole units beyond."""
        slots = self._slots
        return 0 if slots is None else self._floor + slots.units * UNIT

    def take(self, size: int) -> bool:
        if size < 0:
            raise UsageError(f"a request of {size} bytes")
        with self._mutex:
            slots = self._slots
            if slots is None:
                return False
            missing = self._units_for(self._requested + size) - slots.units
            if missing > 0:
                if not self._take_more(slots, missing):
                    return False
            elif self._hungry and self._clock() >= self._rested:
                self._complain(slots, False)
            self._requested += size
            return True

    def _take_more(self, slots: Slots, missing: int) -> bool:
        now = self._clock()
        if now < self._rested:
            return False
        # Asked before the others are counted: it is a hundred times as cheap, and mostly nobody complains.
        if slots.others_complain() and not self._has_less(slots, missing):
            self._complain(slots, False)
        elif slots.take(missing):
            self._complain(slots, False)
            self._rest = _REST
            return True
        else:
            self._complain(slots, self._has_less(slots, missing))
        self._rested = now + self._rest
        self._rest = min(2 * self._rest, _LONGEST_REST)
        return False

    def _has_less(self, slots: Slots, missing: int) -> bool:
        """Whether we would have no more than an equal share with ``missing`` more units."""
        return slots.units + missing <= self._equal_share(slots)

    def _equal_share(self, slots: Slots) -> int:
        """Units of each if all had the same of what is common."""
        units, counted = self._share
        now = self._clock()
        if now - counted >= _COUNT_SECONDS:
            units = slots.share()
            self._share = units, now
        return units

    def _complain(self, slots: Slots, hungry: bool) -> None:
        if hungry != self._hungry:
            self._hungry = hungry
            slots.complain(hungry)

    def give(self, size: int) -> None:
        with self._mutex:
            if not 0 <= size <= self._requested:
                raise UsageError(f"{size} bytes given back of {self._requested} that were taken")
            self._requested -= size
            slots = self._slots
            if slots is None:
                return
            surplus = slots.units - self._units_for(self._requested)
            if self._requested == 0:
                slots.give(surplus)
                self._complain(slots, False)
            elif surplus > 0 and slots.others_complain():
                slots.give(max(0, min(surplus, slots.units - self._equal_share(slots))))

    def _units_for(self, requested: int) -> int:
        """Whole units beyond the floor."""
        return -(-max(0, requested - self._floor) // UNIT)

    def close(self) -> None:
        with self._mutex:
            slots, self._slots = self._slots, None
            if slots is not None:
                slots.close()

    def abandon(self) -> None:
        """In a forked child: the lease is the parent's alone."""
        # No lock: the thread that may have held it is not here.
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.abandon()


_leases: weakref.WeakSet[HostLease] = weakref.WeakSet()


def _after_fork() -> None:
    for lease in list(_leases):
        lease.abandon()


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, slots=True)
class HostBudget:
    """One NFC server of one host. ``path`` is the file that the processes share."""

    where: str
    server: NfcServer
    limits: HostLimits
    path: Path

    def lease(
        self,
        *,
        wait: float = DEFAULT_WAIT,
        cancel: CancelToken | None = None,
        notify: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> HostLease:
        """Wait up to ``wait`` seconds for a connection.

        ``notify`` hears why we wait, at once and then every half minute. Raises TooManyConnections,
        HostOutOfMemory, Cancelled, and StoreError if the file cannot be used.
        """
        waited, told = 0.0, -TELL_SECONDS
        while True:
            slots = Slots(self.path, self.limits)
            try:
                if slots.enter():
                    return HostLease(slots, self.limits, waited, clock)
                going = slots.is_going()
                usage, short = slots.usage(), slots.short_of_memory
                going = going or slots.is_going()
            except BaseException:
                slots.close()
                raise
            slots.close()
            # The last holder of all, leaving, has the whole file for a moment: nothing to tell or to refuse.
            is_full = not going and (short or usage.connections >= self.limits.connections)
            if waited >= (wait if is_full else wait + _MOMENT):
                raise self._refusal(usage, wait, short=short)
            if is_full and waited - told >= TELL_SECONDS:
                told = waited
                self._tell(usage, notify, short=short)
            pause = min(PAUSE * (0.5 + jitter()), max(wait - waited, 0.001)) if is_full else _BLINK
            if cancel is not None:
                cancel.check()
            sleep(pause)
            if cancel is not None:
                cancel.check()
            waited += pause

    def usage(self) -> Usage:
        """What is in use now."""
        slots = Slots(self.path, self.limits)
        try:
            return slots.usage()
        finally:
            slots.close()

    def _tell(self, usage: Usage, notify: Callable[[str], None] | None, *, short: bool) -> None:
        what = "memory" if short else "a connection"
        text = f"{self.where}: waiting for {what} of its NFC server {self.server}: {self._in_use(usage)}"
        _log.info("%s", text)
        if notify is not None:
            notify(text)

    def _refusal(self, usage: Usage, wait: float, *, short: bool) -> VixError:
        kind = HostOutOfMemory if short else TooManyConnections
        waited = f", and nothing came free in {wait:g} s" if wait else ""
        return kind(
            f"{self.where}: its NFC server {self.server} bears no more{waited}: {self._in_use(usage)}",
            remedy=f"let others end first, or raise {_KEYS} if the host bears more",
        )

    def _in_use(self, usage: Usage) -> str:
        return (
            f"{usage.connections} of {self.limits.connections} connections, "
            f"{usage.memory / (1 << 20):.1f} of {self.limits.memory / (1 << 20):g} MiB in use"
            f"{_named(usage.pids)}"
        )


def _named(pids: tuple[int, ...]) -> str:
    if not pids:
        return ""
    shown = ", ".join(str(pid) for pid in pids[:_MAX_NAMED])
    more = ", ..." if len(pids) > _MAX_NAMED else ""
    return f" by {len(pids)} process{'es' if len(pids) > 1 else ''} (pid {shown}{more})"


@dataclass(frozen=True, slots=True)
class HostBudgets:
    """Makes the budget of each host.

    ``folder`` is where the processes meet: all that name the same one share, containers with a common volume
    too; None is the folder that this machine has for it. ``memory`` (bytes) and ``connections`` replace what
    is known of a version; ``wait`` (seconds) the time that a lease is waited for.
    """

    folder: Path | None = None
    memory: int | None = None
    connections: int | None = None
    wait: float | None = None

    def __post_init__(self) -> None:
        """Numbers that fit no host are refused at once, not at the first disk. Raises UsageError."""
        HostLimits(
            MAX_MEMORY if self.memory is None else self.memory,
            1 if self.connections is None else self.connections,
        )
        if self.wait is not None and self.wait < 0:
            raise UsageError(f"{self.wait} seconds to wait for a host: none or more are needed")

    def of(self, host: str, port: int, server: NfcServer, limits: HostLimits) -> HostBudget:
        """The budget of an NFC server; ``limits`` are those of its version."""
        limits = limits.replaced(memory=self.memory, connections=self.connections)
        name = _file_name(_address(host), port, server)
        folder = self.folder if self.folder is not None else _usable_folder(name, limits)
        return HostBudget(host_port(host, port), server, limits, folder / name)


def _address(host: str) -> str:
    """The host's address: its name and its address, or two names, are one host."""
    name = without_zone(unbracket(host)).lower()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError):
        return name  # connecting will tell
    # The same one in every process, whatever order the resolver likes today.
    return min((family != socket.AF_INET, str(address[0])) for family, _, _, _, address in found)[1]


def _file_name(address: str, port: int, server: NfcServer) -> str:
    shown = re.sub(r"[^a-z0-9.-]", "_", address)[:_MAX_SHOWN]
    digest = hashlib.sha256(f"{address} {port}".encode()).hexdigest()[:12]
    return f"vdkit-{server}-{shown}-{port}-{digest}"


def _usable_folder(name: str, limits: HostLimits) -> Path:
    """The machine's folder, or one of this process: better counted in it alone than not at all."""
    global _private
    folder = shared_folder()
    if folder is not None:
        try:
            Slots(folder / name, limits).close()
            return folder
        except StoreError as error:
            reason = str(error)
    else:
        reason = "this machine has no folder that everybody may write to"
    with _private_mutex:
        if _private is None:
            _private = tempfile.TemporaryDirectory(prefix="vdkit-limits-")
            atexit.register(_private.cleanup)
            _log.warning("the limits of hosts are not shared with other processes: %s", reason)
        return Path(_private.name)


_private: tempfile.TemporaryDirectory[str] | None = None
_private_mutex = threading.Lock()
