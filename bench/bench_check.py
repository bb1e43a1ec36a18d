"""vdkit check of a 1 TiB sparse disk with ten million grains beside qemu-img check."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from disks import make_crowded
from harness import CACHE, MIB, Benchmark, Job, Target, need, run_command
from peers import VDKIT

CAPACITY = 1 << 40
GRAINS = 10_000_000
#: With fewer, starting a process is most of it: said in the title.
QUICK = (1 << 38, 2_500_000)
AS_FAST = Target(1.0, speed=True)
MAX_MEMORY_MIB = 512


def main() -> int:
    bench = Benchmark("check", "vdkit check beside qemu-img check")
    need("qemu-img")
    bench.peer_version("qemu-img", "--version")
    capacity, grains = QUICK if bench.quick else (CAPACITY, GRAINS)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        disk = make_crowded(Path(folder), capacity, grains)
        made = bench.compare(
            f"check of {capacity >> 30} GiB with {grains} grains",
            Job("vdkit check", lambda: run_command([VDKIT, "check", disk])),
            Job("qemu-img check", lambda: run_command(["qemu-img", "check", disk])),
            AS_FAST,
        )
        peaks = [(run.peak_rss or 0) / MIB for run in made.our_runs]
        bench.limit("peak memory of vdkit check", "MiB", peaks, MAX_MEMORY_MIB)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
