"""Side by side measurements: paired runs, medians, a verdict, and a record with the machine.

A comparison runs ours and the peer in turn (A B A B ...) after one warm-up of each, because machines are
shared and their speed drifts: the ratio of a pair says more than either figure. The verdict compares the
median of the pairs' ratios with a target.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import select
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CACHE = ROOT / ".cache" / "bench"
RESULTS = BENCH / "results"

#: Pairs per comparison; jobs longer than LONG_SECONDS get no warm-up, their first run counts.
PAIRS = 5
QUICK_PAIRS = 3
LONG_SECONDS = 10.0
#: A peer that hangs must not hang the benchmark.
COMMAND_TIMEOUT = 900.0
MB = 1_000_000
MIB = 1 << 20


class Run(NamedTuple):
    """One run: wall seconds; processor seconds and peak memory where a process of its own did the work."""

    seconds: float
    cpu: float | None = None
    peak_rss: int | None = None


@dataclass(frozen=True)
class Job:
    """Something to measure. ``run`` times itself, so that preparation does not count."""

    name: str
    run: Callable[[], Run]


@dataclass(frozen=True)
class Target:
    """What the ratio must be. ``speed`` ratios are peer seconds / our seconds; others our / peer seconds."""

    limit: float
    speed: bool = False

    def ratio(self, ours: float, peer: float) -> float:
        return peer / ours if self.speed else ours / peer

    def met(self, ratio: float) -> bool:
        return ratio >= self.limit if self.speed else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'at least' if self.speed else 'at most'} {self.limit:g}"


@dataclass
class Comparison:
    """The runs of one comparison and what follows from them."""

    title: str
    ours: str
    peer: str
    target: Target
    bytes_moved: int
    our_runs: list[Run] = field(default_factory=list)
    peer_runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.our_runs, self.peer_runs, strict=True)
        return [self.target.ratio(ours.seconds, peer.seconds) for ours, peer in pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        return self.target.met(self.ratio)

    def table(self) -> str:
        rows = [["", "wall s", "min - max", "MB/s", "cpu s", "peak MiB"]]
        rows += [
            _row(name, runs, self.bytes_moved)
            for name, runs in ((self.ours, self.our_runs), (self.peer, self.peer_runs))
        ]
        what = "times the speed" if self.target.speed else "of the time"
        spread = f"{min(self.ratios):.3g} - {max(self.ratios):.3g} in {len(self.ratios)} pairs"
        verdict = (
            f"verdict: {self.ratio:.3g} {what} of {self.peer} ({spread}), "
            f"target {self.target}: {'met' if self.met else 'MISSED'}"
        )
        notes = [f"  {note}" for note in self.notes]
        return "\n".join([f"\n{self.title}", *_aligned(rows), *notes, verdict])

    def record(self) -> dict[str, object]:
        return {
            "title": self.title,
            "ours": {"name": self.ours, "runs": [run._asdict() for run in self.our_runs]},
            "peer": {"name": self.peer, "runs": [run._asdict() for run in self.peer_runs]},
            "bytes": self.bytes_moved,
            "notes": self.notes,
            "ratio": self.ratio,
            "ratios": self.ratios,
            "target": asdict(self.target),
            "met": self.met,
        }


@dataclass(frozen=True)
class Limit:
    """A figure of ours against a fixed limit: the median must not lie above it."""

    title: str
    unit: str
    values: Sequence[float]
    limit: float

    @property
    def met(self) -> bool:
        return statistics.median(self.values) <= self.limit

    def table(self) -> str:
        median = statistics.median(self.values)
        spread = f"{min(self.values):.3g} - {max(self.values):.3g} in {len(self.values)} runs"
        part = f"{median / self.limit:.3g} of the limit of" if self.limit else "the limit being"
        return (
            f"\n{self.title}\n"
            f"verdict: {median:.3g} {self.unit} ({spread}), {part} {self.limit:g} {self.unit}: "
            f"{'met' if self.met else 'MISSED'}"
        )

    def record(self) -> dict[str, object]:
        ratio = statistics.median(self.values) / self.limit if self.limit else None
        return {**asdict(self), "ratio": ratio, "met": self.met}


@dataclass(frozen=True)
class Grid:
    """Figures over two dimensions, without a target: the median of each cell's runs is shown."""

    title: str
    unit: str
    columns: Sequence[str]
    cells: dict[str, list[list[float]]]
    """Of each row: the runs of each column."""

    @property
    def met(self) -> bool:
        return True

    def table(self) -> str:
        rows = [[self.unit, *self.columns]]
        for name, cells in self.cells.items():
            rows.append([name, *(f"{statistics.median(runs):.3g}" for runs in cells)])
        return "\n".join([f"\n{self.title}", *_aligned(rows)])

    def record(self) -> dict[str, object]:
        return asdict(self)


