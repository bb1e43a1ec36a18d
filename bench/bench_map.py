"""The map of a 62 TiB disk all of whose grain tables exist, beside qemu-img map, which is cut off."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from disks import HUGE_GRAINS, make_huge
from harness import CACHE, MIB, Benchmark, Job, Target, need, run_command
from peers import VDKIT

#: qemu-img does not finish in an hour: what it is given makes the ratio a lower bound.
CUT = 60.0
QUICK_CUT = 20.0
TIMES = 100.0
MAX_MEMORY_MIB = 128


def main() -> int:
    bench = Benchmark("map", "the map of a full 62 TiB grain directory")
    need("qemu-img", "qemu-io")
    bench.peer_version("qemu-img", "--version")
    CACHE.mkdir(parents=True, exist_ok=True)
    cut = QUICK_CUT if bench.quick else CUT
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        disk, _ = make_huge(Path(folder))
        command: list[str | Path] = [VDKIT, "map", "--json", disk]
        done = subprocess.run(command, capture_output=True, check=True, timeout=600)
        found = sum(1 for run in json.loads(done.stdout) if run["data"])
        if found != HUGE_GRAINS:
            raise SystemExit(f"vdkit map found {found} runs of data, not {HUGE_GRAINS}")
        ours = Job("vdkit map --json", lambda: run_command(command))
        peer = Job(
            f"qemu-img map, cut at {cut:g} s",
            lambda: run_command(["qemu-img", "map", "--output=json", disk], cut=cut),
        )
        # A shorter cut can show less.
        target = Target(TIMES * cut / CUT, speed=True)
        made = bench.compare("map of 62 TiB, all tables preallocated", ours, peer, target)
        if min(run.seconds for run in made.peer_runs) >= cut:
            print("  qemu-img never finished: the ratio is a lower bound", flush=True)
        peaks = [(run.peak_rss or 0) / MIB for run in made.our_runs]
        bench.limit("peak memory of vdkit map", "MiB", peaks, MAX_MEMORY_MIB)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
