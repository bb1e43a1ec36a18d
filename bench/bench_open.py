"""Opening a 62 TiB sparse disk with few grains: time and memory of the process that does it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from harness import CACHE, MIB, Benchmark, Job, Target, need, run_command

TIB = 1 << 40
CAPACITY = 62 * TIB
GRAINS = 3000
#: What opening and a first read may take, and the whole process in memory.
MAX_SECONDS = 0.2
MAX_MEMORY_MIB = 64
#: A whole Python process against a small C program: what remains is the start of the interpreter.
MAX_TIMES_INFO = Target(10.0)

#: Run in a process of its own, so that its memory and its imports are the ones measured. It times the open
#: and the first read from inside: the limit is on opening, not on starting an interpreter.
OPEN = """
import sys, time
from vdkit.block.local import FolderStore
from vdkit.vmdk import open_disk
imported = time.perf_counter()
with open_disk(FolderStore(sys.argv[1]), sys.argv[2]) as disk:
    buffer = bytearray(4096)
    disk.read_into(int(sys.argv[3]), buffer)
    done = time.perf_counter()
    assert disk.capacity == int(sys.argv[4]), disk.capacity
    assert buffer.startswith(b"grain"), bytes(buffer[:16])
print(done - imported)
"""


def make_disk(folder: Path) -> tuple[str, int]:
    """A disk with grains spread over its whole length, written by qemu-io; returns name and last offset."""
    name = "big.vmdk"
    path = folder / name
    make: list[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "vmdk",
        "-o",
        "subformat=monolithicSparse",
        path,
        str(CAPACITY),
    ]
    subprocess.run(make, check=True, timeout=600)
    pattern = folder / "pattern"
    pattern.write_bytes(b"grain".ljust(512, b"."))
    step = CAPACITY // GRAINS // 65536 * 65536
    offsets = [index * step for index in range(GRAINS)]
    script = "".join(f"write -q -s {pattern} {offset} 4096\n" for offset in offsets)
    subprocess.run(
        ["qemu-io", "-f", "vmdk", path],
        input=script,
        text=True,
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
    )
    return name, offsets[-1]


def _seconds_to_open(command: list[str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def main() -> int:
    bench = Benchmark("open", "open a 62 TiB sparse disk with few grains")
    need("qemu-img", "qemu-io")
    bench.peer_version("qemu-img", "--version")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        disk, offset = make_disk(folder)
        command = [sys.executable, "-c", OPEN, str(folder), disk, str(offset), str(CAPACITY)]
        runs = 5 if bench.quick else 15
        seconds = [_seconds_to_open(command) for _ in range(runs)]
        bench.limit(f"open and first read, {GRAINS} grains in 62 TiB", "s", seconds, MAX_SECONDS)
        ours = Job("vdkit.vmdk.open_disk", lambda: run_command(command))
        peer = Job("qemu-img info", lambda: run_command(["qemu-img", "info", folder / disk]))
        whole = bench.compare("the same as a whole process", ours, peer, MAX_TIMES_INFO)
        peaks = [(run.peak_rss or 0) / MIB for run in whole.our_runs]
        bench.limit("peak memory of that process", "MiB", peaks, MAX_MEMORY_MIB)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
