"""The receiving side of a disk session: records as they come, and how much of the host's memory they hold.

The plain intake takes a record when the session asks for the next. The one that counts looks ahead: reads
that have come are taken from the connection at once, so that the ledger knows of them before the oldest is
served. It looks no further than the first record that is no read: what belongs to that one is still on the
connection.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from vdkit.errors import ConnectionLost
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Stream
from vdkit.sim.nfc_ledger import Ledger
from vdkit.wire.nfc import records
from vdkit.wire.nfc.limits import MAX_PAYLOAD
from vdkit.wire.nfc.records import Direction, Header, Opcode

#: Seconds without a request after which hosts were seen to expire a session.
IDLE_TIMEOUT = 1800.0
#: Seconds that the rest of a record may take.
RECORD_TIMEOUT = 60.0
#: Reads taken before they are served. More wait on the connection, which pushes back.
MAX_AHEAD = 1024


class Record(NamedTuple):
    """``held`` is the memory that the request holds; None if there was not enough for it."""

    header: Header
    payload: memoryview
    held: int | None = 0


class Intake:
    """Takes records one by one and counts nothing. A payload is good until the next record is taken."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._head = memoryview(bytearray(records.HEADER_SIZE))
        self._payload = memoryview(bytearray(MAX_PAYLOAD))

    def next(self) -> Record:
        header, payload = self._receive()
        return Record(header, payload)

    def look_ahead(self, seconds: float = 0.0) -> None:
        """Take what has come, and what comes within ``seconds``."""

    def answered(self, record: Record) -> None:
        """The request needs no memory any more."""

    def close(self) -> None:
        """The session has ended, whatever was answered."""

    def more_comes(self, seconds: float) -> bool:
        """True if another record is there, or comes within that time."""
        return self._stream.wait(Deadline.after(seconds), readable=True, writable=False)

    def _receive(self) -> tuple[Header, memoryview]:
        self._stream.recv_exact(self._head, Deadline.after(IDLE_TIMEOUT))
        header = records.parse_header(self._head)
        payload = self._payload[: header.length]
        if header.length:
            self._stream.recv_exact(payload, Deadline.after(RECORD_TIMEOUT))
        return header, payload


class CountingIntake(Intake):
    """Looks ahead and keeps the ledger."""

    def __init__(self, stream: Stream, ledger: Ledger) -> None:
        super().__init__(stream)
        self._ledger = ledger
        self._ahead: deque[Record] = deque()
        self._held = 0
        #: The last record taken is no read, and has not been asked for yet.
        self._barred = False
        #: The client has gone while its requests were still being answered.
        self._lost: ConnectionLost | None = None

    def next(self) -> Record:
        self.look_ahead()
        if not self._ahead:
            if self._lost is not None:
                raise self._lost
            self._take()
        record = self._ahead.popleft()
        if not self._ahead:
            self._barred = False
        return record

    def look_ahead(self, seconds: float = 0.0) -> None:
        deadline = Deadline.after(seconds)
        while not self._barred and self._lost is None and len(self._ahead) < MAX_AHEAD:
            if not self._stream.wait(deadline, readable=True, writable=False):
                return
            try:
                self._take()
            except ConnectionLost as error:
                self._lost = error

    def more_comes(self, seconds: float) -> bool:
        return bool(self._ahead) or super().more_comes(seconds)

    def answered(self, record: Record) -> None:
        if record.held:
            self._held -= record.held
            self._ledger.give(record.held)

    def close(self) -> None:
        self._ledger.give(self._held)
        self._held = 0

    def _take(self) -> None:
        header, payload = self._receive()
        size = _read_size(header, payload)
        if size is None:
            self._barred = True
            self._ahead.append(Record(header, payload))
            return
        # The payload's buffer is needed for the record behind it.
        kept = memoryview(bytes(payload))
        if not self._ledger.take(size):
            self._ahead.append(Record(header, kept, None))
            return
        self._held += size
        self._ahead.append(Record(header, kept, size))


def _read_size(header: Header, payload: memoryview) -> int | None:
    """Bytes that a read asks for; None for every other record."""
    if header.opcode != Opcode.IO:
        return None
    request = records.decode_io(payload)
    return request.total if request.direction == Direction.READ else None
