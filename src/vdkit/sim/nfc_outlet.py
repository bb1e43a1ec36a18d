"""The sending side of one connection of the data port: every message goes through here, faults included."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from vdkit.errors import ConnectionLost
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Readable, SocketStream, Stream
from vdkit.sim.nfc_faults import NfcFaults

#: Seconds that a client may take nothing.
SEND_TIMEOUT = 600.0


class Outlet:
    """Sends messages on whatever stream is current: clear, first TLS session, second one."""

    def __init__(self, raw: SocketStream, faults: NfcFaults, stopping: threading.Event) -> None:
        self.stream: Stream = raw
        self._raw = raw
        self._faults = faults
        self._healthy = faults == NfcFaults()
        self._stopping = stopping
        self._sent = 0
        self._bytes = 0
        self._random = random.Random(faults.reset_seed)

    def send(self, parts: Sequence[Readable]) -> None:
        """One message."""
        if self._healthy or self._may_go(parts):
            self.stream.send(parts, Deadline.after(SEND_TIMEOUT))
            self._sent += 1
            if self._sent == self._faults.cut_after_messages:
                self.cut()

    def pause(self, seconds: float) -> None:
        """Let time pass, or less if the server stops."""
        self._stopping.wait(seconds)

    def _may_go(self, parts: Sequence[Readable]) -> bool:
        """The faults that come before a message; False if it is dropped."""
        faults = self._faults
        if faults.delay:
            self.pause(faults.delay)
        if faults.silent_after_messages is not None and self._sent >= faults.silent_after_messages:
            return False
        if faults.half_close_after_messages is not None and self._sent >= faults.half_close_after_messages:
            self._raw.end_sending()
            return False
        if faults.reset_chance and self._random.random() < faults.reset_chance:
            self._reset()
        self._bytes += sum(map(len, parts))
        if faults.reset_after_bytes is not None and self._bytes > faults.reset_after_bytes:
            whole = b"".join(bytes(part) for part in parts)
            kept = len(whole) - (self._bytes - faults.reset_after_bytes)
            self.stream.send((whole[:kept],), Deadline.after(SEND_TIMEOUT))
            self._reset()
        return True

    def _reset(self) -> None:
        self._raw.reset_at_close()
        raise ConnectionLost(f"{self.stream.peer}: reset by a fault")

    def cut(self) -> None:
        """Break the connection, as a host that dies would."""
        self.stream.abort()
        raise ConnectionLost(f"{self.stream.peer}: cut by a fault")
