"""The sending side of one connection of the data port: every message goes through here, faults included."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from vdkit.errors import ConnectionLost
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Readable, Stream
from vdkit.sim.nfc_faults import NfcFaults

#: Seconds that a client may take nothing.
SEND_TIMEOUT = 600.0


class Outlet:
    """Sends messages on whatever stream is current: clear, first TLS session, second one."""

    def __init__(self, stream: Stream, faults: NfcFaults, stopping: threading.Event) -> None:
        self.stream = stream
        self._faults = faults
        self._stopping = stopping
        self._sent = 0

    def send(self, parts: Sequence[Readable]) -> None:
        """One message."""
        faults = self._faults
        if faults.delay:
            self._stopping.wait(faults.delay)
        if faults.silent_after_messages is not None and self._sent >= faults.silent_after_messages:
            return
        self.stream.send(parts, Deadline.after(SEND_TIMEOUT))
        self._sent += 1
        if self._sent == faults.cut_after_messages:
            self.cut()

    def cut(self) -> None:
        """Break the connection, as a host that dies would."""
        self.stream.abort()
        raise ConnectionLost(f"{self.stream.peer}: cut by a fault")
