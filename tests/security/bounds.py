"""Limits around a piece of code: memory that Python allocates, or a process under the kernel's limits."""

from __future__ import annotations

import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def bounded_memory(most: int) -> Iterator[None]:
    """The code may hold ``most`` bytes at once."""
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        yield
        used = tracemalloc.get_traced_memory()[1] - before
        assert used < most, f"{used} bytes were held at once, {most} allowed"
    finally:
        tracemalloc.stop()


def run_bounded(code: str, *, memory: int = 1 << 30, processor_seconds: int = 60) -> str:
    """Run Python code in a process of its own under the kernel's limits; what it printed.

    Other allocators (of compression libraries) count too, and a loop is ended by the processor time it uses,
    which is the same on a busy machine.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds))

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        preexec_fn=limit,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
