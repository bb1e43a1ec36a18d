"""The memory of a copy is that of its window, whatever the size of the disk; the system is asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 1 << 20
WORKERS = 3
BATCH = 8 * MIB

PROGRAM = f"""
import resource, sys
from vdkit.block.copy import copy
from vdkit.block.device import BaseDevice, BaseWritableDevice

BATCH = {BATCH}
PATTERN = memoryview(bytes(range(1, 256)) * (BATCH // 255 + 1))


class Endless(BaseDevice):
    io_batch = BATCH

    def _read_into(self, offset, view):
        view[:] = PATTERN[: len(view)]


class Nowhere(BaseWritableDevice):
    io_batch = BATCH

    def _read_into(self, offset, view):
        raise AssertionError

    def _write_from(self, offset, view):
        pass

    def _flush(self):
        pass


class Pipe:
    name, unit = "pipe", 65536

    def __init__(self, capacity):
        self.capacity = capacity

    def encode(self, offset, data):
        return bytes(data)

    def append(self, encoded):
        pass


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


size = int(sys.argv[2]) << 20
target = Pipe(size) if sys.argv[1] == "pipe" else Nowhere(name="nowhere", capacity=size, writable=True)
before = peak()
copy(Endless(name="endless", capacity=size), target, workers={WORKERS})
print(peak() - before)
"""


@pytest.mark.parametrize(("target", "copies"), [("device", 1), ("pipe", 5)])
def test_a_copy_is_as_small_as_its_window(target: str, copies: int) -> None:
    """A GiB goes through. ``copies``: what a sequential writer encodes waits for its turn, at full size."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, target, "1024"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert int(done.stdout) < copies * WORKERS * BATCH + 16 * MIB
