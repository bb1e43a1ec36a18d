"""Reads and writes over the data port: beside bare socket and TLS loops, beside NBD, and over a slow link.

Server and client are a process each, on both sides of every comparison; connecting does not count.
"""

from __future__ import annotations

import ssl
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bare
import nbdpeer
from disks import real_disk
from harness import MIB, Benchmark, Job, Run, Target, timed
from hosts import BENCH, CHECKED, Child, check, pattern, target_of
from reading import Null, check_content, data_ranges, read_job
from vdkit.sim.certificates import make_certificate
from vdkit.transports.nfc import DEFAULT_WINDOW, Mode, open_nfc

#: Bytes moved on loopback, normal and quick.
LOOPBACK_BYTES = (2048 * MIB, 512 * MIB)
#: Bytes read over the delayed link: with a window of one this takes ten milliseconds per request.
DELAYED_BYTES = (128 * MIB, 64 * MIB)
DELAY_SECONDS = 0.005
#: Bytes of a request where only one is in flight: what a host with its own default of 64 KiB takes in two.
ALONE = 128 << 10
#: One call moves so much: what VMware documents as the largest that a client asks for.
CALL_BYTES = 32 * MIB
#: What the issue asks for.
LOOPBACK_TARGET = Target(0.85, speed=True)
#: The copy engine looks for zeroes too, in buffers that no cache holds.
ENGINE_TARGET = Target(0.60, speed=True)
NBD_TARGET = Target(1.0, speed=True)
WINDOW_TARGET = Target(15.0, speed=True)
MODES: tuple[Mode, ...] = ("nbd", "nbdssl")


class Sink(Null):
    """Takes what the copy engine brings and looks at the head of each grain."""

    def _write_from(self, offset: int, view: memoryview) -> None:
        check(offset, view)


def api_reads(host: Child, mode: Mode, total: int) -> Job:
    """One thread that reads into kept memory, as the bare loop does."""

    def run() -> Run:
        kept = memoryview(bytearray(CALL_BYTES))
        with open_nfc(target_of(host), mode=mode) as disk:

            def read() -> None:
                for offset in range(0, total, CALL_BYTES):
                    disk.read_into(offset, kept)
                    # Of each request its head: the bare loop looks at nothing.
                    for start in range(0, CALL_BYTES, MIB):
                        check(offset + start, kept[start : start + CHECKED])

            return timed(read)

    return Job(f"{mode}, one thread", run)


def api_writes(host: Child, mode: Mode, total: int) -> Job:
    """One thread that writes from kept memory. Closing counts: a host then flushes."""

    def run() -> Run:
        disk = open_nfc(target_of(host), mode=mode, writable=True)

        def write() -> None:
            with disk:
                for start in range(0, total, CALL_BYTES):
                    disk.write_many([(at, pattern(at, MIB)) for at in range(start, start + CALL_BYTES, MIB)])

        return timed(write)

    return Job(f"{mode}, one thread", run)


def _loopback(bench: Benchmark, folder: Path) -> None:
    total = LOOPBACK_BYTES[bench.quick]
    pem = make_certificate().save(folder, "bare")
    secure = bare.client_context(pem)
    rows: list[tuple[Mode, list[Path], ssl.SSLContext | None, str]] = [
        ("nbd", [], None, "bare socket loop"),
        ("nbdssl", [pem], secure, "bare TLS loop"),
    ]
    with Child(BENCH / "hosts.py", "nfc", str(total)) as host:
        for mode, arguments, context, name in rows:
            with Child(BENCH / "bare.py", *arguments) as server:
                reads = _bare_job(name, bare.receive, server.port, total, context)
                writes = _bare_job(name, bare.send, server.port, total, context)
                engine = read_job(f"{mode}, copy engine", target_of(host), mode, sink=Sink)
                for what, ours, peer, target in (
                    ("reads", api_reads(host, mode, total), reads, LOOPBACK_TARGET),
                    ("writes", api_writes(host, mode, total), writes, LOOPBACK_TARGET),
                    ("reads by the copy engine", engine, reads, ENGINE_TARGET),
                ):
                    bench.compare(f"{mode} {what} on loopback", ours, peer, target, bytes_moved=total)


def _bare_job(
    name: str,
    move: Callable[[int, int, ssl.SSLContext | None], float],
    port: int,
    total: int,
    context: ssl.SSLContext | None,
) -> Job:
    return Job(name, lambda: Run(move(port, total, context)))


def _beside_nbd(bench: Benchmark, folder: Path) -> None:
    """One connection each, the same image in the page cache, its holes left out by both."""
    image = real_disk(quick=bench.quick)
    moved = data_ranges(image).total
    nothing = folder / "nothing.raw"
    nothing.write_bytes(bytes(MIB))
    rows: list[tuple[Mode, Path | None]] = [("nbd", None), ("nbdssl", nbdpeer.certificates(folder / "tls"))]
    with Child(BENCH / "hosts.py", "file", image) as host:
        for mode, tls in rows:
            check_content(target_of(host), image, mode)
            with nbdpeer.Nbdkit(image, tls) as peer, nbdpeer.Nbdkit(nothing, tls) as empty:
                fixed = nbdpeer.fixed_cost(empty.port, 1, tls=tls)
                bench.compare(
                    f"{mode} reads of a real disk, one connection",
                    read_job(mode, target_of(host), mode),
                    nbdpeer.copy_job(peer.port, 1, tls=tls, fixed=fixed),
                    NBD_TARGET,
                    bytes_moved=moved,
                    notes=[f"{fixed * 1000:.0f} ms for starting and connecting are taken off nbdcopy's runs"],
                )


def _delayed(bench: Benchmark) -> None:
    total = DELAYED_BYTES[bench.quick]
    with (
        Child(BENCH / "hosts.py", "nfc", str(total)) as host,
        Child(BENCH / "hosts.py", "relay", str(host.port), str(DELAY_SECONDS)) as relay,
    ):
        aim = target_of(host, relay.port)
        for mode in MODES:
            bench.compare(
                f"{mode} with {DELAY_SECONDS * 1000:g} ms in each direction",
                read_job(f"window of {DEFAULT_WINDOW}", aim, mode, sink=Sink),
                read_job("window of 1", aim, mode, window=1, request_size=ALONE, sink=Sink),
                WINDOW_TARGET,
                bytes_moved=total,
            )


def main() -> int:
    bench = Benchmark("nbd", "reads and writes over the data port beside bare loops, NBD, and a slow link")
    nbdpeer.prepare(bench)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _loopback(bench, folder)
        _beside_nbd(bench, folder)
    _delayed(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
