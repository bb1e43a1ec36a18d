"""Reads of a realistic disk over links with a delay: window by compression, beside nbdcopy from nbdkit.

Every reader goes through the same relay, which holds each byte back and limits nothing else; how much it can
carry is measured first. Host, relay and reader are a process each. Starting and connecting are taken out on
both sides.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bare
import nbdpeer
from disks import real_disk
from harness import MB, MIB, Benchmark, Job, Target
from hosts import BENCH, Child, target_of
from reading import check_content, data_ranges, read_job
from vdkit.transports.nfc import DEFAULT_WINDOW, CompressionName, Mode

#: Seconds each way, normal and quick.
DELAYS = ((0.0, 0.001, 0.005, 0.020), (0.0, 0.005))
WINDOWS = ((1, 4, 16, DEFAULT_WINDOW), (1, DEFAULT_WINDOW))
COMPRESSIONS: tuple[tuple[CompressionName, ...], ...] = (("none", "zlib", "skipz", "auto"), ("none", "auto"))
#: Connections of the peer that ours, which has one, is held against.
CONNECTIONS = (1, 4)
MODES: tuple[Mode, ...] = ("nbd", "nbdssl")
#: Never behind.
TARGET = Target(1.0, speed=True)
#: A cell of the table reads for about so many seconds, normal and quick, but at least so much data.
CELL_SECONDS = (1.0, 0.3)
LEAST_CELL = 4 * MIB
#: What the relay alone is measured with.
RELAY_BYTES = 512 * MIB


class Link:
    """A relay with a delay, in a process of its own, in front of any port."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    def to(self, port: int) -> Child:
        return Child(BENCH / "hosts.py", "relay", str(port), str(self.delay))

    def __str__(self) -> str:
        return f"{self.delay * 1000:g} ms each way"


def relay_alone(bench: Benchmark, links: list[Link]) -> None:
    """What a bare loop gets through the relay: nobody's figure below can be above it."""
    cells: dict[str, list[list[float]]] = {}
    with Child(BENCH / "bare.py") as server:
        for link in links:
            with link.to(server.port) as relay:
                runs = [bare.receive(relay.port, RELAY_BYTES, None) for _ in range(bench.pairs)]
            cells[str(link)] = [[RELAY_BYTES / seconds / MB for seconds in runs]]
    bench.grid("a bare socket loop through the relay", "MB/s", ["clear"], cells)


def beside_nbd(bench: Benchmark, link: Link, image: Path, folder: Path) -> None:
    """The default window against the peer, with the same data over the same link."""
    moved = data_ranges(image).total
    nothing = folder / "nothing.raw"
    nothing.write_bytes(bytes(MIB))
    for mode in MODES:
        tls = nbdpeer.certificates(folder / "tls") if mode == "nbdssl" else None
        with (
            Child(BENCH / "hosts.py", "file", image) as host,
            nbdpeer.Nbdkit(image, tls) as server,
            nbdpeer.Nbdkit(nothing, tls) as empty,
            link.to(host.port) as to_host,
            link.to(server.port) as to_server,
            link.to(empty.port) as to_empty,
        ):
            for connections in CONNECTIONS[: 1 if bench.quick and tls else None]:
                fixed = nbdpeer.fixed_cost(to_empty.port, connections, tls=tls)
                bench.compare(
                    f"{mode}, {link}, default window, beside {connections} connections of NBD",
                    read_job(mode, target_of(host, to_host.port), mode),
                    nbdpeer.copy_job(to_server.port, connections, tls=tls, fixed=fixed),
                    TARGET,
                    bytes_moved=moved,
                    notes=[f"{fixed * 1000:.0f} ms for starting and connecting are taken off nbdcopy's runs"],
                )


def table(bench: Benchmark, link: Link, image: Path) -> None:
    """Window by compression in clear; each cell reads as much as fits in its time."""
    windows, names = WINDOWS[bench.quick], COMPRESSIONS[bench.quick]
    cells: dict[str, list[list[float]]] = {f"window {window}": [] for window in windows}
    with Child(BENCH / "hosts.py", "file", image) as host, link.to(host.port) as relay:
        aim = target_of(host, relay.port)

        def job(window: int, compression: CompressionName, length: int) -> Job:
            ranges = data_ranges(image, length)
            return read_job("", aim, "nbd", window=window, compression=compression, ranges=ranges)

        for window, name in itertools.product(windows, names):
            length = _fitting(lambda n, w=window, c=name: job(w, c, n), data_ranges(image).total, bench.quick)
            measured = job(window, name, length)
            runs = [length / measured.run().seconds / MB for _ in range(bench.pairs)]
            cells[f"window {window}"].append(runs)
    bench.grid(f"nbd, {link}", "MB/s of disk", names, cells)


def _fitting(job: Callable[[int], Job], most: int, quick: bool) -> int:
    """Bytes that a cell reads in its time; found by reading more and more, at last half the time's worth."""
    length = min(LEAST_CELL, most)
    while True:
        seconds = job(length).run().seconds
        if seconds > CELL_SECONDS[quick] / 2 or length == most:
            fitting = int(length * CELL_SECONDS[quick] / max(seconds, 1e-6))
            return min(most, max(LEAST_CELL, fitting // MIB * MIB))
        length = min(most, length * 4)


def main() -> int:
    bench = Benchmark("nfc-latency", "reads over links with a delay, beside nbdcopy over the same links")
    nbdpeer.prepare(bench)
    image = real_disk(quick=bench.quick)
    links = [Link(delay) for delay in DELAYS[bench.quick]]
    with Child(BENCH / "hosts.py", "file", image) as host:
        for compression in COMPRESSIONS[bench.quick]:
            check_content(target_of(host), image, "nbd", compression)
    relay_alone(bench, links)
    with tempfile.TemporaryDirectory() as folder:
        for link in links:
            beside_nbd(bench, link, image, Path(folder))
            table(bench, link, image)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
