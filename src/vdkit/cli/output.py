"""What the commands print: results on standard output, everything for people on standard error.

``--json`` turns results into one JSON document (queries) or JSON lines with a ``message_type`` (jobs).
Progress is drawn only on a terminal.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vdkit.errors import from_os_error

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vdkit.jobs.observer import Observer

#: Version of the JSON that commands print.
SCHEMA = 1
#: Seconds between two progress lines where there is no terminal to draw on.
PLAIN_INTERVAL = 5.0
JSON_INTERVAL = 0.5


def prepare_output() -> None:
    """Names of machines may hold any letter: one that the terminal's encoding lacks is shown as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(document: dict[str, Any]) -> None:
    # The escapes of an output that is not UTF-8 would not be JSON's.
    is_utf8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    print_text(json.dumps({"schema": SCHEMA, **document}, ensure_ascii=not is_utf8))
    flush_output()


def print_json_items(document: dict[str, Any], key: str, items: Iterable[dict[str, Any]]) -> None:
    """One document that ends in a list, printed as it is made: it may be longer than memory."""
    is_utf8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    head = json.dumps({"schema": SCHEMA, **document, key: []}, ensure_ascii=not is_utf8)
    before = head.removesuffix("]}")
    for item in items:
        print_text(before + json.dumps(item, ensure_ascii=not is_utf8))
        before = ","
    print_text("]}" if before == "," else head)
    flush_output()


def print_text(text: str = "") -> None:
    with _output_named():
        sys.stdout.write(text + "\n")


def flush_output() -> None:
    """Before the end: what could not be written must be told, not lost when the interpreter leaves."""
    with _output_named():
        sys.stdout.flush()


@contextmanager
def _output_named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Whoever read us has seen enough (``| head``): not an error.
        _drop_output()
        raise
    except OSError as error:
        _drop_output()
        raise from_os_error(error, "writing to standard output") from error


def _drop_output() -> None:
    """What is still in the buffer goes nowhere, or the interpreter would try once more and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_table(columns: list[str], rows: list[list[str]], *, right: frozenset[int] = frozenset()) -> None:
    """A plain table on standard output; columns whose index is in ``right`` are right-aligned."""
    widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
            for i, cell in enumerate(map(str, row))
        ]
        print_text("  ".join(cells).rstrip())


def human_size(count: int | float) -> str:
    """``1536`` -> ``1.5 KiB``: binary units."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable: TiB is the last unit")


@contextmanager
def job_observer(*, as_json: bool) -> Iterator[Observer]:
    """The observer that fits where standard output and error go."""
    if as_json:
        yield JsonObserver()
    elif sys.stderr.isatty():
        with _rich_progress() as progress:
            yield TerminalObserver(progress)
    else:
        yield PlainObserver()


class JsonObserver:
    """JSON lines: ``step``, ``note``, ``warning`` and ``status`` messages."""

    def __init__(self) -> None:
        self._pace = _Pace(JSON_INTERVAL)

    def step(self, text: str) -> None:
        print_json({"message_type": "step", "text": text})

    def note(self, text: str) -> None:
        print_json({"message_type": "note", "text": text})

    def warning(self, text: str) -> None:
        print_json({"message_type": "warning", "text": text})

    def progress(self, what: str, done: int, total: int) -> None:
        if self._pace.due(what, final=done >= total):
            print_json({"message_type": "status", "what": what, "bytes_done": done, "bytes_total": total})


class PlainObserver:
    """Lines on standard error, now and then one with the progress."""

    def __init__(self) -> None:
        self._pace = _Pace(PLAIN_INTERVAL)

    def step(self, text: str) -> None:
        print_note(text)

    def note(self, text: str) -> None:
        print_note(text)

    def warning(self, text: str) -> None:
        print_note(f"warning: {text}")

    def progress(self, what: str, done: int, total: int) -> None:
        if self._pace.due(what, final=done >= total):
            percent = 100 if total == 0 else done * 100 // total
            print_note(f"{what}: {human_size(done)} of {human_size(total)} ({percent} %)")


class TerminalObserver:
    """Bars on the terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def step(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def note(self, text: str) -> None:
        self.step(text)

    def warning(self, text: str) -> None:
        self._progress.console.print(f"warning: {text}", style="yellow", markup=False, highlight=False)

    def progress(self, what: str, done: int, total: int) -> None:
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(task, completed=done, total=total)


class _Pace:
    """Lets one message per interval through for each thing, and always the final one, once."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last: dict[str, float] = {}
        self._finished: set[str] = set()
        self._lock = threading.Lock()

    def due(self, what: str, *, final: bool) -> bool:
        now = time.monotonic()
        with self._lock:
            if what in self._finished:
                return False
            if final:
                self._finished.add(what)
                return True
            first = self._last.setdefault(what, now)
            if now - first < self._interval:
                return False
            self._last[what] = now
            return True


def _rich_progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
