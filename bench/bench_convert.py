"""Conversions beside qemu-img: raw and VMDK, both ways, whole processes, outputs compared once.

Outputs go to memory (tmpfs) where there is room: the speed of a shared disk says nothing about either
program. vdkit's output is durable when it returns; qemu-img's best option leaves that to the system. So that
both do the same, the peer's output is synchronised on its clock too; in memory that costs nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from disks import allocated, real_disk
from harness import CACHE, COMMAND_TIMEOUT, Benchmark, Job, Run, Target, need, run_command, timed

VDKIT = Path(sys.executable).with_name("vdkit")
#: What qemu-img can be told to do faster; it is given the best of them.
QEMU_SPARSE = ((), ("-W", "-m", "16"))


class Conversions:
    """The commands of both sides over one raw disk, with their outputs in one folder."""

    def __init__(self, raw: Path, folder: Path) -> None:
        self.raw = raw
        self.folder = folder

    def ours(self, source: Path, target: Path, kind: str, *options: str) -> Job:
        given = "raw" if source == self.raw else "vmdk"
        command: list[str | Path] = [VDKIT, "convert", "-f", given, source, target, "-O", kind, *options]
        name = " ".join(["vdkit", *options])
        return Job(name, lambda: run_command(command, remove=target))

    def qemu(self, source: Path, target: Path, kind: str, options: Sequence[str] = ()) -> Job:
        given = "raw" if source == self.raw else "vmdk"
        output = ["raw"] if kind == "raw" else ["vmdk", "-o", f"subformat={kind}"]
        command: list[str | Path] = [
            "qemu-img",
            "convert",
            "-f",
            given,
            "-O",
            *output,
            *options,
            source,
            target,
        ]
        name = " ".join(["qemu-img", *options])
        return Job(name, lambda: _synchronised(run_command(command, remove=target), target))

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


def _synchronised(run: Run, path: Path) -> Run:
    with path.open("rb") as file:
        return run._replace(seconds=run.seconds + timed(lambda: os.fsync(file.fileno())).seconds)


def work_folder(needed: int) -> Path:
    """Memory if it has room for ``needed`` bytes, otherwise the cache's disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > needed:
        return memory
    return CACHE


def best(jobs: Sequence[Job]) -> Job:
    """The job that is fastest in one run of each."""
    return jobs[0] if len(jobs) == 1 else min(jobs, key=lambda job: job.run().seconds)


def _to_vmdk(
    bench: Benchmark,
    side: Conversions,
    kind: str,
    target: Target,
    qemu: Sequence[Sequence[str]],
    *options: str,
) -> None:
    made, peers = side.folder / f"ours-{kind}.vmdk", side.folder / f"peer-{kind}.vmdk"
    ours = side.ours(side.raw, made, kind, *options)
    ours.run()
    side.check_same(made, kind)
    peer = best([side.qemu(side.raw, peers, kind, choice) for choice in qemu])
    title = " ".join([f"raw -> {kind}", *options])
    comparison = bench.compare(title, ours, peer, target, bytes_moved=allocated(side.raw))
    comparison.notes.append(f"sizes: {made.stat().st_size} bytes ours, {peers.stat().st_size} qemu-img's")
    print(f"  {comparison.notes[-1]}", flush=True)
    made.unlink()


def _to_raw(bench: Benchmark, side: Conversions, kind: str, target: Target) -> None:
    source = side.folder / f"peer-{kind}.vmdk"
    made, peers = side.folder / "ours.raw", side.folder / "peer.raw"
    ours = side.ours(source, made, "raw")
    ours.run()
    side.check_same(made, "raw")
    peer = side.qemu(source, peers, "raw")
    bench.compare(f"{kind} -> raw", ours, peer, target, bytes_moved=allocated(side.raw))
    for path in (source, made, peers):
        path.unlink()


def main() -> int:
    bench = Benchmark("convert", "vdkit convert beside qemu-img convert")
    need("qemu-img")
    bench.peer_version("qemu-img", "--version")
    raw = real_disk(quick=bench.quick)
    print(f"{raw.name}: {raw.stat().st_size} bytes, {allocated(raw)} allocated", flush=True)
    parent = work_folder(4 * allocated(raw))
    print(f"outputs below {parent if parent != CACHE else 'the cache, on disk'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vdkit-bench-", dir=parent) as folder:
        side = Conversions(raw, Path(folder))
        _to_vmdk(bench, side, "monolithicSparse", Target(0.33), QEMU_SPARSE)
        _to_raw(bench, side, "monolithicSparse", Target(0.35))
        _to_vmdk(bench, side, "streamOptimized", Target(0.25), [()])
        _to_vmdk(bench, side, "streamOptimized", Target(0.10), [()], "--fast")
        _to_raw(bench, side, "streamOptimized", Target(0.30))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
