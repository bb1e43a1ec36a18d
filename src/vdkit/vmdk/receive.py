"""Saving a stream that arrives on a pipe: one thread reads, others open the grains and write them.

Source of facts: see :mod:`vdkit.vmdk.stream_reader`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from vdkit.block.device import WritableDevice
from vdkit.block.workers import CancelToken, WorkerScope
from vdkit.errors import FormatError, NotSupported, UsageError
from vdkit.vmdk.stream_reader import Record, StreamReader, StreamSummary
from vdkit.vmdk.streamfront import Source

#: Plain bytes of the grains that a worker takes at a time, and batches that wait for one.
BATCH = 1 << 20
_WAITING = 4


def receive_stream(
    source: Source,
    make_target: Callable[[StreamReader], WritableDevice],
    *,
    name: str = "stream",
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> StreamSummary:
    """Write the streamOptimized disk that arrives on ``source`` to a new device.

    ``make_target`` is called once header and descriptor have come, and makes a device of at least the
    stream's ``capacity`` that reads as zeroes; it is flushed and closed here. After an error it holds a part
    of the disk, and is the caller's to remove. ``progress`` gets the bytes of the disk reached and its
    capacity. Raises NotSupported for the delta of a parent, and what :class:`StreamReader` and the device
    raise.
    """
    if workers < 1:
        raise UsageError(f"{name}: {workers} workers cannot receive a stream")
    reader = StreamReader(source, name=name)
    if reader.has_parent:
        raise NotSupported(
            f"{name}: the stream is a delta, and what does not come is its parent's",
            remedy="save it to a file beside its parent and open that",
        )
    with make_target(reader) as target:
        if target.capacity < reader.capacity:
            raise UsageError(
                f"{target.name}: {target.capacity} bytes are too few for a disk of {reader.capacity}"
            )
        with WorkerScope("receive", cancel) as scope:
            batches = _Batches()
            unsubscribe = scope.token.subscribe(batches.close)
            try:
                for _ in range(workers):
                    scope.spawn(_work, reader, target, batches)
                for batch in _batched(reader):
                    scope.token.check()
                    if not batches.put(batch):
                        scope.token.check()
                    if progress is not None:
                        progress(min(reader.capacity, (batch[-1].number + 1) * reader.grain), reader.capacity)
            finally:
                # Where the stream broke off as well: the workers wait for the next batch.
                batches.close()
                unsubscribe()
        target.flush()
    if reader.summary is None:
        raise UsageError(f"{name}: the stream was not read to its end")
    return reader.summary


def _batched(reader: StreamReader) -> Iterator[list[Record]]:
    size = max(1, BATCH // reader.grain)
    batch: list[Record] = []
    try:
        for record in reader.records():
            batch.append(record)
            if len(batch) == size:
                yield batch
                batch = []
    except FormatError:  # what came before the stream broke off is written too
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _work(reader: StreamReader, target: WritableDevice, batches: _Batches) -> None:
    while (batch := batches.take()) is not None:
        target.write_many([(record.number * reader.grain, reader.opened(record)) for record in batch])


class _Batches:
    """A bounded queue that can be closed from either side."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: deque[list[Record]] = deque()
        self._closed = False

    def put(self, batch: list[Record]) -> bool:
        """Wait for room; False if nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._held) < _WAITING)
            if self._closed:
                return False
            self._held.append(batch)
            self._changed.notify()
            return True

    def take(self) -> list[Record] | None:
        """The next batch; None when it is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._held)
            if not self._held:
                return None
            batch = self._held.popleft()
            self._changed.notify()
            return batch

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
