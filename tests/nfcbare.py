"""A disk session of the simulated data port by itself, and a client of bare records that drives it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nfctools import Office
from vdkit.errors import TransportError
from vdkit.net.deadline import Deadline
from vdkit.net.stream import SocketStream, Stream
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_ledger import Ledger
from vdkit.sim.nfc_outlet import Outlet
from vdkit.sim.nfc_session import DiskSession
from vdkit.wire.nfc import records
from vdkit.wire.nfc.records import Direction, Io, Opcode


class BareSession:
    """A client of bare records, in clear, behind the log-in."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.handle = 0
        self.chunk: Io | None = None
        self.data = b""

    def take(self, size: int) -> bytes:
        data = bytearray(size)
        self.stream.recv_exact(memoryview(data), Deadline.after(30))
        return bytes(data)

    def send(self, *parts: bytes) -> None:
        self.stream.send((b"".join(parts),), Deadline.after(30))

    def open(self, path: str) -> None:
        text = path.encode()
        self.send(records.encode_open(3, text.decode(), writable=False))
        header = records.parse_header(self.take(records.HEADER_SIZE))
        assert header.opcode == Opcode.OPEN
        self.handle = records.decode_open_reply(memoryview(self.take(header.length))).handle

    def reads(self, first: int, count: int, size: int, offset: int = 0) -> None:
        """Several requests in one piece of data."""
        request = Io(self.handle, Direction.READ, 0, offset, size, 0, size, size)
        wanted = [records.encode_io(first + number, request) for number in range(count)]
        self.send(*wanted)

    def reply(self) -> tuple[int, int, str]:
        """Sequence, bytes of a chunk or code of an error, text of the error."""
        header = records.parse_header(self.take(records.HEADER_SIZE))
        payload = memoryview(self.take(header.length))
        if header.opcode == Opcode.ERROR:
            head = records.decode_error(payload)
            return header.sequence, head.code, self.take(head.text_length).decode()
        chunk = records.decode_io(payload)
        self.chunk = chunk
        self.data = self.take(chunk.wire)
        return header.sequence, chunk.length, ""


@contextmanager
def bare(ledger: Ledger, office: Office, faults: NfcFaults | None = None) -> Iterator[BareSession]:
    ours, theirs = socket.socketpair()
    host = SocketStream(theirs, "client")
    faults = faults or NfcFaults()
    stopping = threading.Event()

    def run() -> None:
        outlet = Outlet(host, faults, stopping)
        with (
            DiskSession(host, outlet, office, faults, ledger) as session,
            suppress(TransportError),
        ):
            session.run()
        host.close()

    thread = threading.Thread(target=run)
    thread.start()
    client = BareSession(SocketStream(ours, "host"))
    try:
        yield client
    finally:
        client.stream.abort()
        host.abort()
        thread.join()
        client.stream.close()
        host.close()
