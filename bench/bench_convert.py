"""Conversions beside qemu-img, open-vmdk's vmdk-convert and cp: whole processes, outputs compared once.

Outputs go to memory (tmpfs) where there is room: the speed of a shared disk says nothing about either
program. vdkit's output is durable when it returns; the peers leave that to the system. So that both do the
same, the peer's output is synchronised on its clock too; in memory that costs nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from disks import allocated, incompressible_disk, real_disk
from harness import CACHE, COMMAND_TIMEOUT, Benchmark, Job, Target, need, run_command
from peers import (
    OPEN_VMDK_TIMEOUT,
    VDKIT,
    best,
    open_vmdk,
    qemu_convert,
    synchronised,
    work_folder,
)

#: What qemu-img can be told to do faster; it is given the best of them.
QEMU_SPARSE = ((), ("-W", "-m", "16"))
#: A stream may be larger than the peer's by so much.
MAX_GROWTH = 1.02
NEVER_SLOWER = Target(1.0, speed=True)


def faster(times: float) -> Target:
    return Target(times, speed=True)


class Conversions:
    """The jobs of both sides over one raw disk, with their outputs in one folder."""

    def __init__(self, bench: Benchmark, raw: Path, folder: Path, converter: Path | None) -> None:
        self.bench = bench
        self.raw = raw
        self.folder = folder
        self.converter = converter
        self.word = "real" if raw.name.startswith("real") else "incompressible"

    def given(self, source: Path) -> str:
        return "raw" if source == self.raw else "vmdk"

    def ours(self, source: Path, kind: str, *options: str) -> tuple[Job, Path]:
        target = self.folder / ("ours.raw" if kind == "raw" else f"ours-{kind}.vmdk")
        command = [VDKIT, "convert", "-f", self.given(source), source, target, "-O", kind, *options]
        job = Job(" ".join(["vdkit", *options]), lambda: run_command(command, remove=target))
        job.run()
        self.check_same(target, kind)
        return job, target

    def vmdk_convert(self, source: Path, target: Path, *options: str) -> Job | None:
        if self.converter is None:
            return None
        command = [self.converter, *options, source, target]
        return Job(
            " ".join(["vmdk-convert", *options]),
            lambda: synchronised(run_command(command, remove=target, cut=OPEN_VMDK_TIMEOUT), target),
        )

    def compare(self, title: str, ours: Job, peer: Job | None, target: Target) -> None:
        if peer is not None:
            moved = allocated(self.raw)
            self.bench.compare(f"{self.word}: {title}", ours, peer, target, bytes_moved=moved)

    def check_same(self, made: Path, kind: str) -> None:
        """Ends the benchmark when qemu-img finds a difference: a fast wrong answer is worth nothing."""
        given = "raw" if kind == "raw" else "vmdk"
        done = subprocess.run(
            ["qemu-img", "compare", "-f", "raw", "-F", given, self.raw, made],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
        )
        if done.returncode != 0:
            raise SystemExit(f"{made.name} differs from {self.raw.name}: {done.stdout}{done.stderr}")

    # -- the comparisons -------------------------------------------------------------------------

    def to_sparse(self, target: Target) -> Path:
        """Returns qemu-img's output, to be read again."""
        kind = "monolithicSparse"
        theirs = self.folder / "peer.vmdk"
        peer = best([qemu_convert(self.raw, "raw", theirs, kind, choice) for choice in QEMU_SPARSE])
        ours, made = self.ours(self.raw, kind)
        self.compare(f"raw -> {kind}", ours, peer, target)
        made.unlink()
        return theirs

    def to_stream(self, target: Target) -> Path:
        kind = "streamOptimized"
        theirs = self.folder / "peer.vmdk"
        ours, made = self.ours(self.raw, kind)
        self.compare(f"raw -> {kind}", ours, qemu_convert(self.raw, "raw", theirs, kind), target)
        size, limit = made.stat().st_size, theirs.stat().st_size * MAX_GROWTH
        self.bench.limit(f"{self.word}: size of the {kind} file", "bytes", [size], limit)
        made.unlink()
        return theirs

    def to_stream_fast(self, target: Target) -> None:
        theirs = self.folder / "peer-fast.vmdk"
        ours, made = self.ours(self.raw, "streamOptimized", "--fast")
        peer = self.vmdk_convert(self.raw, theirs, "-c", "1", "-n", "2")
        self.compare("raw -> streamOptimized --fast", ours, peer, target)
        made.unlink()
        theirs.unlink(missing_ok=True)

    def to_raw(self, source: Path, kind: str, qemu: Target, converter: Target) -> None:
        """Removes ``source``."""
        theirs = self.folder / "peer.raw"
        ours, made = self.ours(source, "raw")
        self.compare(f"{kind} -> raw", ours, qemu_convert(source, "vmdk", theirs, "raw"), qemu)
        theirs.unlink()
        peer = self.vmdk_convert(source, theirs)
        self.compare(f"{kind} -> raw, open-vmdk", ours, peer, converter)
        for path in (source, made, theirs):
            path.unlink(missing_ok=True)

    def plain_copy(self) -> None:
        theirs = self.folder / "peer.raw"
        ours, made = self.ours(self.raw, "raw")
        command = ["cp", "--sparse=auto", self.raw, theirs]
        peer = Job("cp --sparse=auto", lambda: synchronised(run_command(command, remove=theirs), theirs))
        self.compare("raw -> raw, a plain copy", ours, peer, NEVER_SLOWER)
        made.unlink()
        theirs.unlink()


def real(side: Conversions) -> None:
    side.to_raw(side.to_sparse(faster(4)), "monolithicSparse", faster(3), faster(1.3))
    side.to_stream_fast(faster(4))
    side.to_raw(side.to_stream(faster(5)), "streamOptimized", faster(4), faster(2.5))
    side.plain_copy()


def incompressible(side: Conversions) -> None:
    sparse = side.to_sparse(NEVER_SLOWER)
    side.to_raw(sparse, "monolithicSparse", NEVER_SLOWER, NEVER_SLOWER)
    side.to_stream_fast(NEVER_SLOWER)
    side.to_raw(side.to_stream(NEVER_SLOWER), "streamOptimized", NEVER_SLOWER, NEVER_SLOWER)
    side.plain_copy()


def main() -> int:
    bench = Benchmark("convert", "vdkit convert beside qemu-img, vmdk-convert and cp")
    need("qemu-img")
    bench.peer_version("qemu-img", "--version")
    converter = open_vmdk(bench)
    disks = real_disk(quick=bench.quick), incompressible_disk(quick=bench.quick)
    for raw, work in zip(disks, (real, incompressible), strict=True):
        print(f"{raw.name}: {raw.stat().st_size} bytes, {allocated(raw)} allocated", flush=True)
        parent = work_folder(4 * allocated(raw))
        print(f"outputs below {parent if parent != CACHE else 'the cache, on disk'}", flush=True)
        with tempfile.TemporaryDirectory(prefix="vdkit-bench-", dir=parent) as folder:
            work(Conversions(bench, raw, Path(folder), converter))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
