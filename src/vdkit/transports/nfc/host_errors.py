"""What a host's own errors mean (NFC specification, section 12.2)."""

from __future__ import annotations

from vdkit.errors import HostAccessDenied, HostError, HostFileLocked, HostOutOfMemory, TransportError

CODE_DENIED = 11
CODE_NO_MEMORY = 5
_LOCKED = "Failed to lock the file"
_RUNNING = "Thin/TBZ/Sparse disks cannot be opened in multiwriter mode"
#: Longest text of a host that is shown.
_SHOWN = 400


def host_error(where: str, code: int, text: str) -> HostError:
    """The error for an ERROR record of ``where`` (``host:port``)."""
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    message = f"{where}: the host answered with error {code}: {shown!r}"
    # Codes differ between hosts for a locked disk, so the text decides first.
    if _LOCKED in text or _RUNNING in text:
        return HostFileLocked(message, remedy="the disk is in use: open the disk under a snapshot")
    if code == CODE_DENIED:
        return HostAccessDenied(
            message, remedy="check that the ticket is for this virtual machine and allows what is asked"
        )
    if code == CODE_NO_MEMORY:
        return HostOutOfMemory(message, remedy="open fewer disks of this host at once, or a smaller window")
    return HostError(message)


def in_phase(error: TransportError, where: str, phase: str) -> TransportError:
    """The same error, its message beginning with ``where`` and saying during what it happened."""
    message = error.message if error.message.startswith(where) else f"{where}: {error.message}"
    return type(error)(f"{message}, {phase}", remedy=error.remedy)
