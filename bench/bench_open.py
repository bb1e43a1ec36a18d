"""Opening a 62 TiB sparse disk with few grains: time and memory of the process that does it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from disks import HUGE_GRAINS, make_huge
from harness import CACHE, MIB, Benchmark, Job, need, run_command
from opening import MAX_MEMORY_MIB, NOT_BEHIND, open_command, seconds_to_open

#: What opening and a first read may take.
MAX_SECONDS = 0.2


def main() -> int:
    bench = Benchmark("open", "open a 62 TiB sparse disk with few grains")
    need("qemu-img", "qemu-io")
    bench.peer_version("qemu-img", "--version")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        disk, offset = make_huge(Path(folder))
        command = open_command(disk, offset, "grain")
        seconds = [seconds_to_open(command) for _ in range(5 if bench.quick else 15)]
        bench.limit(f"open and first read, {HUGE_GRAINS} grains in 62 TiB", "s", seconds, MAX_SECONDS)
        ours = Job("vdkit.vmdk.open_disk", lambda: run_command(command))
        peer = Job("qemu-img info", lambda: run_command(["qemu-img", "info", disk]))
        whole = bench.compare("the same as a whole process", ours, peer, NOT_BEHIND)
        peaks = [(run.peak_rss or 0) / MIB for run in whole.our_runs]
        bench.limit("peak memory of that process", "MiB", peaks, MAX_MEMORY_MIB)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
