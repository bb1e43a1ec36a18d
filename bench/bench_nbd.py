"""Reads over the data port: beside bare socket and TLS loops on loopback, and over a link with a delay.

Server and client are a process each, on both sides of every comparison; connecting does not count.
"""

from __future__ import annotations

import ssl
import sys
import tempfile
from pathlib import Path

import bare
from harness import MIB, Benchmark, Job, Run, Target, timed
from hosts import BENCH, HOST, Child, pattern
from vdkit.block.copy import copy
from vdkit.block.device import BaseWritableDevice
from vdkit.net.secret import Secret
from vdkit.sim.certificates import make_certificate
from vdkit.transports.nfc import Mode, NfcDisk, NfcTarget, open_nfc
from vdkit.transports.nfc.target import DEFAULT_WINDOW

#: Bytes read on loopback, normal and quick.
LOOPBACK_BYTES = (2048 * MIB, 512 * MIB)
#: Bytes read over the delayed link: with a window of one this takes ten milliseconds per request.
DELAYED_BYTES = (128 * MIB, 64 * MIB)
DELAY_SECONDS = 0.005
#: What the tests of the issue ask for.
LOOPBACK_TARGET = Target(0.60, speed=True)
WINDOW_TARGET = Target(15.0, speed=True)
#: Bytes compared at the head of each piece.
CHECKED = 512


class Sink(BaseWritableDevice):
    """Takes what the copy engine brings and looks at the head of each piece."""

    def _read_into(self, offset: int, view: memoryview) -> None:
        raise SystemExit(f"nobody reads the sink: {len(view)} bytes at {offset}")

    def _write_from(self, offset: int, view: memoryview) -> None:
        head = view[:CHECKED]
        if head != pattern(offset, len(head)):
            raise SystemExit(f"wrong bytes at offset {offset}")

    def _flush(self) -> None:
        """Nothing is kept."""


def read_all(disk: NfcDisk) -> Run:
    """Read the whole disk with the copy engine, which is what every command of vdkit reads with."""
    with Sink(name="sink", capacity=disk.capacity, writable=True) as sink:
        return timed(lambda: copy(disk, sink))


class DataPort:
    """A running data port, seen directly or through a relay."""

    def __init__(self, host: Child, port: int | None = None) -> None:
        self._host = host
        self._port = port or host.port

    def job(self, name: str, mode: Mode, window: int = DEFAULT_WINDOW) -> Job:
        def run() -> Run:
            with open_nfc(self._target(), mode=mode, window=window) as disk:
                return read_all(disk)

        return Job(name, run)

    def _target(self) -> NfcTarget:
        return NfcTarget(
            host=HOST,
            port=self._port,
            ticket=Secret("bench"),
            service="nfc",
            thumbprint=str(self._host.announced["thumbprint"]),
            certificate=None,
            path="[bench] disk/disk.vmdk",
        )


def _loopback(bench: Benchmark, folder: Path) -> None:
    total = LOOPBACK_BYTES[bench.quick]
    pem = make_certificate().save(folder, "bare")
    secure = bare.client_context(pem)
    rows: list[tuple[Mode, list[Path], ssl.SSLContext | None, str]] = [
        ("nbd", [], None, "bare socket loop"),
        ("nbdssl", [pem], secure, "bare TLS loop"),
    ]
    with Child(BENCH / "hosts.py", "nfc", str(total)) as host:
        port = DataPort(host)
        for mode, arguments, context, name in rows:
            with Child(BENCH / "bare.py", *arguments) as server:
                yardstick = _bare_job(name, server.port, total, context)
                bench.compare(
                    f"{mode} on loopback", port.job(mode, mode), yardstick, LOOPBACK_TARGET, bytes_moved=total
                )


def _bare_job(name: str, port: int, total: int, context: ssl.SSLContext | None) -> Job:
    return Job(name, lambda: Run(bare.receive(port, total, context)))


def _delayed(bench: Benchmark) -> None:
    total = DELAYED_BYTES[bench.quick]
    modes: tuple[Mode, ...] = ("nbd", "nbdssl")
    with (
        Child(BENCH / "hosts.py", "nfc", str(total)) as host,
        Child(BENCH / "hosts.py", "relay", str(host.port), str(DELAY_SECONDS)) as relay,
    ):
        port = DataPort(host, relay.port)
        for mode in modes:
            bench.compare(
                f"{mode} with {DELAY_SECONDS * 1000:g} ms in each direction",
                port.job(f"window of {DEFAULT_WINDOW}", mode),
                port.job("window of 1", mode, window=1),
                WINDOW_TARGET,
                bytes_moved=total,
            )


def main() -> int:
    bench = Benchmark("nbd", "reads over the data port beside bare loops, and over a slow link")
    with tempfile.TemporaryDirectory() as folder:
        _loopback(bench, Path(folder))
    _delayed(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
