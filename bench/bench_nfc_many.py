"""Many disks of one host at once, whose memory is limited: from one process, and from eight that share it.

The host counts what is asked of it. None of the readers may fail or even be refused once, the host's peak
must not be above its budget, and all together must be nearly as fast as the best single stream. Logging in
and opening does not count. Host and readers are processes of their own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
import zlib
from contextlib import ExitStack
from pathlib import Path

from harness import MIB, Benchmark, Job, Run, Target
from hosts import BENCH, HOST, Child, name_of
from peers import work_folder
from vdkit.disklib.remote import Retry, open_remote
from vdkit.disklib.resuming import ResumingDisk
from vdkit.errors import VixError
from vdkit.net.budget import HostBudgets
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.vsphere.inventory import find_machine
from vdkit.vsphere.session import Session

DISKS = 32
PROCESSES = 8
#: What a host of vSphere 6.5 to 7 has for all its NFC sessions.
BUDGET = 48 * MIB
#: Bytes of each disk, normal and quick.
DISK_BYTES = (64 * MIB, 16 * MIB)
#: Bytes of one read: of many readers, as VMware advises, and of one that has the host for itself.
STEP = MIB
ALONE_STEP = 16 * MIB
#: Within 15 % of the best that one stream reaches.
TARGET = Target(0.85, speed=True)


class Readers:
    """Disks of some machines, opened, and read on command by a thread each or one after the other."""

    def __init__(self, told: dict[str, object], names: list[str], folder: Path) -> None:
        self._running = ExitStack()
        self.refused: list[str] = []
        self._told = told
        trust = Trust(sha256=str(told["VDKIT_THUMBPRINT"]))
        user, password = str(told["VDKIT_USER"]), Secret(str(told["VDKIT_PASSWORD"]))
        session = Session.login(HOST, int(str(told["port"])), user, password, trust)
        self._running.enter_context(session)
        budget = HostBudgets(folder=folder, memory=BUDGET)
        self._disks = {name: self._running.enter_context(self._open(session, name, budget)) for name in names}

    def _open(self, session: Session, name: str, budget: HostBudgets) -> ResumingDisk:
        vm = find_machine(session, name)
        retry = Retry(notify=lambda error, _: self.refused.append(str(error)))
        return open_remote(session, vm, vm.disks[0].file, mode="nbd", budget=budget, retry=retry)

    def check(self) -> None:
        """Every byte of every disk, all at once."""
        self.at_once(check=True)

    def at_once(self, *, check: bool = False) -> float:
        threads = [threading.Thread(target=self._read, args=(name, STEP, check)) for name in self._disks]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    def one_by_one(self) -> float:
        started = time.perf_counter()
        for name in self._disks:
            self._read(name, ALONE_STEP, False)
        return time.perf_counter() - started

    def _read(self, name: str, step: int, check: bool) -> None:
        disk = self._disks[name]
        kept = memoryview(bytearray(step))
        total = 0
        try:
            for offset in range(0, disk.capacity, step):
                disk.read_into(offset, kept)
                if check:
                    total = zlib.crc32(kept, total)
        except VixError as error:
            self.refused.append(f"{name} failed: {error}")
        if check and total != dict(self._told["sums"])[name]:  # type: ignore[call-overload]
            self.refused.append(f"{name}: wrong bytes")

    def close(self) -> None:
        self._running.close()


def serve(told: dict[str, object], names: list[str], folder: Path) -> None:
    """One of several processes: reads when it is told to, and says what went wrong."""
    readers = Readers(told, names, folder)
    print(json.dumps({"port": 0}), flush=True)
    try:
        for line in sys.stdin:
            seconds = readers.at_once(check=bool(json.loads(line)["check"]))
            print(json.dumps({"seconds": seconds, "refused": readers.refused}), flush=True)
            readers.refused = []
    finally:
        readers.close()


def _together(children: list[Child], refused: list[str], *, check: bool = False) -> Run:
    """All processes read at once; from the first command to the last answer."""
    answers: list[dict[str, object]] = []
    threads = [
        threading.Thread(target=lambda child=child: answers.append(child.ask({"check": check})))
        for child in children
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for answer in answers:
        refused += list(answer["refused"])  # type: ignore[call-overload]
    return Run(seconds)


def measure(bench: Benchmark, folder: Path) -> None:
    size = DISK_BYTES[bench.quick]
    for part in ("store", "budget"):
        (folder / part).mkdir()
    names = [name_of(number) for number in range(1, DISKS + 1)]
    moved = DISKS * size
    refused: list[str] = []
    with Child(BENCH / "hosts.py", "machines", folder / "store", DISKS, size, size, BUDGET) as host:
        told = dict(host.announced)
        alone = Readers(told, names, folder / "budget")
        peer = Job("one after the other", lambda: Run(alone.one_by_one()))
        alone.check()
        bench.compare(
            f"{DISKS} disks at once, one process",
            Job("at once", lambda: Run(alone.at_once())),
            peer,
            TARGET,
            bytes_moved=moved,
        )
        refused += alone.refused
        alone.close()
        first = Readers(told, names[:1], folder / "budget")
        share = DISKS // PROCESSES
        with ExitStack() as running:
            # What a process needs to log in, the password among it, goes over its standard input.
            command = [BENCH / "bench_nfc_many.py", "--reader", folder / "budget"]
            children = []
            for start in range(0, DISKS - 1, share):
                child = Child(*command, given={"told": told, "names": names[start : start + share]})
                children.append(running.enter_context(child))
            _together(children, refused, check=True)
            bench.compare(
                f"{DISKS} disks at once, {PROCESSES} processes",
                Job("at once", lambda: _together(children, refused)),
                Job("one stream", lambda: _scaled(first)),
                TARGET,
                bytes_moved=moved,
                notes=["one stream reads one disk; its time is that of as many bytes"],
            )
        refused += first.refused
        first.close()
        peaks = host.ask({"peaks": True})
    for text in refused:
        print(f"  REFUSED: {text}")
    bench.limit("reads that failed or were refused once", "reads", [float(len(refused))], 0.0)
    bench.limit("the most that the host held for requests", "MiB", [peaks["memory"] / MIB], BUDGET / MIB)
    print(f"  {peaks['connections']} connections at most")


def _scaled(one: Readers) -> Run:
    return Run(one.one_by_one() * DISKS)


def main() -> int:
    bench = Benchmark("nfc-many", "many disks of one host at once, within its memory")
    with tempfile.TemporaryDirectory(dir=work_folder(DISKS * DISK_BYTES[bench.quick] * 2)) as folder:
        measure(bench, Path(folder))
    return bench.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reader"]:
        given = json.loads(sys.stdin.readline())
        serve(given["told"], given["names"], Path(sys.argv[2]))
    else:
        sys.exit(main())
