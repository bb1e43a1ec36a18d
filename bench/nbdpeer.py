"""The peer of the network benchmarks: nbdcopy reading from nbdkit, in clear and in TLS with certificates.

Never with pre-shared keys: with them the two agree on a slow cipher, and everybody looks quick beside it.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from harness import Benchmark, Job, Run, need, run_command
from hosts import END_SECONDS, HOST
from vdkit.sim.certificates import make_certificate

#: Seconds in which the server must listen, and between two looks at it.
START_SECONDS = 10.0
LOOK_SECONDS = 0.02
#: Runs whose median is what connecting alone costs.
FIXED_RUNS = 5


def prepare(bench: Benchmark) -> None:
    """End with the remedy if the peer is not installed; record its versions."""
    need("nbdkit", "nbdcopy")
    bench.peer_version("nbdkit", "--version")
    bench.peer_version("nbdcopy", "--version")


def certificates(folder: Path) -> Path:
    """A folder as nbdkit and libnbd want it: one certificate that is its own authority."""
    made = make_certificate()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("ca-cert.pem", made.pem),
        ("server-cert.pem", made.pem),
        ("server-key.pem", made.key_pem),
    ):
        (folder / name).write_text(text, encoding="ascii")
    return folder


class Nbdkit:
    """A server of one raw image, read-only."""

    def __init__(self, image: Path, tls: Path | None = None) -> None:
        """``tls``: a folder of :func:`certificates`; nothing but TLS is then spoken."""
        with socket.create_server((HOST, 0)) as free:
            self.port: int = free.getsockname()[1]
        secured = [] if tls is None else ["--tls=require", f"--tls-certificates={tls}"]
        self._process = subprocess.Popen(
            ["nbdkit", "-f", "-r", "-i", HOST, "-p", str(self.port), *secured, "file", str(image)],
            stdin=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError), socket.create_connection((HOST, self.port), START_SECONDS):
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise SystemExit("nbdkit did not start")
            time.sleep(LOOK_SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def copy_job(port: int, connections: int, *, tls: Path | None = None, fixed: float = 0.0) -> Job:
    """Read the whole export into nothing, holes left out; ``fixed`` seconds are taken off each run."""
    scheme, query = ("nbd", "") if tls is None else ("nbds", f"/?tls-certificates={tls}")
    command = ["nbdcopy", "-C", str(connections), f"{scheme}://{HOST}:{port}{query}", "null:"]

    def run() -> Run:
        made = run_command(command)
        return made._replace(seconds=max(made.seconds - fixed, 1e-6))

    return Job(f"nbdcopy -C {connections}{'' if tls is None else ' TLS'}", run)


def fixed_cost(port: int, connections: int, *, tls: Path | None = None) -> float:
    """Seconds that starting nbdcopy, connecting and ending take, from an export (at ``port``) of nothing."""
    job = copy_job(port, connections, tls=tls)
    return statistics.median(job.run().seconds for _ in range(FIXED_RUNS))
