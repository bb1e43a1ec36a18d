"""The soak of the network transports: random opens, reads, writes and faults, a model beside them.

Host and clients are a process each. There is no figure to be fast at: the limit is that nothing is wrong, and
that neither process has more threads, descriptors or memory at the end. The work is that of
``vdkit.testing.soak``; a short form of it is among the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import sys
import tempfile
from pathlib import Path

from harness import MB, MIB, Benchmark
from hosts import BENCH, HOST, Child, name_of
from peers import work_folder
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.testing.soak import Count, Report, Soak, count_of
from vdkit.vsphere.session import Session

#: Seconds, normal and quick, and of one round.
SECONDS = (600.0, 30.0)
ROUND_SECONDS = (10.0, 1.5)
MACHINES = 4
CAPACITY = 16 * MIB
SEED = 1
#: mallopt's parameter (malloc.h), and bytes from which a block is mapped, and unmapped when it is freed.
M_MMAP_THRESHOLD = -3
MAPPED_FROM = 1 << 20


def count_honestly() -> None:
    """Give large blocks back to the kernel at once, so that memory is what somebody holds.

    By itself glibc keeps up to 32 MiB above each thread's heap once a block of that size was freed. Half a
    minute of the soak ends before all heaps have grown so far, and that looked like a leak.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)


class HostThere:
    """See :class:`vdkit.testing.soak.Host`."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def login(self) -> Session:
        told = self._child.announced
        trust = Trust(sha256=str(told["VDKIT_THUMBPRINT"]))
        password = Secret(str(told["VDKIT_PASSWORD"]))
        return Session.login(
            HOST, self._child.port, str(told["VDKIT_USER"]), password, trust, sleep=lambda _: None
        )

    def set_faults(self, faults: NfcFaults) -> None:
        healthy = NfcFaults()
        fields = {
            field.name: getattr(faults, field.name)
            for field in dataclasses.fields(faults)
            if getattr(faults, field.name) != getattr(healthy, field.name)
        }
        self._child.ask({"faults": fields})

    def expire(self) -> None:
        self._child.ask({"expire": True})

    def count(self) -> Count | None:
        return count_of(self._child.pid)


def tell(report: Report) -> None:
    print(
        f"\n{report.rounds} rounds, {report.opened} disks opened, {report.reopened} times opened again, "
        f"{report.read / MB:.0f} MB read, {report.written / MB:.0f} MB written"
    )
    print("  " + ", ".join(f"{count} {name}" for name, count in report.errors.most_common()))
    for who, counts in (("clients", report.ours), ("host", report.theirs)):
        first, last = counts[0], counts[-1]
        print(
            f"  {who}: {first.threads} to {last.threads} threads, {first.descriptors} to {last.descriptors} "
            f"descriptors, {first.memory / MIB:.0f} to {last.memory / MIB:.0f} MiB"
        )
    for problem in report.problems:
        print(f"  WRONG: {problem}", flush=True)


def main() -> int:
    bench = Benchmark("soak", "random work and faults over the network transports, beside a model")
    count_honestly()
    seconds, each = SECONDS[bench.quick], ROUND_SECONDS[bench.quick]
    with tempfile.TemporaryDirectory(dir=work_folder(256 * MIB)) as name:
        folder = Path(name)
        for part in ("store", "budget"):
            (folder / part).mkdir()
        command = [BENCH / "hosts.py", "machines", folder / "store", MACHINES, CAPACITY, 0, 0]
        with Child(*map(str, command)) as child:
            machines = [name_of(number) for number in range(1, MACHINES + 1)]
            soak = Soak(HostThere(child), machines, seed=SEED, folder=folder / "budget")
            report = soak.run(seconds, round_seconds=each)
            mistakes = child.ask({"mistakes": True})["mistakes"]
    report.problems += [f"the host's own mistake: {mistake}" for mistake in mistakes]
    tell(report)
    bench.limit("what went wrong", "problems", [float(len(report.problems))], 0.0)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