def _row(name: str, runs: Sequence[Run], moved: int) -> list[str]:
    walls = [run.seconds for run in runs]
    median = statistics.median(walls)
    cpus = [run.cpu for run in runs if run.cpu is not None]
    peaks = [run.peak_rss for run in runs if run.peak_rss is not None]
    return [
        name,
        f"{median:.3f}",
        f"{min(walls):.3f} - {max(walls):.3f}",
        f"{moved / median / MB:.0f}" if moved else "",
        f"{statistics.median(cpus):.2f}" if cpus else "",
        f"{statistics.median(peaks) / MIB:.0f}" if peaks else "",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


class Benchmark:
    """One ``bench_NAME.py``: its options, its comparisons, its exit code and its record."""

    def __init__(self, name: str, about: str) -> None:
        parser = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=about)
        parser.add_argument("--quick", action="store_true", help="less data and fewer pairs")
        self.name = name
        self.quick: bool = parser.parse_args().quick
        self.results: list[Comparison | Limit | Grid] = []
        self._peers: dict[str, str] = {}
        self._load = os.getloadavg()
        print(f"== {name}: {about}{' (quick)' if self.quick else ''}", flush=True)

    def peer_version(self, *command: str) -> None:
        """Record the first line of a peer's own version."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        self._peers[command[0]] = (done.stdout or done.stderr).splitlines()[0]

    def compare(
        self,
        title: str,
        ours: Job,
        peer: Job,
        target: Target,
        *,
        bytes_moved: int = 0,
        notes: Sequence[str] = (),
    ) -> Comparison:
        """Run the pairs, print the table. ``bytes_moved`` gives the MB/s of both."""
        made = Comparison(title, ours.name, peer.name, target, bytes_moved, notes=list(notes))
        first = (ours.run(), peer.run())
        pairs = self.pairs
        if max(run.seconds for run in first) > LONG_SECONDS:
            pairs -= 1
            made.our_runs.append(first[0])
            made.peer_runs.append(first[1])
        for _ in range(pairs):
            made.our_runs.append(ours.run())
            made.peer_runs.append(peer.run())
        self.results.append(made)
        print(made.table(), flush=True)
        return made

    @property
    def pairs(self) -> int:
        """Runs of each figure."""
        return QUICK_PAIRS if self.quick else PAIRS

    def grid(
        self, title: str, unit: str, columns: Sequence[str], cells: dict[str, list[list[float]]]
    ) -> None:
        """Show and keep a table of figures that no target holds for."""
        made = Grid(title, unit, columns, cells)
        self.results.append(made)
        print(made.table(), flush=True)

    def peer_is(self, name: str, version: str) -> None:
        """Record the version of a peer that does not tell it by a command."""
        self._peers[name] = version

    def limit(self, title: str, unit: str, values: Sequence[float], limit: float) -> None:
        """Hold a figure against a limit and print the verdict."""
        made = Limit(title, unit, values, limit)
        self.results.append(made)
        print(made.table(), flush=True)

    def finish(self) -> int:
        """Write the record; the exit code says whether every target was met."""
        now = datetime.now(UTC)
        record = {
            "name": self.name,
            "quick": self.quick,
            "date": now.isoformat(timespec="seconds"),
            "commit": _commit(),
            "machine": {**machine(), "load_before": self._load, "peers": self._peers},
            "results": [result.record() for result in self.results],
        }
        RESULTS.mkdir(exist_ok=True)
        kind = "-quick" if self.quick else ""
        path = RESULTS / f"{self.name}{kind}-{now:%Y-%m-%d}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        missed = [result.title for result in self.results if not result.met]
        print(f"\nrecorded in {path.relative_to(ROOT)}", flush=True)
        if missed:
            print(f"{self.name}: target missed: {'; '.join(missed)}", flush=True)
        return 1 if missed else 0


def run_command(
    command: Sequence[str | Path], *, remove: Path | None = None, cut: float | None = None
) -> Run:
    """Run a program and measure it from outside; ``remove`` is an old output, gone before the clock.

    With ``cut`` a program that takes longer than so many seconds is ended, and counts as having taken them.
    """
    if remove is not None:
        remove.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        status, usage = _wait(process, started, COMMAND_TIMEOUT if cut is None else cut)
        seconds = time.perf_counter() - started
        if status != 0 and (cut is None or seconds < cut):
            said.seek(0)
            text = said.read().decode("utf-8", "replace")
            raise SystemExit(f"{' '.join(map(str, command))} ended with {status}:\n{text}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _wait(
    process: subprocess.Popen[bytes], started: float, seconds: float
) -> tuple[int, resource.struct_rusage]:
    """Wait by wait4, which alone tells the resources of this one child."""
    deadline = started + seconds
    fd = os.pidfd_open(process.pid)
    try:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.perf_counter()))
        if not ready:
            process.kill()
    finally:
        os.close(fd)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage


def timed(work: Callable[[], object]) -> Run:
    """Time a call in this process."""
    started = time.perf_counter()
    work()
    return Run(time.perf_counter() - started)


def need(*programs: str) -> None:
    """End with the remedy when a peer is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}; scripts/system-packages installs them")


def machine() -> dict[str, object]:
    """What a figure means nothing without."""
    return {
        "cpu": _first_field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "openssl": ssl.OPENSSL_VERSION,
    }


def _first_field(path: str, name: str) -> str | None:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    return done.stdout.strip() or None
