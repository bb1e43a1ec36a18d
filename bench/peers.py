"""What several benchmarks share: where ours and the peers are, where outputs go, which peer is the best."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import CACHE, Benchmark, Job, Run, run_command, timed

VDKIT = Path(sys.executable).with_name("vdkit")
#: Some versions of vmdk-convert never end on some inputs.
OPEN_VMDK_TIMEOUT = 300.0
_OPEN_VMDK = CACHE.parent / "open-vmdk" / "vmdk-convert"


def open_vmdk(bench: Benchmark) -> Path | None:
    """open-vmdk's converter, None if this machine has none."""
    found = shutil.which("vmdk-convert")
    path = _OPEN_VMDK if _OPEN_VMDK.exists() else Path(found) if found else None
    if path is None:
        print("open-vmdk is not there: its comparisons are left out (scripts/open-vmdk)", flush=True)
        return None
    version = path.with_name("version")
    bench.peer_is("vmdk-convert", version.read_text().strip() if version.exists() else "of the system")
    return path


def work_folder(needed: int) -> Path:
    """Memory if it has room for ``needed`` bytes, otherwise the cache's disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > needed:
        return memory
    return CACHE


def best(jobs: Sequence[Job]) -> Job:
    """The job that is fastest in one run of each."""
    return jobs[0] if len(jobs) == 1 else min(jobs, key=lambda job: job.run().seconds)


def synchronised(run: Run, path: Path) -> Run:
    """The run with the time it takes to make its output durable, which vdkit's is when it returns."""
    with path.open("rb") as file:
        return run._replace(seconds=run.seconds + timed(lambda: os.fsync(file.fileno())).seconds)


def qemu_convert(source: Path, given: str, target: Path, kind: str, options: Sequence[str] = ()) -> Job:
    """``kind`` is raw or a subformat of VMDK."""
    output = ["raw"] if kind == "raw" else ["vmdk", "-o", f"subformat={kind}"]
    command = ["qemu-img", "convert", "-f", given, "-O", *output, *options, source, target]
    name = " ".join(["qemu-img", *options])
    return Job(name, lambda: synchronised(run_command(command, remove=target), target))
