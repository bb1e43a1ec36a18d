"""Starting the command: what ``vdkit --version`` and ``vdkit info`` take as whole processes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from harness import CACHE, Benchmark, need, run_command
from peers import VDKIT

MAX_SECONDS = 0.15
RUNS = 15


def main() -> int:
    bench = Benchmark("start", "the start of the command")
    need("qemu-img")
    bench.peer_version("qemu-img", "--version")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        disk = Path(folder) / "disk.vmdk"
        run_command(["qemu-img", "create", "-q", "-f", "vmdk", disk, "4G"])
        commands: list[list[str | Path]] = [[VDKIT, "--version"], [VDKIT, "info", disk]]
        for command in commands:
            run_command(command)
            seconds = [run_command(command).seconds for _ in range(RUNS)]
            bench.limit(f"vdkit {command[1]}", "s", seconds, MAX_SECONDS)
        peer = [run_command(["qemu-img", "info", disk]).seconds for _ in range(RUNS)]
        print(f"  for comparison, qemu-img info: {min(peer):.3f} - {max(peer):.3f} s", flush=True)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
