"""Where a copy puts its bytes: a device at any offset, or a sequential writer in ascending order."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from vdkit.block.device import WritableDevice
from vdkit.block.sequential import SequentialWriter
from vdkit.block.workers import CancelToken


class Span(NamedTuple):
    """A run of a batch after zero detection; ``place`` is where it lies in the buffer, -1 for zeroes."""

    offset: int
    length: int
    place: int


class Put(NamedTuple):
    """What became of a batch, in bytes."""

    written: int
    zeroed: int
    skipped: int


class Sink(Protocol):
    """Takes batches from all the workers at once."""

    def admit(self, ticket: int) -> None:
        """Wait until batch number ``ticket`` may be worked on."""

    def put(self, ticket: int, /, spans: Sequence[Span], buffer: memoryview) -> Put:
        """Take a batch; ``buffer`` belongs to the worker again when this returns."""


class DeviceSink:
    """Writes each batch where it belongs, whatever the order."""

    def __init__(self, target: WritableDevice, *, source_end: int, target_is_zero: bool) -> None:
        self._target = target
        self._target_is_zero = target_is_zero
        # A source that ends inside a unit of the target: that unit's rest is the target's own.
        unit = target.alignment
        self._ragged_end = source_end if source_end % unit and source_end != target.capacity else None

    def admit(self, ticket: int) -> None:
        """Order does not matter here."""

    def put(self, _ticket: int, /, spans: Sequence[Span], buffer: memoryview) -> Put:
        writes: list[tuple[int, memoryview]] = []
        written = zeroed = skipped = 0
        for span in spans:
            offset, length, place = span
            if place >= 0:
                written += length
                whole = self._without_ragged_end(offset, length, buffer[place : place + length])
                if whole:
                    writes.append((offset, buffer[place : place + whole]))
            elif self._target_is_zero:
                skipped += length
            else:
                zeroed += length
                whole = self._without_ragged_end(offset, length, None)
                if whole:
                    self._target.write_zeroes(offset, whole)
        if len(writes) == 1:
            self._target.write_from(*writes[0])
        elif writes:
            self._target.write_many(writes)
        return Put(written, zeroed, skipped)

    def _without_ragged_end(self, offset: int, length: int, data: memoryview | None) -> int:
        """How much of a run may be written as it is; a ragged end is merged into the target's last unit."""
        if offset + length != self._ragged_end:
            return length
        unit = self._target.alignment
        floor = self._ragged_end // unit * unit
        sector = bytearray(min(unit, self._target.capacity - floor))
        self._target.read_into(floor, sector)
        rest = self._ragged_end - floor
        sector[:rest] = bytes(rest) if data is None else data[length - rest :]
        self._target.write_from(floor, sector)
        return length - rest


class SequentialSink:
    """Encodes on the workers and appends in order, with a bounded number of batches waiting."""

    def __init__(
        self,
        writer: SequentialWriter[Any],
        *,
        token: CancelToken,
        window: int,
        block: int,
        source_end: int,
        target_is_zero: bool,
    ) -> None:
        """``window`` batches at most are between the first one not yet appended and the newest."""
        self._writer = writer
        self._token = token
        self._window = window
        self._block = block
        self._target_is_zero = target_is_zero
        pad_to = min(-(-source_end // writer.unit) * writer.unit, writer.capacity)
        self._source_end = source_end
        #: Zero bytes that complete the last unit of a source that ends inside it.
        self._padding = pad_to - source_end
        self._zeroes = memoryview(bytes(block))
        self._turn = threading.Condition()
        self._encoded: dict[int, list[Any]] = {}
        self._next = 0
        self._appending = False
        token.subscribe(self._wake)

    def _wake(self) -> None:
        with self._turn:
            self._turn.notify_all()

    def admit(self, ticket: int) -> None:
        # The holder of the lowest ticket never waits here, so there is always somebody who gets on.
        with self._turn:
            self._turn.wait_for(lambda: ticket < self._next + self._window or self._token.cancelled)
        self._token.check()

    def put(self, ticket: int, /, spans: Sequence[Span], buffer: memoryview) -> Put:
        encoded: list[Any] = []
        written = zeroed = skipped = 0
        for offset, length, place in spans:
            padding = self._padding if offset + length == self._source_end else 0
            if place >= 0:
                written += length
                if padding:
                    buffer[place + length : place + length + padding] = bytes(padding)
                self._encode(encoded, offset, buffer[place : place + length + padding])
            elif self._target_is_zero:
                skipped += length
            else:
                zeroed += length
                self._encode_zeroes(encoded, offset, length + padding)
        self._append_in_turn(ticket, encoded)
        return Put(written, zeroed, skipped)

    def _encode(self, encoded: list[Any], offset: int, data: memoryview) -> None:
        position = 0
        while position < len(data):
            self._token.check()
            step = min(len(data) - position, self._block - (offset + position) % self._block)
            encoded.append(self._writer.encode(offset + position, data[position : position + step]))
            position += step

    def _encode_zeroes(self, encoded: list[Any], offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            self._token.check()
            step = min(end - offset, self._block - offset % self._block)
            encoded.append(self._writer.encode(offset, self._zeroes[:step]))
            offset += step

    def _append_in_turn(self, ticket: int, encoded: list[Any]) -> None:
        """Leave a batch; whoever finds nobody appending appends all that is in turn."""
        with self._turn:
            self._encoded[ticket] = encoded
            if self._appending:
                return
            self._appending = True
        # After a failure below nobody appends any more: the failure cancels the token.
        while True:
            with self._turn:
                ready = self._encoded.pop(self._next, None)
                if ready is None:
                    self._appending = False
                    return
            for item in ready:
                self._token.check()
                self._writer.append(item)
            with self._turn:
                self._next += 1
                self._turn.notify_all()
