"""What one host bears: bytes of NFC requests at work and connections, by version and by NFC server.

A host has two NFC servers, each with limits of its own: ``hostd`` serves tickets that the host itself gave
out, ``vpxa`` those of vCenter. hostd's memory can be raised on the host (``nfcsvc/maxMemory`` in its
``config.xml``), vpxa's cannot, and what is documented for 8.0 is hostd's: so vpxa is taken to have what 6.5
had. Where a release has no documented number of connections, that of its successors holds.

Source of facts: VMware's VDDK programming guides 5.0 to 8.0 (NFC session limits); vSphere 3.5 and 4 have
documented numbers of connections only, and are taken to have the memory of 5.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from vdkit.errors import UsageError

NfcServer = Literal["hostd", "vpxa"]

#: Bytes of a unit in which memory is shared out.
UNIT: Final = 256 << 10
#: Bytes that a connection is sure of, at most: a larger request is not sent anyway.
MAX_FLOOR: Final = 1 << 20
#: Part of the memory that may be set aside for the floors of all connections.
FLOOR_PART: Final = 0.6
#: Bytes that the memory of a host may be set to.
MAX_MEMORY: Final = 16 << 30
#: Connections that a host may be said to serve.
MAX_CONNECTIONS: Final = 1000

_MIB: Final = 1 << 20
#: From which version on, then MiB and connections of hostd and of vpxa; the newest first.
_TABLE: Final = (
    ((8,), (96, 50), (48, 50)),
    ((7, 0, 1), (48, 50), (48, 50)),
    ((6, 5), (48, 50), (48, 52)),
    ((5,), (32, 50), (32, 52)),
    ((4,), (32, 11), (32, 23)),
    ((), (32, 9), (32, 27)),
)


@dataclass(frozen=True, slots=True)
class HostLimits:
    """``memory`` in bytes of requests that have been sent and not been answered, over all connections."""

    memory: int
    connections: int

    def __post_init__(self) -> None:
        if not UNIT <= self.memory <= MAX_MEMORY:
            raise UsageError(
                f"{self.memory} bytes of NFC memory of a host: {UNIT} to {MAX_MEMORY} can be shared out",
                remedy="host_memory is given in MiB",
            )
        if not 1 <= self.connections <= MAX_CONNECTIONS:
            raise UsageError(
                f"{self.connections} connections to a host: 1 to {MAX_CONNECTIONS} can be allowed"
            )
        if self.connections > most_connections(self.memory):
            raise UsageError(
                f"{self.connections} connections do not fit into {self.memory} bytes of NFC memory: each "
                f"needs {UNIT} of its own",
                remedy=f"allow {most_connections(self.memory)} connections, or more memory",
            )

    @property
    def floor(self) -> int:
        """Bytes that every connection is sure of: small enough that all of them leave something to share."""
        most = int(self.memory * FLOOR_PART) // self.connections
        return max(UNIT, min(MAX_FLOOR, most // UNIT * UNIT))

    def replaced(self, *, memory: int | None, connections: int | None) -> HostLimits:
        """The same with what is given; connections that were not given are as many as fit the memory."""
        size = self.memory if memory is None else memory
        if connections is None:
            connections = max(1, min(self.connections, most_connections(size)))
        return HostLimits(size, connections)


def most_connections(memory: int) -> int:
    """Connections of which each can have a unit of its own."""
    return max(memory, 0) // UNIT


def limits_of(version: str, server: NfcServer) -> HostLimits:
    """The limits of a host of that version; through vCenter its own version is known only, and counts.

    A version that cannot be read counts as the oldest.
    """
    known = _numbers(version)
    for since, direct, through_vcenter in _TABLE:
        if known >= since:
            mib, connections = direct if server == "hostd" else through_vcenter
            return HostLimits(mib * _MIB, connections)
    raise AssertionError("unreachable: the last row holds for every version")


def server_of(service: str) -> NfcServer:
    """The server that a ticket's service belongs to: ``nfc`` is hostd's, ``vpxa-nfc`` vpxa's."""
    return "vpxa" if service.startswith("vpxa") else "hostd"


def _numbers(version: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in version.split("."):
        if not (part.isascii() and part.isdecimal() and len(part) <= 4):
            break
        numbers.append(int(part))
    return tuple(numbers)
