"""vdkit compare beside qemu-img compare: a raw image and a VMDK of the same content, whole processes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from disks import allocated, incompressible_disk, real_disk
from harness import Benchmark, Job, Target, need, run_command
from peers import VDKIT, qemu_convert, work_folder

#: By the disk and the type of its copy: what the ratio must be.
TARGETS = {
    ("real", "monolithicSparse"): Target(2.0, speed=True),
    ("real", "streamOptimized"): Target(5.0, speed=True),
    ("incompressible", "monolithicSparse"): Target(1.0, speed=True),
    ("incompressible", "streamOptimized"): Target(1.0, speed=True),
}


def main() -> int:
    bench = Benchmark("compare", "vdkit compare beside qemu-img compare")
    need("qemu-img")
    bench.peer_version("qemu-img", "--version")
    disks = {"real": real_disk(quick=bench.quick), "incompressible": incompressible_disk(quick=bench.quick)}
    for (word, kind), target in TARGETS.items():
        raw = disks[word]
        with tempfile.TemporaryDirectory(
            prefix="vdkit-bench-", dir=work_folder(2 * allocated(raw))
        ) as folder:
            other = Path(folder) / "other.vmdk"
            qemu_convert(raw, "raw", other, kind).run()
            mine: list[str | Path] = [VDKIT, "compare", raw, other]
            theirs: list[str | Path] = ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, other]
            bench.compare(
                f"{word}: compare raw with {kind}",
                Job("vdkit", lambda command=mine: run_command(command)),
                Job("qemu-img", lambda command=theirs: run_command(command)),
                target,
                bytes_moved=allocated(raw),
            )
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
