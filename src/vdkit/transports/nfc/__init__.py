"""NFC client: a disk of an ESXi host over TCP 902, in TLS (``nbdssl``) or, after it, in clear (``nbd``).

Source of facts: our NFC specification (``docs/reference/nfc.md``).
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import get_args

from vdkit.block.device import MAX_CAPACITY
from vdkit.errors import HostError, ProtocolError, TransportError, UsageError
from vdkit.transports.nfc.disk import NfcDisk, end_request
from vdkit.transports.nfc.host_errors import in_phase
from vdkit.transports.nfc.opening import open_stream
from vdkit.transports.nfc.operations import Exchange
from vdkit.transports.nfc.session import Session
from vdkit.transports.nfc.target import (
    DEFAULT_WINDOW,
    FAR_REQUEST_SIZE,
    FAR_SECONDS,
    HELLO_BUFFERS,
    MAX_IN_FLIGHT,
    NEAR_REQUEST_SIZE,
    CompressionName,
    Mode,
    NfcTarget,
    Timeouts,
)
from vdkit.wire.nfc import records
from vdkit.wire.nfc.codecs import compression_of
from vdkit.wire.nfc.limits import DEFAULT_HELLO_BUFFER, MAX_REQUEST
from vdkit.wire.nfc.records import Opcode, OpenReply

__all__ = [
    "DEFAULT_WINDOW",
    "FAR_REQUEST_SIZE",
    "MAX_IN_FLIGHT",
    "NEAR_REQUEST_SIZE",
    "CompressionName",
    "Mode",
    "NfcDisk",
    "NfcTarget",
    "Timeouts",
    "open_nfc",
]

_SECTOR_SIZES = (512, 4096)
#: Seconds to wait for the reply that hosts send after they refused an OPEN. Nothing depends on it.
_TWIN = 2.0


def open_nfc(
    target: NfcTarget,
    *,
    mode: Mode = "nbdssl",
    writable: bool = False,
    compression: CompressionName = "none",
    window: int = DEFAULT_WINDOW,
    request_size: int | None = None,
    timeouts: Timeouts | None = None,
) -> NfcDisk:
    """Open the disk; this uses up the target's ticket.

    ``window``: requests of ``request_size`` bytes in flight, at most :data:`MAX_IN_FLIGHT` bytes together.
    ``request_size`` None: chosen by how far the host is.
    """
    _check(mode, window, request_size)
    code = compression_of(compression)
    timeouts = timeouts or Timeouts()
    stream = open_stream(target, mode, timeouts)
    session = Session(stream, target.where, target.path, window=window, timeouts=timeouts)
    try:
        fragment, trip = _say_hello(session, request_size or NEAR_REQUEST_SIZE, timeouts)
        reply = _open(session, target, writable, timeouts)
    except BaseException:
        session.close()
        raise
    return NfcDisk(
        session,
        target,
        reply,
        writable=writable,
        compression=code,
        fragment=fragment,
        request_size=request_size or (NEAR_REQUEST_SIZE if trip < FAR_SECONDS else FAR_REQUEST_SIZE),
        timeouts=timeouts,
    )


def _check(mode: str, window: int, request_size: int | None) -> None:
    if mode not in get_args(Mode):
        raise UsageError(f"NFC mode {mode!r} is not known", remedy="use nbd or nbdssl")
    if window < 1:
        raise UsageError(f"a window of {window} requests: at least one is needed")
    if request_size is None:
        return
    if request_size % max(_SECTOR_SIZES) or not 0 < request_size <= MAX_REQUEST:
        raise UsageError(
            f"a request size of {request_size} bytes: a multiple of {max(_SECTOR_SIZES)} "
            f"up to {MAX_REQUEST} is needed"
        )


def _say_hello(session: Session, request_size: int, timeouts: Timeouts) -> tuple[int, float]:
    """Open the record session; the largest chunk that was agreed on (bytes), and a round trip (seconds)."""
    size = max(request_size, DEFAULT_HELLO_BUFFER)
    build = partial(records.encode_hello, buffer_size=size, buffer_count=HELLO_BUFFERS)
    hello = Exchange(
        Opcode.HELLO, "negotiating buffers (HELLO)", build, seconds=timeouts.request, fatal=False
    )
    if session.exchange(hello).refused is not None:
        size = DEFAULT_HELLO_BUFFER
        session.exchange(
            Exchange(
                Opcode.HELLO, "negotiating buffers (HELLO)", records.encode_hello, seconds=timeouts.request
            )
        )
    trips = []
    for opcode, encode in (
        (Opcode.SOCKOPTS, records.encode_sockopts),
        (Opcode.RESPOOL, records.encode_respool),
    ):
        start = time.monotonic()
        session.exchange(
            Exchange(opcode, f"opening the session ({opcode.name})", encode, seconds=timeouts.request)
        )
        trips.append(time.monotonic() - start)
    return size, min(trips)


def _open(session: Session, target: NfcTarget, writable: bool, timeouts: Timeouts) -> OpenReply:
    phase = f"opening the disk for {'writing' if writable else 'reading'}"
    done = session.exchange(
        Exchange(
            Opcode.OPEN,
            phase,
            partial(records.encode_open, path=target.path, writable=writable),
            seconds=timeouts.request,
            fatal=False,
        )
    )
    try:
        if done.refused is not None:
            # Both of them are read, as other clients do, before the session is ended in good order.
            with contextlib.suppress(TransportError):
                session.await_twin(min(_TWIN, timeouts.close))
                session.exchange(end_request(timeouts.close))
            raise done.refused
        return _checked(records.decode_open_reply(done.payload))
    except TransportError as error:
        raise in_phase(error, target.where, f"while {phase} (disk {target.path})") from error


def _checked(reply: OpenReply) -> OpenReply:
    if reply.status != 0:
        raise HostError(f"the host answered OPEN with status {reply.status}")
    if reply.file_type != records.FILE_TYPE_DISK:
        raise ProtocolError(f"the host opened something of file type {reply.file_type} instead of a disk")
    if reply.capacity > MAX_CAPACITY:
        raise ProtocolError(f"the host announced a capacity of {reply.capacity} bytes")
    if reply.sector_size not in _SECTOR_SIZES:
        raise ProtocolError(f"the host announced sectors of {reply.sector_size} bytes")
    return reply
