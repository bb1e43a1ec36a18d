"""Opening a disk and reading from it once, in a process of its own: its time and its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import Target

MAX_MEMORY_MIB = 64
NOT_BEHIND = Target(1.0, speed=True)

#: It times the open and the first read from inside too: an interpreter and its imports are not the disk's.
_OPEN = """
import sys, time
from vdkit.block.local import FolderStore
from vdkit.vmdk import open_disk
imported = time.perf_counter()
with open_disk(FolderStore(sys.argv[1]), sys.argv[2]) as disk:
    buffer = bytearray(4096)
    disk.read_into(int(sys.argv[3]), buffer)
    done = time.perf_counter()
    assert buffer.startswith(sys.argv[4].encode()), bytes(buffer[:16])
print(done - imported)
"""


def open_command(disk: Path, offset: int, expected: str = "") -> list[str]:
    """The process that opens ``disk`` and reads at ``offset`` what must begin with ``expected``."""
    return [sys.executable, "-c", _OPEN, str(disk.parent), disk.name, str(offset), expected]


def seconds_to_open(command: list[str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return float(done.stdout)
