"""A soak of the network transports against a simulated host: random work, random faults, a model beside it.

Every disk has a driver, which opens it (for reading or writing, in clear or in TLS, compressed or not) and
lets several threads work on the one handle, each in a part of its own. Meanwhile the host's data port fails
in every way it knows. What each part must hold is kept in memory; a write that failed leaves both its old and
its new bytes possible, sector by sector, until one of them has been read. Work goes in rounds: at the end of
each nothing is open, all disks are compared with the model, and threads, descriptors and memory are counted.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from vdkit.block.workers import WorkerScope
from vdkit.disklib.remote import Retry, open_remote
from vdkit.disklib.resuming import ResumingDisk
from vdkit.errors import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    HostError,
    SessionExpired,
    TicketRefused,
    VixError,
)
from vdkit.net.budget import HostBudgets
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.transports.nfc import CompressionName, Mode, Timeouts
from vdkit.vsphere.inventory import find_machine
from vdkit.vsphere.session import Session

SECTOR: Final = 512
#: Bytes of one read or write, at most.
MAX_PIECE: Final = 1 << 20
#: Threads on one handle, and what each does before the disk is closed.
WORKERS: Final = 3
STEPS: Final = 12
#: Rounds that are not looked at: caches fill, modules are imported, pools find their size.
WARM_UP: Final = 0.25
#: Bytes that a process may have more at the end than after its warm-up: the allocator's own breathing.
GROWTH_LIMIT: Final = 24 << 20
#: Rounds after the warm-up below which memory says nothing yet.
LEAST_ROUNDS: Final = 6
#: Seconds in which threads and descriptors of a round must be gone.
SETTLE_SECONDS: Final = 5.0
#: Seconds of the longest pause before something is tried again: the faults here pass at once.
_LONGEST_PAUSE: Final = 0.01
#: What may reach a caller: passing failures that lasted, and what the host itself answered.
NAMED: Final = (ConnectFailed, ConnectionLost, DeadlineExceeded, HostError, SessionExpired, TicketRefused)

_MODES: Final[tuple[Mode, ...]] = ("nbd", "nbdssl")
_COMPRESSIONS: Final[tuple[CompressionName, ...]] = ("none", "zlib", "skipz")


class Count(NamedTuple):
    """What one process holds. Memory in bytes."""

    threads: int
    descriptors: int
    memory: int


class Host(Protocol):
    """The simulated host, in this process or in another one."""

    def login(self) -> Session:
        """A new session."""

    def set_faults(self, faults: NfcFaults) -> None:
        """For the connections from now on."""

    def expire(self) -> None:
        """End every session."""

    def count(self) -> Count | None:
        """What its process holds; None if it is ours."""


@dataclass
class Report:
    """What was done and what was wrong: ``problems`` must be empty."""

    rounds: int = 0
    opened: int = 0
    reopened: int = 0
    read: int = 0
    written: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    ours: list[Count] = field(default_factory=list)
    theirs: list[Count] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Content:
    """What a disk must hold. Each part of it is one thread's; only between rounds is it seen as a whole."""

    def __init__(self, capacity: int) -> None:
        self._bytes = bytearray(capacity)
        #: By sector: other contents that it may have, since a write of them failed.
        self._doubtful: dict[int, set[bytes]] = {}

    def written(self, offset: int, data: bytes) -> None:
        self._bytes[offset : offset + len(data)] = data
        for sector in self._sectors(offset, len(data)):
            self._doubtful.pop(sector, None)

    def attempted(self, offset: int, data: bytes) -> None:
        """A write that failed: done, half done, or not done."""
        for sector in self._sectors(offset, len(data)):
            start = sector * SECTOR - offset
            self._doubtful.setdefault(sector, set()).add(data[start : start + SECTOR])

    def wrong(self, offset: int, found: bytes) -> int | None:
        """The offset of the first wrong sector. What was doubtful is known afterwards."""
        if not self._doubtful and self._bytes[offset : offset + len(found)] == found:
            return None
        for sector in self._sectors(offset, len(found)):
            at = sector * SECTOR
            now = found[at - offset : at - offset + SECTOR]
            if now != self._bytes[at : at + SECTOR]:
                if now not in self._doubtful.get(sector, ()):
                    return at
                self._bytes[at : at + SECTOR] = now
            # pop of a key that is not there changes nothing: other threads have other sectors.
            self._doubtful.pop(sector, None)
        return None

    @staticmethod
    def _sectors(offset: int, length: int) -> range:
        return range(offset // SECTOR, (offset + length) // SECTOR)


def some_faults(dice: random.Random) -> NfcFaults:
    """Healthy half of the time, else one thing that goes wrong."""
    if dice.random() < 0.4:
        return NfcFaults()
    makers: Sequence[Callable[[], NfcFaults]] = (
        lambda: NfcFaults(cut_after_messages=dice.randrange(1, 80)),
        lambda: NfcFaults(reset_after_bytes=dice.randrange(1, 3 << 20)),
        lambda: NfcFaults(reset_chance=0.01, reset_seed=dice.randrange(1 << 30)),
        lambda: NfcFaults(slow_reads=0.002, slow_reads_every=5),
        lambda: NfcFaults(delay=0.0005),
        lambda: NfcFaults(chunks_shuffled=dice.randrange(1 << 30), chunk_size=1 << 15),
        lambda: NfcFaults(no_memory_over=dice.choice((1 << 16, 1 << 18))),
        lambda: NfcFaults(read_error=(5, "Failed to allocate the requested 1048600 bytes")),
        lambda: NfcFaults(read_error=(13, "NfcAioReadFile failed")),
        lambda: NfcFaults(write_error=(13, "NfcAioWriteFile failed")),
        lambda: NfcFaults(classic_error_at=dice.choice((36, 51, 52))),
        lambda: NfcFaults(open_error=(13, "NfcAioOpenFile: DiskLib error 16392: Failed to lock the file")),
        lambda: NfcFaults(ticket_refused=True),
        lambda: NfcFaults(hello_refused=True),
        lambda: NfcFaults(map_refused=True),
    )
    return dice.choice(makers)()


class Soak:
    """See the module. ``machines`` are names; of each the first disk is written to, so it must be off.

    The disks are taken to be zero at the beginning. ``folder`` is where the host's limits are counted.
    """

    def __init__(self, host: Host, machines: Sequence[str], *, seed: int, folder: Path) -> None:
        self._host = host
        self._names = machines
        self._seed = seed
        self._budget = HostBudgets(folder=folder)
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._contents: dict[str, Content] = {}
        self.report = Report()

    def run(self, seconds: float, *, round_seconds: float, rounds: int | None = None) -> Report:
        """Work for so long, or so many rounds; stops at the first wrong byte."""
        until = time.monotonic() + seconds
        while not self._stop.is_set():
            self._round(random.Random(f"{self._seed} {self.report.rounds}"), round_seconds)
            self.report.rounds += 1
            if time.monotonic() > until if rounds is None else self.report.rounds >= rounds:
                break
        if not self._stop.is_set():
            for who, counts in (("this process", self.report.ours), ("the host", self.report.theirs)):
                self.report.problems += [f"{who}: {what}" for what in growth(counts)]
        return self.report

    # -- a round ---------------------------------------------------------------------------------

    def _round(self, dice: random.Random, seconds: float) -> None:
        until = time.monotonic() + seconds
        seeds = [dice.randrange(1 << 30) for _ in self._names]
        with self._host.login() as session:
            with WorkerScope("vdkit-soak") as scope:
                for name, seed in zip(self._names, seeds, strict=True):
                    scope.spawn(self._drive, session, name, random.Random(seed), until)
                scope.spawn(self._disturb, random.Random(dice.randrange(1 << 30)), until)
            self._host.set_faults(NfcFaults())
            for name in self._names:
                self._compare(session, name)
        gc.collect()
        self._count(self.report.ours, lambda: count_of(os.getpid()))
        self._count(self.report.theirs, self._host.count)

    @staticmethod
    def _count(counts: list[Count], look: Callable[[], Count | None]) -> None:
        """A host's threads end a moment after its clients have gone, so a count may be taken again."""
        until = time.monotonic() + SETTLE_SECONDS
        while (now := look()) is not None:
            fewer = any(one.threads < now.threads or one.descriptors < now.descriptors for one in counts)
            if not fewer or time.monotonic() > until:
                counts.append(now)
                return
            time.sleep(_LONGEST_PAUSE)

    def _disturb(self, dice: random.Random, until: float) -> None:
        """Change what goes wrong, and end the sessions now and then."""
        while time.monotonic() < until and not self._stop.wait(dice.uniform(0.01, 0.1)):
            self._host.set_faults(some_faults(dice))
            if dice.random() < 0.05:
                self._host.expire()

    def _drive(self, session: Session, name: str, dice: random.Random, until: float) -> None:
        while time.monotonic() < until and not self._stop.is_set():
            writable = dice.random() < 0.6
            try:
                disk = self._open(session, name, dice, writable=writable)
            except VixError as error:
                self._note(error, f"opening {name}")
                continue
            try:
                with WorkerScope("vdkit-soak") as scope:
                    for number in range(WORKERS):
                        work = _Work(self, disk, name, number, random.Random(dice.randrange(1 << 30)))
                        scope.spawn(work.run)
            finally:
                self._close(disk, name)

    def _open(self, session: Session, name: str, dice: random.Random, *, writable: bool) -> ResumingDisk:
        vm = find_machine(session, name)
        disk = open_remote(
            session,
            vm,
            vm.disks[0].file,
            writable=writable,
            mode=dice.choice(_MODES),
            compression=dice.choice(_COMPRESSIONS),
            retry=Retry(attempts=dice.choice((1, 4)), sleep=_nap),
            timeouts=Timeouts(connect=30, request=60, read=60, write=60, close=30),
            budget=self._budget,
        )
        with self._mutex:
            self.report.opened += 1
            self._contents.setdefault(name, Content(disk.capacity))
        return disk

    def _close(self, disk: ResumingDisk, name: str) -> None:
        """By another thread than that which opened it."""

        def close() -> None:
            try:
                disk.close()
            except VixError as error:
                self._note(error, f"closing {name}")

        closer = threading.Thread(target=close, name="vdkit-soak-close")
        closer.start()
        closer.join()
        with self._mutex:
            self.report.reopened += disk.reopened

    def _compare(self, session: Session, name: str) -> None:
        content = self._contents.get(name)
        if content is None or self._stop.is_set():
            return
        vm = find_machine(session, name)
        with open_remote(session, vm, vm.disks[0].file, budget=self._budget, retry=Retry(sleep=_nap)) as disk:
            for offset in range(0, disk.capacity, MAX_PIECE):
                found = bytearray(min(MAX_PIECE, disk.capacity - offset))
                disk.read_into(offset, found)
                self.check(name, offset, bytes(found))

    # -- what the workers tell -------------------------------------------------------------------

    def content(self, name: str) -> Content:
        return self._contents[name]

    def check(self, name: str, offset: int, found: bytes) -> None:
        wrong = self._contents[name].wrong(offset, found)
        if wrong is not None:
            self._problem(f"{name}: wrong bytes at offset {wrong} (round {self.report.rounds})")

    def moved(self, *, read: int = 0, written: int = 0) -> None:
        with self._mutex:
            self.report.read += read
            self.report.written += written

    def failed(self, error: VixError, what: str) -> None:
        self._note(error, what)

    def _note(self, error: VixError, what: str) -> None:
        with self._mutex:
            self.report.errors[type(error).__name__] += 1
        text = str(error)
        if not isinstance(error, NAMED) or "\n" in text or not text:
            self._problem(f"{what}: {type(error).__name__}: {text}")

    def _problem(self, text: str) -> None:
        with self._mutex:
            self.report.problems.append(text)
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()


class _Work:
    """One thread's steps in its part of a disk."""

    def __init__(self, soak: Soak, disk: ResumingDisk, name: str, number: int, dice: random.Random) -> None:
        self._soak, self._disk, self._name, self._dice = soak, disk, name, dice
        part = disk.capacity // WORKERS // SECTOR * SECTOR
        self._low, self._high = number * part, (number + 1) * part

    def run(self) -> None:
        for _ in range(STEPS):
            if self._soak.stopped:
                return
            step = self._write if self._disk.writable and self._dice.random() < 0.5 else self._read
            try:
                step()
            except VixError as error:
                self._soak.failed(error, f"{step.__name__.strip('_')} of {self._name}")
                return

    def _range(self) -> tuple[int, int]:
        sectors = int(2 ** self._dice.uniform(0, 11))
        length = min(sectors * SECTOR, MAX_PIECE, self._high - self._low)
        offset = self._dice.randrange(self._low, self._high - length + 1) // SECTOR * SECTOR
        return max(offset, self._low), length

    def _read(self) -> None:
        ranges = [self._range() for _ in range(self._dice.choice((1, 1, 4)))]
        buffers = [bytearray(length) for _, length in ranges]
        self._disk.read_many(
            [(offset, memoryview(data)) for (offset, _), data in zip(ranges, buffers, strict=True)]
        )
        for (offset, _), data in zip(ranges, buffers, strict=True):
            self._soak.check(self._name, offset, bytes(data))
        self._soak.moved(read=sum(map(len, buffers)))

    def _write(self) -> None:
        offset, length = self._range()
        # Half of it zeroes, so that compression and the search for zeroes have something to do.
        data = self._dice.randbytes(length // 2) + bytes(length - length // 2)
        try:
            if self._dice.random() < 0.2:
                data = bytes(length)
                self._disk.write_zeroes(offset, length)
            else:
                self._disk.write_from(offset, data)
        except BaseException:
            self._soak.content(self._name).attempted(offset, data)
            raise
        self._soak.content(self._name).written(offset, data)
        self._soak.moved(written=length)
        if self._dice.random() < 0.1:
            self._disk.flush()


def _nap(seconds: float) -> None:
    time.sleep(min(seconds, _LONGEST_PAUSE))


def count_of(pid: int) -> Count:
    """What a process of this machine holds, as the kernel tells."""
    folder = Path(f"/proc/{pid}")
    lines = (folder / "status").read_text(encoding="ascii", errors="replace").splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    descriptors = 0
    with suppress(FileNotFoundError):
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
    return Count(int(values["Threads"]), descriptors, int(values["VmRSS"].split()[0]) * 1024)


def growth(counts: Sequence[Count]) -> list[str]:
    """What became more after the warm-up: no thread and no descriptor may, memory may breathe."""
    settled = counts[int(len(counts) * WARM_UP) :]
    if len(settled) < 2:
        return []
    first, last = settled[0], settled[-1]
    found = []
    if last.threads > first.threads:
        found.append(f"{first.threads} threads became {last.threads}")
    if last.descriptors > first.descriptors:
        found.append(f"{first.descriptors} descriptors became {last.descriptors}")
    grown = slope([count.memory for count in settled]) * (len(settled) - 1)
    if len(settled) >= LEAST_ROUNDS and grown > GROWTH_LIMIT:
        found.append(f"memory grew by {grown / (1 << 20):.1f} MiB in {len(settled)} rounds")
    return found


def slope(values: Sequence[float]) -> float:
    """Of the straight line that lies nearest to the values, per step."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    above = sum((number - middle) * (value - mean) for number, value in enumerate(values))
    below = sum((number - middle) ** 2 for number in range(len(values)))
    return above / below if below else 0.0
