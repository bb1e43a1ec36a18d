"""Where an NFC disk is, and how hard to pull."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vdkit.net.connect import host_port
from vdkit.net.secret import Secret

Mode = Literal["nbd", "nbdssl"]
#: ``auto`` chooses by the link, see :mod:`vdkit.transports.nfc.compressing`.
CompressionName = Literal["none", "zlib", "fastlz", "skipz", "auto"]

#: Bytes of one read or write to a host that is near: as few requests as can be, each costs time at both ends.
NEAR_REQUEST_SIZE = 1 << 20
#: The same to a host that is far: smaller ones are spread better over :data:`MAX_IN_FLIGHT`.
FAR_REQUEST_SIZE = 512 << 10
#: Seconds of a round trip, measured while the session opens, from which on a host is far.
FAR_SECONDS = 0.002
#: Requests in flight on one connection.
DEFAULT_WINDOW = 128
#: Bytes asked for and not yet come, per disk: half of the 48 MiB that a host has for all its NFC sessions.
MAX_IN_FLIGHT = 24 << 20
#: Buffers that HELLO asks for. VMware's own client is used with 4 of up to 2 MiB.
HELLO_BUFFERS = 4
#: Bytes that one buffer is a multiple of.
BUFFER_UNIT = 64 << 10
#: Seconds that a host that has closed is listened to, for an error it may have sent before.
LAST_WORDS = 1.0
#: Bytes that one ``read_many`` should carry: two of them fill what may be in flight.
IO_BATCH = MAX_IN_FLIGHT // 2


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds without progress after which a wait is given up. VMware's recommended values by default."""

    connect: float = 10.0
    request: float = 180.0
    read: float = 60.0
    write: float = 600.0
    close: float = 5.0


@dataclass(frozen=True, slots=True)
class NfcTarget:
    """A disk and the ticket that opens it, once.

    ``service``, ``thumbprint`` (SHA-1) and ``certificate`` (PEM) are those of the ticket; one of the two pins
    is needed. ``path``: a datastore path such as ``[ds] vm/vm.vmdk``. ``legacy_tls``: as in ``Trust``.
    """

    host: str
    port: int
    ticket: Secret = field(repr=False)
    service: str
    thumbprint: str | None
    certificate: str | None
    path: str
    legacy_tls: bool = False

    @property
    def where(self) -> str:
        return host_port(self.host, self.port)
