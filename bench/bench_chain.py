"""A chain of 32 links beside qemu-img: flattening it, its map, opening it to read from it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from disks import LINKS, allocated, make_chain, real_disk
from harness import CACHE, MIB, Benchmark, Job, Target, need, run_command
from opening import MAX_MEMORY_MIB, NOT_BEHIND, open_command, seconds_to_open
from peers import VDKIT, qemu_convert, work_folder

TO_RAW = Target(3.0, speed=True)
MAP = Target(5.0, speed=True)
MAX_SECONDS = 0.1


def main() -> int:
    bench = Benchmark("chain", f"a chain of {LINKS} links beside qemu-img")
    need("qemu-img", "qemu-io")
    bench.peer_version("qemu-img", "--version")
    raw = real_disk(quick=bench.quick)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vdkit-bench-", dir=work_folder(4 * allocated(raw))) as name:
        folder = Path(name)
        leaf = make_chain(folder, raw)
        made, theirs = folder / "ours.raw", folder / "peer.raw"
        command = [VDKIT, "convert", leaf, made, "-O", "raw"]
        ours = Job("vdkit convert", lambda: run_command(command, remove=made))
        peer = qemu_convert(leaf, "vmdk", theirs, "raw")
        bench.compare(f"{LINKS} links -> raw", ours, peer, TO_RAW, bytes_moved=allocated(raw))
        subprocess.run(["cmp", made, theirs], check=True, timeout=600)
        made.unlink()
        theirs.unlink()
        ours = Job("vdkit map --json", lambda: run_command([VDKIT, "map", "--json", leaf]))
        peer = Job(
            "qemu-img map --output=json", lambda: run_command(["qemu-img", "map", "--output=json", leaf])
        )
        bench.compare(f"map of {LINKS} links", ours, peer, MAP)
        open_it = open_command(leaf, raw.stat().st_size // 2)
        seconds = [seconds_to_open(open_it) for _ in range(5 if bench.quick else 15)]
        bench.limit(f"open {LINKS} links and read", "s", seconds, MAX_SECONDS)
        ours = Job("vdkit.vmdk.open_disk", lambda: run_command(open_it))
        peer = Job(
            "qemu-img info --backing-chain",
            lambda: run_command(["qemu-img", "info", "--backing-chain", leaf]),
        )
        whole = bench.compare("the same as a whole process", ours, peer, NOT_BEHIND)
        peaks = [(run.peak_rss or 0) / MIB for run in whole.our_runs]
        bench.limit("peak memory of that process", "MiB", peaks, MAX_MEMORY_MIB)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
